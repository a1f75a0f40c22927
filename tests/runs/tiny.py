"""A recipe and a data set so small that a run takes a second."""

from __future__ import annotations

from trimtab.runs.recipe import Recipe


def tiny_recipe(**settings: object) -> Recipe:
    """Digits, 320 images, three epochs of five steps."""
    base: dict[str, object] = {
        "epochs": 3,
        "data.limit_train": 320,
        "data.augment": "shift",
        "pruning.sparsities": (0.5, 0.9),
        "pruning.recalibrate_batches": 3,
        "pruning.controls": False,
    }
    return Recipe().with_settings({**base, **{name.replace("__", "."): value for name, value in settings.items()}})
