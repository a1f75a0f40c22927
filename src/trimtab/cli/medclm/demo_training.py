"""The second half of `trimtab medclm demo`: train tiny-llava on the demo's set, evaluate it, write the report."""

from __future__ import annotations

from pathlib import Path

from trimtab.cli.arguments import Output
from trimtab.cli.console import console
from trimtab.cli.medclm.evaluate import (
    EvaluateArguments,
    measure,
    questions,
    results_table,
)
from trimtab.cli.medclm.train import TrainArguments, train_with_levers
from trimtab.medclm.training.options import TrainOptions

STEPS, QUESTIONS = 360, 96
"""So that the whole takes about two minutes on two cores."""


def train_and_evaluate(data: Path, out: Path, seed: int, output: Output) -> None:
    """A run in OUT/run and its report, quick rather than good.

    Args:
        data: the built set.
        out: folder of the demo.
        seed: of weights and order.
        output: how much is printed.
    """
    options = TrainOptions(steps=STEPS, epochs=20, batch=8, lr=2e-3, seed=seed, save_every=STEPS // 2)
    if not output.silent:
        console.print(f"training tiny-llava for {STEPS} steps, from easy to hard ...")
    train_with_levers(TrainArguments(data, out / "run", options, output=Output(quiet=output.silent, json=output.json)))
    given = EvaluateArguments(out / "run", limit=QUESTIONS, output=Output(quiet=output.silent))
    asked, training = questions(given, data)
    _, found, page = measure(given, data, out / "run", asked, training)
    if not output.json:
        console.print(results_table(found.summary))
        console.print(f"report: {page} (open it in a browser)", soft_wrap=True)
