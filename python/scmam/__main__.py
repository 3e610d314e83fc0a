"""``python -m scmam`` is the command ``scmam``."""

from .cli import main

if __name__ == "__main__":
    main()
