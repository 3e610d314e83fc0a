"""The frameworks' own classes, where they are installed: each example trains as its page says.

``make test-frameworks`` installs them into environments of their own, and runs this in each.
"""

import importlib
import importlib.metadata

import pytest

from mam_kernels.integrations.examples import NAMES, training
from mam_kernels.integrations.formats import FRAMEWORKS

INSTALLED = ["scgpt", "hugging-face", "scvi-tools", "cellplm", "uce", "cellarium-ml"]


@pytest.mark.parametrize("name", INSTALLED)
def test_it_trains_as_its_page_says(name):
    package = FRAMEWORKS[name].package
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not in this environment")
    module = importlib.import_module(f"mam_kernels.integrations.examples.{NAMES[name]}")
    found = training.train(module.example(module.code(None)))
    assert found.right, found
