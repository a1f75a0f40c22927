"""Whether a network can be pruned as its recipe says, asked before it is trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from trimtab.pruning.selection_plan import SelectionPlan
from trimtab.runs.loading import build_model, load_data
from trimtab.runs.recipe import Recipe


def check_prunable(recipe: Recipe, model: nn.Module) -> None:
    """That the recipe's N:M pattern divides the weights of its network, whole and untrained; without a pattern nothing to ask.

    Raises:
        ValueError: it does not, and the recipe does not say that such weights stay dense (each is named).
    """
    section = recipe.pruning
    if section.pattern != "unstructured":
        SelectionPlan(
            model, score="magnitude", scope=None, pattern=section.pattern, rule=None, seed=recipe.seed, keep_first=False,
            keep_last=False, indivisible=section.indivisible,
        )  # fmt: skip


def check_all_prunable(recipes: Iterable[Recipe]) -> None:
    """`check_prunable` of every network that these recipes train, once each; raises as it does."""
    asked = set()
    for recipe in recipes:
        if recipe.pruning.pattern == "unstructured":
            continue
        network = recipe.model_dump_json(include={"model", "data", "pruning"})
        if network not in asked:
            asked.add(network)
            check_prunable(recipe, build_model(recipe, load_data(recipe)))
