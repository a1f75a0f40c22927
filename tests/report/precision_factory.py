"""Made-up studies of number formats with the shape of real ones. Never shipped, never quoted."""

from __future__ import annotations

import math

from trimtab.runs.recipe import Recipe
from trimtab.studies.precision.logistic import Descent
from trimtab.studies.precision.products import ProductError
from trimtab.studies.precision.records import (
    FormatRun,
    LayerShrinkage,
    PrecisionStudy,
    ShrinkageCurves,
)
from trimtab.studies.summary import Missing

LAYERS = ("first.weight", "middle.weight", "last.weight")


def curves(q: float, points: int = 6) -> ShrinkageCurves:
    """Every layer at `q`, the first a little below."""
    values: list[float | None] = [q] * points
    return ShrinkageCurves(
        steps=list(range(0, 10 * points, 10)),
        q=values,
        dead=[1 - q] * points,
        overflow=[0.0] * points,
        noise=[0.2] * points,
        layers=[
            LayerShrinkage(
                name=name, q=q - 0.01 * (place == 0), dead=1 - q, overflow=0.0,
                curve=[q - 0.01 * (place == 0), *values[1:-1], None],
            )
            for place, name in enumerate(LAYERS)
        ],
        q_min=q - 0.05,
        q_median=q,
        dead_median=1 - q,
        overflow_median=0.0,
        least_layer=LAYERS[0],
    )  # fmt: skip


def format_run(label: str, seed: int, accuracy: float | None, q: float | None = None) -> FormatRun:
    """A run; without an accuracy it diverged."""
    return FormatRun(
        label=label, seed=seed, folder=f"runs/{label}/seed{seed}", status="diverged" if accuracy is None else "finished",
        step_factor=2.0 if "step x2" in label else 1.0, train_loss=[2.0, 1.0 + 0.01 * seed],
        validation_accuracy=accuracy, validation_loss=None if accuracy is None else 1 - accuracy,
        test_accuracy=accuracy, test_loss=None if accuracy is None else 1.1 - accuracy,
        shrinkage=None if q is None else curves(q),
    )  # fmt: skip


def with_products() -> PrecisionStudy:
    """Four recipes of operands over two seeds, the first nearest to full precision."""
    study = precision_study()
    runs = [format_run("full", seed, 0.9) for seed in (0, 1)]
    for place, label in enumerate(("mxfp8", "nvfp4", "mxfp4", "fp8-tensor")):
        for seed in (0, 1):
            products = [
                ProductError(
                    kind=kind, layer=layer, q=0.98, scale_bias=0.001, dead_zone=0.002, grid_noise=0.003,
                    oscillating=0.1 if kind == "fprop weight" else None,
                    loss_gap=(0.01 if layer == "first" else 0.03) if kind == "fprop" else None,
                )
                for kind in ("fprop", "wgrad", "fprop weight")
                for layer in ("first", "last", "(global)")
            ]  # fmt: skip
            run = format_run(label, seed, 0.9 - 0.01 * place, 0.98)
            losses = [2.0, run.train_loss[-1] + 0.1 * (place + 1)]
            made = {"format": label, "errors": products, "early_gap": 0.01 * place, "early_error": 0.4 - 0.1 * place}
            runs.append(run.model_copy(update={**made, "train_loss": losses}))
    return study.model_copy(update={"runs": runs})


def descent(format: str, bound: bool = True) -> Descent:
    """A falling curve with prediction and, on request, bound."""
    steps = [1, 10, 100, 1000]
    gap = [0.5 * math.exp(-step / 100) + 0.01 for step in steps]
    return Descent(
        format=format, rounding="nearest", scaling="none", steps=steps, gap=gap, half=[0.001] * 4,
        prediction=[1.1 * value for value in gap] if bound else None, bound=[5 * value for value in gap] if bound else None,
        q=0.9 if bound else None, q_min=0.8 if bound else 0.0, dead=0.1, noise=1e-3, floor=0.01, floor_half=0.001,
        floor_predicted=0.011 if bound else None, floor_bound=0.05 if bound else None,
        why_no_bound="" if bound else "in some step every entry of the gradient became zero (q_min = 0)",
    )  # fmt: skip


def precision_study(evil: str = "") -> PrecisionStudy:
    """Eight labels over three seeds; e5m2 diverges, int4 once."""
    means = {
        "full": (0.9, None), "e4m3": (0.9, 0.99), "e2m1": (0.5, 0.3), "e2m1, mx": (0.89, 0.98),
        "e2m1, stochastic": (0.85, 0.95), "e2m1, compensated": (0.5, 0.3), "e2m1, step x2": (0.6, 0.3), "int4": (0.7, 0.5),
        "e5m2": (None, 0.2),
    }  # fmt: skip
    jitter = {label: (0.0, 0.001 * (place % 3), -0.001 * (place % 3)) for place, label in enumerate(means)}
    runs = [
        format_run(label, seed, None if mean is None or (label, seed) == ("int4", 2) else mean + jitter[label][seed], q)
        for label, (mean, q) in means.items()
        for seed in (0, 1, 2)
    ]
    return PrecisionStudy(
        name=f"demo: number formats (made up){evil}", headline="one < two", recipe=Recipe().model_dump(mode="json"),
        chance=0.1, runs=runs, logistic=[descent("full"), descent("e2m1"), descent("int4", bound=False)],
        missing=[Missing(method="int8", seed=1, folder="runs/int8/seed1", why="not started")],
    )  # fmt: skip
