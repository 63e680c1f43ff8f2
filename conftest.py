"""What all tests share: one thread per process, and how notebooks are compared."""

import os

from tools.notebooks import ENVIRONMENT

os.environ.update(ENVIRONMENT)

# A ledger's table is compared as text, with its measured values masked; its JSON holds the same values unmasked.
NOT_COMPARED = {"application/vnd.symlearn.claims+json", "application/vnd.jupyter.widget-view+json", "image/svg+xml"}


def pytest_collection_modifyitems(items):
    for item in items:
        notebook = item.parent
        if hasattr(notebook, "skip_compare"):
            notebook.skip_compare = tuple({*notebook.skip_compare, *NOT_COMPARED})
