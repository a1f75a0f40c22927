import sys
from types import SimpleNamespace

import pytest

from trimtab.ray_cluster import join


def test_a_cluster_that_does_not_start_in_time_is_one_error(monkeypatch):
    """Ray then raises a bare Exception."""

    def init(**given):
        raise Exception("The current node timed out during startup.\nSee the logs.")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(
        ValueError, match=r"^no Ray cluster answers at this machine: The current node timed out during startup\.$"
    ):
        join(None)
