"""The score of a recipe's pruning section, with the run's own training data where it needs some."""

from __future__ import annotations

from typing import Any

import torch

from trimtab import datasets
from trimtab.pruning import Wanda
from trimtab.pruning.scores import Score
from trimtab.runs.loading import batches_of
from trimtab.runs.recipe import Recipe


def pruning_choice(
    recipe: Recipe,
    data: datasets.DataSet,
    *,
    score: str | None = None,
    scope: str | None = None,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """What `one_shot` and `sweep` take to prune as the recipe says, or by another score and scope (a control).

    Wanda sees the batches that BatchNorm is re-estimated on, of the training images, and goes layer by layer but for
    scope "global", which compares all layers at once.
    """
    section = recipe.pruning
    name, where = score or section.score, scope or section.scope
    found: Score = name
    if name == "wanda":
        batches = batches_of(recipe, data, "train", device=device).sample(section.recalibrate_batches, recipe.seed)
        found = Wanda(batches, propagate=where != "global" or section.pattern != "unstructured")
    return {
        "score": found,
        "scope": where,
        "pattern": section.pattern,
        "indivisible": section.indivisible,
        "on_collapse": section.on_collapse,
        "seed": recipe.seed,
    }
