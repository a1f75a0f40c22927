"""How well a finished run's network does on the test split, computed in the numbers that it was trained in."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch

from trimtab import levers
from trimtab.files import write_text
from trimtab.inputs import named, read_json_mapping
from trimtab.precision import LowPrecision
from trimtab.runs.evaluation import evaluate
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.precision_section import Precision, build_precision
from trimtab.runs.run_folder import RunFolder


def quality_on_test(folder: RunFolder) -> dict[str, float]:
    """Accuracy and loss of a finished run's network on the test split, measured once and kept in the run folder.

    The network is what the run left: rounded weights where the run rounded weights, and layer outputs and operands are
    rounded where it rounded them, under delayed scaling by the magnitudes that the run remembers in its checkpoint.

    Raises:
        ValueError: the run is not finished, or the kept file is damaged.
    """
    file = folder.path / "quality-test.json"
    if file.is_file():
        with named(file, "is damaged; delete it to measure again"):
            kept = read_json_mapping(file)
            return {name: float(kept[name]) for name in ("accuracy", "loss")}
    recipe = folder.recipe
    data = load_data(recipe)
    model = trained_model(folder, data)
    outputs = Precision.model_validate(
        recipe.precision.model_dump() | {"gradients": None, "weights": None, "momentum": None, "compensate": "none"}
        | {"activation_gradients": None, "before_reduce": False, "matmul": _matmul_at_the_end(recipe.precision)}
    )  # fmt: skip
    never_steps = torch.optim.SGD(model.parameters(), lr=0.0)
    rounding = build_precision(outputs, recipe.seed, None)
    _remember(rounding, folder)
    with levers.attach(never_steps, *rounding, model=model):
        quality = evaluate(model, batches_of(recipe, data, "test"), data.num_classes)
    found = {"accuracy": quality.accuracy, "loss": quality.loss}
    write_text(file, json.dumps(found) + "\n")
    return found


def _remember(rounding: Sequence[object], folder: RunFolder) -> None:
    """Give delayed scaling the history that the run ended with, where its checkpoint is still there."""
    delayed = [
        lever.operands
        for lever in rounding
        if isinstance(lever, LowPrecision) and lever.operands is not None and lever.operands.delayed.delays
    ]
    if delayed and (state := folder.load_checkpoint()) is not None:
        kept = [item["state"] for item in state["levers"]["levers"] if item["type"] == LowPrecision.__name__]
        for operands, own in zip(delayed, kept, strict=True):
            operands.load_state_dict(own["operands"])


def _matmul_at_the_end(section: Precision) -> str | None:
    return section.matmul if section.matmul_until == 1 else None
