"""Which runs may stand in one table is read from fields, not from labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.runs.tiny import tiny_recipe
from trimtab.runs.recipe import Recipe
from trimtab.studies.prune_run import PrunedRun
from trimtab.studies.summary import Histogram
from trimtab.studies.variants import variants
from trimtab.studies.weights.assemble import _check_comparable


def pruned(label: str, **more: Any) -> dict[str, Any]:
    """A file of measurements without rows."""
    histogram = Histogram(
        method=label, seed=0, edges=[0, 1], counts=[1], near_zero=0, variance_of_magnitude=0, root_mean_square=1
    )
    return {
        "settings": {
            "label": label, "score": "magnitude", "scope": "global", "pattern": "unstructured", "split": "test",
        },
        "rows": [], "storage": [], "left_out": {}, "histogram": histogram.model_dump(), **more,
    }  # fmt: skip


def kept(recipe: Recipe, label: str, **more: Any) -> dict[Path, tuple[Recipe, PrunedRun]]:
    return {Path(label): (recipe, PrunedRun.model_validate(pruned(label, **more)))}


def test_a_varied_field_may_differ_whatever_the_label_says() -> None:
    short, long = tiny_recipe(epochs=1), tiny_recipe(epochs=2)
    _check_comparable(kept(short, "short", varied=["epochs"]) | kept(long, "long", varied=["epochs"]))
    with pytest.raises(ValueError, match=r"cannot stand in one table \(epochs: 1 and 2\)"):
        _check_comparable(kept(short, "sgd[epochs=1]", varied=[]) | kept(long, "sgd[epochs=2]", varied=[]))


def test_variants_say_what_is_varied() -> None:
    found = variants(tiny_recipe(), ["sgd", "var"], [0], {"var.strength": [1e-5, 1e-4], "epochs": [1, 2]})
    assert {(one.label.partition("[")[0], one.varied) for one in found} == {
        ("sgd", ("epochs",)),
        ("var", ("var.strength", "epochs")),
    }


def test_files_that_know_the_label_alone_are_read() -> None:
    old = PrunedRun.model_validate(pruned("var[var.strength=1e-05,data.batch_size=32]"))
    assert old.varied == ["var.strength", "data.batch_size"]
    assert PrunedRun.model_validate(pruned("sgd")).varied == []
    assert PrunedRun.model_validate_json(old.model_dump_json()) == old


def test_a_file_without_what_reports_name_is_refused() -> None:
    whole = pruned("sgd")
    del whole["settings"]["pattern"]
    with pytest.raises(ValueError, match="settings lack pattern"):
        PrunedRun.model_validate(whole)
