"""Warnings that a test brings about and that are held elsewhere, so that those a run of the suite shows are news."""

import pytest

TOY_IS_CUT = pytest.mark.filterwarnings("ignore:all weights of .* go, while other layers keep some:UserWarning")
"""A toy network loses a whole layer at a high sparsity; the words are held by `tests/pruning/test_collapse.py`."""
