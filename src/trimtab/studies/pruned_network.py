"""A finished run's network, pruned once as its recipe says: what is exported and shared."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from trimtab import datasets, pruning
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.pruning_score import pruning_choice


@dataclass(frozen=True)
class PrunedNetwork:
    """The network, the fraction of its prunable weights that is zero, and the run's data."""

    model: nn.Module
    sparsity: float
    data: datasets.DataSet


def pruned_network(
    folder: RunFolder, sparsity: float | None, *, recalibrate: bool = True, root: str | None = None
) -> PrunedNetwork:
    """Prune a copy of the run's network by its recipe's score, scope and pattern; the run is not changed.

    Args:
        folder: a finished run.
        sparsity: fraction of the prunable weights to remove; 0 leaves the network dense. Default 0.9 [ours], or what an N:M
            pattern fixes.
        recalibrate: re-estimate BatchNorm statistics on training images afterwards.
        root: where the data lie, if not where the recipe says.

    Raises:
        ValueError: the run is not finished, or the sparsity is not in [0, 1).
    """
    if sparsity is not None and not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
    recipe = folder.recipe
    if root is not None:
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": root})})
    data = load_data(recipe)
    model = trained_model(folder, data)
    section = recipe.pruning
    wanted = 0.9 if sparsity is None and section.pattern == "unstructured" else sparsity
    if wanted == 0:
        return PrunedNetwork(model, 0.0, data)
    reached = pruning.one_shot(model, wanted, **pruning_choice(recipe, data)).sparsity
    if recalibrate:
        pruning.recalibrate(model, batches_of(recipe, data, "train").sample(section.recalibrate_batches, recipe.seed))
    return PrunedNetwork(model, reached, data)
