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
from trimtab.medclm.evaluation.looking import verdict
from trimtab.medclm.training.options import TrainOptions

EPOCHS, STEPS, QUESTIONS = 60, 240, 300
"""Of the tower, of the model, and asked: so that the whole takes less than three minutes on two cores."""


def train_and_evaluate(data: Path, out: Path, seed: int, output: Output) -> None:
    """A run in OUT/run and its report, quick rather than good; says whether the model looks.

    All rows want the answer alone: that takes a third of the tokens, and reasoning takes more steps than there is time for.

    Args:
        data: the built set.
        out: folder of the demo.
        seed: of weights and order.
        output: how much is printed.
    """
    options = TrainOptions(steps=STEPS, epochs=20, seed=seed, save_every=STEPS // 2, pretrain=EPOCHS, plain=1.0)
    if not output.silent:
        console.print(f"teaching tiny-llava's vision tower for {EPOCHS} epochs, then all of it for {STEPS} steps ...")
    train_with_levers(TrainArguments(data, out / "run", options, output=Output(quiet=output.silent, json=output.json)))
    given = EvaluateArguments(out / "run", limit=QUESTIONS, answer_only=True, output=Output(quiet=output.silent))
    asked, training = questions(given, data)
    _, found, page = measure(given, data, out / "run", asked, training)
    if not output.json:
        console.print(results_table(found.summary))
        console.print(verdict(found.summary), highlight=False)
        console.print(f"report: {page} (open it in a browser)", soft_wrap=True)
