"""Training that goes on after pruning, with the removed weights kept at zero: what one-shot pruning is compared with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from trimtab.levers import attach
from trimtab.parameters.wrappers import unwrapped
from trimtab.pruning import KeepMasks
from trimtab.runs.position import Progress
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train
from trimtab.runs.training_run import TrainingRun

FOLDER = "finetuned"
"""Folder of a run's fine-tuned networks, each a run folder of its own."""


def plain(recipe: Recipe) -> Recipe:
    """The recipe with its base optimizer alone: no lever, no transform, nothing tracked."""
    return recipe.with_settings({"method": recipe.base_name, "transforms": (), "track": ()})


def fine_tuning_recipe(recipe: Recipe) -> Recipe:
    """How a pruned network of `recipe` is trained on: `pruning.finetune` epochs of the base optimizer.

    The learning rate starts at `pruning.finetune_rate` of the recipe's and falls by a cosine to zero [ours]; decay, momentum,
    batches and augmentation are the recipe's. Levers do not act: every method is fine-tuned alike. Groups of parameters whose
    epochs were over stay as they are.

    Example:
        >>> found = fine_tuning_recipe(Recipe(method="var+sam", pruning={"finetune": 3}))
        >>> found.method, found.epochs, found.schedule.name
        ('sgd', 3, 'cosine')
    """
    groups = {
        name: group.model_dump() | ({"lr_factor": 0, "decay_factor": 0, "epochs": None} if group.epochs else {})
        for name, group in recipe.groups.items()
    }
    return plain(recipe).with_settings(
        {
            "epochs": recipe.pruning.finetune,
            "schedule": {"name": "cosine"},
            "groups": groups,
            "validate_every": recipe.pruning.finetune,
            "checkpoint_every": 1,
        }
    )


def fine_tune(
    run: RunFolder,
    recipe: Recipe,
    pruned: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    report: Callable[[str], None],
) -> RunFolder:
    """Train a pruned network on, in a run folder of its own under the run's; done once, and resumed where it was stopped.

    After every step the removed weights are zero again, whatever momentum and decay say.

    Args:
        run: where the dense network comes from.
        recipe: the run's, with the pruning section that says how long.
        pruned: the state dict to start from.
        masks: True where a weight stays, by name; none for the dense network.
        report: called with a short text while it trains.

    Raises:
        FloatingPointError: the loss is not finite.
        KeyboardInterrupt: stopped; a checkpoint was written.
    """
    rate = recipe.pruning.finetune_rate

    def prepare(made: TrainingRun) -> None:
        unwrapped(made.model).load_state_dict(dict(pruned))
        for group in made.steering.base.param_groups:
            group["lr"] *= rate
        if masks:
            attach(made.steering.optimizer, KeepMasks(masks), model=unwrapped(made.model))

    said = ""

    def progress(now: Progress) -> None:
        nonlocal said
        text = f"fine-tuning epoch {min(now.epoch + 1, now.epochs)}/{now.epochs}"
        if text != said:
            said = text
            report(text)

    tuned = train(fine_tuning_recipe(recipe), run.path / FOLDER / _key(pruned, rate), progress, prepare=prepare)
    tuned.checkpoint_file.unlink(missing_ok=True)
    return tuned


def _key(pruned: Mapping[str, Tensor], rate: float) -> str:
    """Names the network that is trained on, and at what rate."""
    digest = hashlib.sha256(json.dumps([sorted(pruned), rate]).encode())
    for name in sorted(pruned):
        digest.update(pruned[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def is_fine_tuned(folder: Path) -> bool:
    """Whether a run folder is of a network that was pruned and trained on."""
    return folder.parent.name == FOLDER
