"""The examples of the pages: the smallest model of each framework's class, trained with a masking
on real cells.

``python -m mam_kernels.integrations check FRAMEWORK`` trains one and says what differs from what
its page promises. Each module here has ``code``, which imports the framework, and ``example``,
which builds model, masking and batches of it.
"""

NAMES = {
    "scgpt": "scgpt",
    "hugging-face": "hugging_face",
    "scfoundation": "scfoundation",
    "scbert": "scbert",
    "nicheformer": "nicheformer",
    "bmfm": "bmfm",
    "scvi-tools": "scvi_tools",
    "cellplm": "cellplm",
    "uce": "uce",
    "cellarium-ml": "cellarium",
}
"""The frameworks that can be checked, and their modules."""
