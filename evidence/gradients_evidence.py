"""The figures of docs/evidence/gradients.md, from the run folders of its commands.

python evidence/gradients_evidence.py read STUDY    # STUDY as the page's commands leave it -> docs/evidence/gradients.json
python evidence/gradients_evidence.py tables        # the JSON file's figures into the page
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from evidence_page import fill, spread, table
from scipy.stats import spearmanr

from trimtab.files import write_text
from trimtab.observe import read_table
from trimtab.runs.recipe import Recipe, load_recipe
from trimtab.studies.statistics import Estimate, estimate

FOLDER = Path(__file__).parent.parent / "docs" / "evidence"
PAGE, FIGURES = FOLDER / "gradients.md", FOLDER / "gradients.json"
OPTIMIZERS = ("sgd", "adamw")
RULES = ("running_max", "first", "ema", "log")
TRANSFORMS = ("none", "centralize", "zscore", "adaptive_clip", "clip_norm", *(f"autoscale, {rule}" for rule in RULES))
SMOOTHED = (
    10  # a layer's log10 standard deviation is smoothed over a tenth of the steps before its fluctuation is taken
)


def transform_of(recipe: Recipe) -> str:
    """Name of what the recipe does to gradients."""
    if recipe.clip_norm is not None:
        return "clip_norm"
    name = "+".join(recipe.transforms) or "none"
    return f"autoscale, {recipe.autoscale.scale}" if name == "autoscale" else name


def runs(*folders: Path) -> Iterator[tuple[Path, Recipe, dict[str, Any]]]:
    """Finished runs below the folders with their recipes and their run.json."""
    for folder in folders:
        for file in sorted(folder.rglob("run.json")):
            state = json.loads(file.read_text(encoding="utf-8"))
            yield file.parent, load_recipe(str(file.parent / "recipe.yaml")), state


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def tuning(study: Path) -> list[dict[str, Any]]:
    """Validation accuracy after the last epoch of every run of `trimtab tune`; None where the loss was not finite."""
    found = []
    for optimizer in OPTIMIZERS:
        for folder, recipe, state in runs(*sorted(study.glob(f"tune-{optimizer}*"))):
            scores = [
                line["validation_accuracy"] for line in lines(folder / "metrics.jsonl") if "validation_accuracy" in line
            ]
            found.append(
                {
                    "optimizer": optimizer,
                    "transform": transform_of(recipe),
                    "lr": getattr(recipe, optimizer).lr,
                    "seed": recipe.seed,
                    "validation_accuracy": scores[-1] if state["status"] == "finished" else None,
                }
            )
    return found


def accuracy(study: Path) -> list[dict[str, Any]]:
    """Test accuracy of the dense networks of `trimtab compare`."""
    found = []
    for optimizer in OPTIMIZERS:
        for folder, recipe, _ in runs(study / optimizer, study / f"{optimizer}-clip"):
            file = folder / "pruning-test.json"
            if not file.is_file():  # stopped before its test
                continue
            measured = json.loads(file.read_text(encoding="utf-8"))["rows"]
            dense = next(row for row in measured if row["sparsity"] == 0 and not row["recalibrated"])
            found.append(
                {
                    "optimizer": optimizer,
                    "transform": transform_of(recipe),
                    "lr": getattr(recipe, optimizer).lr,
                    "seed": recipe.seed,
                    "validation_accuracy": lines(folder / "metrics.jsonl")[-1]["validation_accuracy"],
                    "test_accuracy": dense["accuracy"],
                    "test_loss": dense["loss"],
                }
            )
    return found


def tracked(study: Path) -> list[dict[str, Any]]:
    """What the tracker's rows say about the claims, for every tracked run."""
    found = []
    for folder, recipe, state in runs(study / "track"):
        if state["status"] == "finished":
            rows = read_table(folder / "gradients.parquet").to_pandas()
            own = {"run": folder.parent.name, "model": recipe.model.name, "seed": recipe.seed}
            found.append(own | dynamics(rows) | {"last_epoch": lines(folder / "metrics.jsonl")[-1]})
    return found


def dynamics(rows: pd.DataFrame) -> dict[str, Any]:
    """Claims 1 to 3 in numbers, from the standard deviations of one run's gradients by step and layer."""
    gradients = rows[rows["kind"] == "gradients"]
    by_layer = gradients.pivot_table(index="step", columns="layer", values="std", sort=False)
    whole = by_layer.pop("(global)")
    tenth = max(1, len(by_layer) // 10)
    middle = by_layer.median()
    early, late = by_layer.iloc[:tenth].median(), by_layer.iloc[-tenth:].median()
    swing = [fluctuation(np.log10(by_layer[name].to_numpy())) for name in by_layer]
    third = len(swing) // 3
    parts = (swing[:third], swing[third : len(swing) - third], swing[len(swing) - third :])
    return {
        "steps": int(by_layer.index.max()),
        "logged": len(by_layer),
        "layers": by_layer.shape[1],
        "ratio_of_layers": float((by_layer.max(axis="columns") / by_layer.min(axis="columns")).median()),
        "lowest": str(middle.idxmin()),
        "highest": str(middle.idxmax()),
        "fluctuation": [float(np.median(part)) for part in parts],
        "global_early": float(whole.iloc[:tenth].median()),
        "global_late": float(whole.iloc[-tenth:].median()),
        "rank_correlation": float(spearmanr(whole.index, whole).statistic),
        "amplification_lowest": float(middle.median() / middle.min()),
        "factor_lowest": float(1 / middle.min()),
        "factor_highest": float(1 / middle.max()),
        "growth_median": float((early / late).median()),
        "growth_largest": float((early / late).max()),
        "global_curve": [[int(step), float(value)] for step, value in whole.iloc[:: max(1, len(whole) // 40)].items()],
        "layers_early_late": {str(name): [float(early[name]), float(late[name])] for name in by_layer},
    }


def fluctuation(log_std: np.ndarray) -> float:
    """Standard deviation over time of log10 std, smoothed over a tenth of the steps."""
    window = max(3, len(log_std) // SMOOTHED)
    finite = log_std[np.isfinite(log_std)]
    return float(np.convolve(finite, np.ones(window) / window, mode="valid").std())


def accuracy_table(rows: Sequence[Mapping[str, Any]]) -> str:
    plain = {row["seed"]: row["test_accuracy"] for row in rows if row["transform"] == "none"}
    cells = []
    for transform in TRANSFORMS:
        own = [row for row in rows if row["transform"] == transform]
        if not own:
            continue
        pairs = [row["test_accuracy"] - plain[row["seed"]] for row in own if row["seed"] in plain]
        over = "" if transform == "none" or not pairs else spread(estimate(pairs), 100, 1, signed=True)
        mean = estimate(row["test_accuracy"] for row in own)
        loss = estimate(row["test_loss"] for row in own)
        cells.append([transform, f"{own[0]['lr']:g}", spread(mean, 100, 1), over, spread(loss, digits=3), str(mean.n)])
    return table(["transform", "learning rate", "test accuracy, %", "minus none, points", "test loss", "seeds"], cells)


def rules_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every rule of Autoscale against the mean of the others on the validation split, paired by seed, for each optimizer."""
    scores = {(row["optimizer"], row["transform"], row["seed"]): float(row["validation_accuracy"]) for row in rows}
    gaps: dict[tuple[str, str], list[float]] = {}
    for optimizer, seed in dict.fromkeys((one, number) for one, _, number in scores):
        found = {rule: scores.get((optimizer, f"autoscale, {rule}", seed)) for rule in RULES}
        kept = {rule: score for rule, score in found.items() if score is not None}
        for rule, score in kept.items() if len(kept) == len(RULES) else ():
            others = [other for name, other in kept.items() if name != rule]
            for group in (optimizer, "both"):
                gaps.setdefault((rule, group), []).append(score - float(np.mean(others)))
    groups = (*OPTIMIZERS, "both")
    return table(
        ["rule, minus the mean of the other three, points", *groups],
        [
            [rule, *(spread(_estimate(gaps.get((rule, group), [])), 100, 1, signed=True) for group in groups)]
            for rule in RULES
        ],
    )


def _estimate(values: Sequence[float]) -> Estimate | None:
    return estimate(values) if values else None


def tuning_table(rows: Sequence[Mapping[str, Any]]) -> str:
    rates = sorted({row["lr"] for row in rows})
    cells = []
    for transform in TRANSFORMS:
        own = {row["lr"]: row["validation_accuracy"] for row in rows if row["transform"] == transform}
        if own:
            best = max((score for score in own.values() if score is not None), default=None)
            cells.append([transform, *(_score(own.get(rate, ""), best) for rate in rates)])
    return table(["validation accuracy, %", *(f"{rate:g}" for rate in rates)], cells)


def _score(score: float | str | None, best: float | None) -> str:
    if isinstance(score, str):
        return score
    if score is None:
        return "failed"
    return f"**{100 * score:.1f}**" if score == best else f"{100 * score:.1f}"


def claims_table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns: list[tuple[str, Callable[[Mapping[str, Any]], float], int]] = [
        ("validation accuracy, %", lambda row: 100 * row["last_epoch"]["validation_accuracy"], 1),
        ("highest / lowest std of a step", lambda row: row["ratio_of_layers"], 1),
        ("fluctuation, first third of the layers", lambda row: row["fluctuation"][0], 2),
        ("middle third", lambda row: row["fluctuation"][1], 2),
        ("last third", lambda row: row["fluctuation"][2], 2),
        ("global std, last / first tenth", lambda row: row["global_late"] / row["global_early"], 2),
        ("rank correlation with time", lambda row: row["rank_correlation"], 2),
        ("ZScore's factor, lowest layer", lambda row: row["factor_lowest"], 0),
        ("highest layer", lambda row: row["factor_highest"], 0),
        ("lowest over median layer", lambda row: row["amplification_lowest"], 1),
    ]
    cells = []
    for name in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == name]
        values = [spread(estimate(value(row) for row in own), digits=digits) for _, value, digits in columns]
        first = own[0]
        cells.append(
            [name, f"{len(own)}", f"{first['layers']}", f"{first['steps']}", *values, first["lowest"], first["highest"]]
        )
    head = ["network", "seeds", "layers", "steps", *(words for words, _, _ in columns), "lowest layer", "highest layer"]
    return table(head, cells)


def main() -> None:
    match sys.argv[1:]:
        case ["read", folder]:
            study = Path(folder)
            found = {"tuning": tuning(study), "accuracy": accuracy(study), "tracked": tracked(study)}
            write_text(FIGURES, json.dumps(found, indent=1) + "\n")
            print({name: len(rows) for name, rows in found.items()})
        case ["tables"]:
            found = json.loads(FIGURES.read_text(encoding="utf-8"))
            blocks = {"claims": claims_table(found["tracked"]), "rules": rules_table(found["accuracy"])}
            for one in OPTIMIZERS:
                blocks[f"accuracy {one}"] = accuracy_table(
                    [row for row in found["accuracy"] if row["optimizer"] == one]
                )
                blocks[f"tuning {one}"] = tuning_table([row for row in found["tuning"] if row["optimizer"] == one])
            fill(PAGE, blocks)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
