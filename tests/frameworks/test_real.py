"""The frameworks' own classes, where they are installed or checked out: each example trains as its
page says.

``make test-frameworks`` installs them into environments of their own, and runs this in each.
``FRAMEWORK_SOURCES`` names a folder of checkouts of those that are no packages.
"""

import importlib

import pytest

from mam_kernels.integrations.examples import NAMES, training
from mam_kernels.integrations.formats import FRAMEWORKS
from tests.frameworks.theirs import checkout, installed

INSTALLED = ["scgpt", "hugging-face", "scvi-tools", "cellplm", "uce", "cellarium-ml"]
CHECKED_OUT = {"scfoundation": "scFoundation", "scbert": "scBERT", "nicheformer": "nicheformer"}


def trained(name, source=None):
    module = importlib.import_module(f"mam_kernels.integrations.examples.{NAMES[name]}")
    return training.train(module.example(module.code(source)))


@pytest.mark.parametrize("name", INSTALLED)
def test_it_trains_as_its_page_says(name):
    installed(FRAMEWORKS[name].package)
    found = trained(name)
    assert found.right, found


@pytest.mark.parametrize("name", CHECKED_OUT)
def test_a_checkout_trains_as_its_page_says(name):
    source = checkout(CHECKED_OUT[name])
    try:
        found = trained(name, source)
    except ModuleNotFoundError as error:
        pytest.skip(f"{FRAMEWORKS[name].title} needs more than this environment has: {error}")
    assert found.right, found


def test_every_example_is_run():
    assert set(NAMES) == {*INSTALLED, *CHECKED_OUT, "bmfm"}  # whose checkout needs much more
