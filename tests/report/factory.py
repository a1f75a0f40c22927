"""Made-up summaries with the shape of real ones. Never shipped, never quoted."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np

from trimtab.studies.gradients.dynamics import dynamics, without_curves
from trimtab.studies.summary import (
    Cost,
    Dynamics,
    Histogram,
    Latency,
    Row,
    Run,
    Storage,
    Summary,
)
from trimtab.studies.weights.headline import headline

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
METHODS = ("sgd", "var", "sam", "cram+")
# density at which half of the accuracy is gone as pruned, recalibrated; heaviness of the weights' tails; cost of a step
CHARACTER = {"sgd": (0.22, 0.040, 2.0, 1.0), "var": (0.11, 0.022, 0.8, 1.03), "sam": (0.17, 0.030, 1.8, 2.01)}
CHARACTER["cram+"] = (0.07, 0.015, 1.2, 2.3)
PARAMETERS = 77_000


def _accuracy(dense: float, chance: float, density: float, half: float) -> float:
    return chance + (dense - chance) / (1 + (half / density) ** 3)


def make_summary(
    methods: tuple[str, ...] = METHODS,
    seeds: tuple[int, ...] = (0, 1, 2),
    *,
    controls: bool = True,
    recalibrated: bool = True,
    extras: bool = True,
    metric: str = "accuracy",
    name: str = "demo: digits (made up)",
) -> Summary:
    """A study of `methods` x `seeds`; labels beyond the known ones get characters in turn."""
    noise = random.Random(0)
    chance = 0.1 if metric == "accuracy" else 0.0
    rows, runs, histograms, storage = [], [], [], []
    known = list(CHARACTER.values())
    for place, method in enumerate(methods):
        raw, again, tail, _ = CHARACTER.get(method, known[place % len(known)])
        for seed in seeds:
            shift = noise.gauss(0, 0.12)
            dense = 0.982 + noise.gauss(0, 0.003)
            pairs = [("magnitude", "global", 1.0)]
            if controls:
                pairs += [("random", "global", 6.0), ("magnitude", "layer", 1.5)]
            for score, scope, factor in pairs:
                for sparsity in (0.0, *SPARSITIES):
                    k = math.floor(sparsity * PARAMETERS + 0.5) / PARAMETERS
                    filed = sparsity > 0 and score == "magnitude" and scope == "global"
                    for state in (False, True) if recalibrated else (False,):
                        half = factor * (again if state else raw) * math.exp(shift)
                        accuracy = dense if sparsity == 0 else _accuracy(dense, chance, 1 - k, half)
                        rows.append(
                            Row(
                                method=method, seed=seed, sparsity=k, sparsity_total=0.99 * k, score=score, scope=scope,
                                recalibrated=state, accuracy=min(1.0, max(0.0, accuracy + noise.gauss(0, 0.004))),
                                iou=0.8 * accuracy if metric == "dice" else None, loss=3 * (1 - accuracy),
                                file_bytes=int(308_000 * (1 - k) * 1.15) + 4000 if filed else None,
                                dense_bytes=312_000 if filed else None,
                                multiply_adds_ratio=1 / (1 - 0.95 * k) if filed else None,
                            )
                        )  # fmt: skip
            runs.append(
                Run(
                    method=method, seed=seed, folder=f"{method}/seed{seed}", epochs=20, steps=440,
                    train_seconds=9.0 + 9 * (tail < 2), step_seconds=0.02, train_loss=0.03 + 0.01 * noise.random(),
                    validation_accuracy=dense,
                )
            )  # fmt: skip
            edges = [-4 + 8 * i / 81 for i in range(82)]
            middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
            weights = [math.exp(-((abs(x) / 0.9) ** tail)) for x in middles]
            counts = [int(PARAMETERS * w / sum(weights)) for w in weights]
            histograms.append(
                Histogram(
                    method=method, seed=seed, edges=edges, counts=counts, near_zero=0.08 + 0.1 * (2 - tail),
                    variance_of_magnitude=0.57 + 0.5 * (2 - tail) + noise.gauss(0, 0.02), root_mean_square=0.05,
                )
            )  # fmt: skip
        for sparsity in SPARSITIES:
            bound = int(308_000 * (1 - sparsity) * 1.1)
            storage.append(
                Storage(
                    method=method, sparsity=sparsity, sparse_bytes=int(bound * 1.05), dense_bytes=312_000,
                    gzip_bytes=int(bound * 1.4 + 8000), bound_bytes=bound,
                )
            )  # fmt: skip
    costs = [Cost(method=m, ratio=CHARACTER.get(m, known[1])[3], extra_state_ratio=1.0) for m in methods]
    latencies = []
    for batch, scale in ((1, 0.11), (64, 0.22)):
        for sparsity in (0.5, 0.8, 0.9, 0.95, 0.98):
            ratio = scale / (1 - sparsity) ** 0.95
            latencies.append(
                Latency(what="Linear 1024 to 1024", sparsity=sparsity, batch=batch, ratio=ratio, faster=ratio > 1)
            )
    return Summary(
        name=name, headline=headline(rows, metric, chance, methods[0]), created="2026-11-21T10:00:00+00:00", metric=metric,
        chance=chance,
        recipe={
            "name": "digits", "method": methods[0], "epochs": 20, "data": {"name": "digits", "batch_size": 64},
            "model": {"name": "digits_resnet", "arguments": {}},
            "pruning": {"sparsities": list(SPARSITIES), "score": "magnitude"},
        },
        versions={"python": "3.11.9", "trimtab": "0.1.0", "torch": "2.13.0"},
        hardware={"system": "Linux x86_64", "cores": 2, "threads": 1, "accelerator": None},
        runs=runs, rows=rows, histograms=histograms if extras else [], costs=costs if extras else [],
        latencies=latencies if extras else [], storage=storage if extras else [],
        notes=["Every network was pruned once, without retraining, and measured on the test split."],
    )  # fmt: skip


LAYERS = ("stem.weight", *(f"blocks.{i}.conv{j}.weight" for i in range(4) for j in (1, 2)), "head.weight")


def tracker_rows(
    seed: int = 0, steps: int = 300, kinds: tuple[str, ...] = ("gradients", "weights", "updates"), every: int = 2
) -> tuple[dict[str, np.ndarray], dict[str, list[object]]]:
    """Columns such as a tracker leaves, and its signals: layers fall at their own pace, one dies, two entries are NaN."""
    noise = np.random.default_rng(seed)
    rows: list[tuple[object, ...]] = []
    sizes = [27 * 4**i for i in range(len(LAYERS))]
    signals: dict[str, list[object]] = {"step": [], "name": [], "value": []}
    for step in range(0, steps * every, every):
        share = step / (steps * every)
        for kind in kinds:
            stds = []
            for place, size in enumerate(sizes):
                std = 10 ** (-2 - 0.2 * place - 1.5 * share + 0.1 * noise.standard_normal())
                std *= {"gradients": 1.0, "weights": 10.0, "updates": 0.01}[kind]
                dead = place == 4 and share > 0.4
                stds.append(0.0 if dead else std)
                nan = 2 if kind == "gradients" and place == 2 and step == 10 * every else 0
                value = float("nan") if nan else stds[-1]
                rows.append((step, LAYERS[place], kind, size, value, value * size**0.5, size if dead else 0, nan, 0))
            nan = 2 if kind == "gradients" and step == 10 * every else 0
            whole = float("nan") if nan else float(np.sqrt(np.dot(np.square(stds), sizes) / sum(sizes)))
            norm = whole * sum(sizes) ** 0.5
            rows.append((step, "(global)", kind, sum(sizes), whole, norm, 0, nan, 0))
        for name, value in (("alpha", 1 - 0.8 * share), ("sigma", 0.01)):
            signals["step"].append(step)
            signals["name"].append(name)
            signals["value"].append(value)
    names = ("step", "layer", "kind", "n", "std", "norm", "zeros", "nan", "inf")
    columns = {name: np.array([row[at] for row in rows], dtype=object) for at, name in enumerate(names)}
    return columns, signals


def make_dynamics(methods: tuple[str, ...], seeds: tuple[int, ...], **settings: object) -> list[Dynamics]:
    """Dynamics of `methods` x `seeds`, the layers' curves of each method's first seed."""
    found = []
    for place, method in enumerate(methods):
        for at, seed in enumerate(seeds):
            columns, signals = tracker_rows(seed=10 * place + seed, **settings)  # type: ignore[arg-type]
            one = dynamics(columns, signals, method=method, seed=seed)
            assert one is not None
            found.append(one if at == 0 else without_curves(one))
    return found
