"""Randomised attack on the engine and on the readers of files.

A *family* makes inputs of one kind from a `Source` of choices, calls the code under test and holds
the answer against an oracle that shares no code with it. Children run the cases, so that a signal
ends a child and not the run: ``python -m tests.fuzz --seconds 600``.
"""
