"""Four claims that small runs can judge: Newton's method of GradNormSmooth, DAL, routing by label, muP.

python evidence/small_levers_evidence.py             # all of it -> docs/evidence/small-levers.json (some minutes)
python evidence/small_levers_evidence.py tables      # the JSON file's figures into the page
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from evidence_page import fill, mean_and_range, table
from torch import Tensor, nn

import trimtab
from trimtab.files import write_text
from trimtab.gradients import RouteByLabel, forget_units
from trimtab.optimizers import DriftLearningRate, GradNormSmooth, mup_groups, mup_scale_

FIGURES = Path(__file__).parent.parent / "docs" / "evidence" / "small-levers.json"
SEEDS = (0, 1, 2)
RATES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
WIDTHS, WIDE_RATES, BASE = (64, 256, 1024), [1e-3 * 2.0**k for k in range(-2, 6)], 64


def data(name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """A data set of scikit-learn, standardised."""
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    inputs = torch.tensor(found.data, dtype=dtype)
    return (inputs - inputs.mean(0)) / inputs.std(0).clamp(min=1e-6), torch.tensor(found.target)


# Newton's method


def iterations(problem: str, method: str) -> dict[str, Any]:
    """Steps until the gradient's norm is below 1e-8; None where that takes more than 20,000."""
    inputs, labels = data("breast_cancer" if problem == "breast cancer" else "digits", torch.float64)
    classes = int(labels.max()) + 1
    net = nn.Linear(inputs.shape[1], 1 if classes == 2 else classes).double()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)

    def loss() -> Tensor:
        outputs = net(inputs)
        if classes == 2:
            found = nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], labels.double())
        else:
            found = nn.functional.cross_entropy(outputs, labels)
        return found + 5e-4 * sum(parameter.square().sum() for parameter in net.parameters())

    def norm() -> float:
        gradients = torch.autograd.grad(loss(), list(net.parameters()))
        return float(torch.cat([one.flatten() for one in gradients]).norm())

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    if method == "GradNormSmooth":
        optimizer: Any = GradNormSmooth(net.parameters())
        step: Callable[[], Any] = lambda: optimizer.step(loss)  # noqa: E731
    elif method == "LBFGS":
        optimizer = torch.optim.LBFGS(
            net.parameters(), max_iter=1, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0
        )
        step = lambda: optimizer.step(closure)  # noqa: E731
    else:
        curvature = float(torch.linalg.matrix_norm(inputs, 2)) ** 2 / len(inputs)
        optimizer = torch.optim.SGD(net.parameters(), lr=1 / (curvature * (0.25 if classes == 2 else 0.5) + 1.3))
        step = lambda: optimizer.step(closure)  # noqa: E731
    most, done = 20_000 if problem == "breast cancer" or method != "gradient descent" else 5_000, None
    for at in range(1, most + 1):
        step()
        if (method != "gradient descent" or at % 100 == 0) and norm() < 1e-8:
            done = at
            break
        if method == "LBFGS" and at >= 2_000:
            break
    return {"problem": problem, "method": method, "steps": done, "tried": at, "norm": norm()}


# DAL


def descent(how: str, value: float) -> dict[str, Any]:
    """Loss after 300 steps of full-batch descent, of SGD at a rate or of DAL at a power."""
    torch.manual_seed(0)
    inputs, labels = data("digits")
    net = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    base = torch.optim.SGD(net.parameters(), lr=value if how == "SGD" else 1.0)
    optimizer = base if how == "SGD" else DriftLearningRate(base, power=value, model=net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        return loss

    for _ in range(300):
        optimizer.step(closure)
    rate = optimizer.rate if isinstance(optimizer, DriftLearningRate) else value
    return {"how": how, "value": value, "loss": closure().item(), "rate": rate}


# Routing


def routing(how: str, seed: int) -> dict[str, Any]:
    """Accuracy on digits 0 to 4 (retain) and 5 to 9 (forget) before and after the forget part is cut out."""
    torch.manual_seed(seed)
    inputs, labels = data("digits")
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    train, test = order[:1300], order[1300:]
    known = torch.rand(len(train), generator=torch.Generator().manual_seed(seed)) < 0.9
    late = labels[train] >= 5
    pools = {"forget": train[known & late], "retain": train[known & ~late], None: train[~known]}
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer, draws = torch.optim.AdamW(net.parameters(), lr=2e-3), torch.Generator().manual_seed(seed)
    route = RouteByLabel(forget_units(net, "0", "2", 0.5), mode="freeze" if how == "routed, freeze" else "gradient")
    if how.startswith("routed"):
        trimtab.attach(optimizer, route, model=net)
    for step in range(800):
        label = (None if step % 10 == 9 else "forget" if step % 2 else "retain")  # fmt: skip
        if how == "filtered" and label == "forget":
            continue
        pool = pools[label]  # type: ignore[index]
        batch = pool[torch.randint(0, len(pool), (64,), generator=draws)]
        optimizer.zero_grad()
        with route.batch(label):  # type: ignore[arg-type]
            nn.functional.cross_entropy(net(inputs[batch]), labels[batch]).backward()
            optimizer.step()

    def accuracies() -> list[float]:
        with torch.no_grad():
            right = net(inputs[test]).argmax(1) == labels[test]
        return [float(right[mask].float().mean()) for mask in (labels[test] < 5, labels[test] >= 5)]

    before = accuracies()
    if how != "filtered":
        route.ablate(net)
    return {"how": how, "seed": seed, "before": before, "after": accuracies()}


# muP


def width_sweep(width: int, rate: float, *, muP: bool, seed: int = 0) -> float:
    """Mean training loss of the last 20 of 120 steps of Adam."""
    torch.manual_seed(seed)

    def network(width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))

    net, base = network(width), network(BASE)
    if muP:
        mup_scale_(net, base)
    optimizer = torch.optim.Adam(mup_groups(net, base, rate) if muP else net.parameters(), lr=rate)
    inputs, labels = data("digits")
    draws, losses = torch.Generator().manual_seed(seed), []
    for _ in range(120):
        batch = torch.randint(0, len(labels), (64,), generator=draws)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(inputs[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return statistics.mean(losses[-20:])


def width_sweeps(seed: int) -> list[dict[str, Any]]:
    """Both parametrizations at every width and rate."""
    return [
        {
            "width": width,
            "muP": muP,
            "seed": seed,
            "losses": {f"{rate:g}": width_sweep(width, rate, muP=muP, seed=seed) for rate in WIDE_RATES},
        }
        for muP in (False, True)
        for width in WIDTHS
    ]


def measure() -> dict[str, Any]:
    """All of it."""
    methods = ("GradNormSmooth", "LBFGS", "gradient descent")
    return {
        "newton": [iterations(problem, method) for problem in ("breast cancer", "digits") for method in methods],
        "drift": [*(descent("SGD", rate) for rate in RATES), *(descent("DAL", power) for power in (0.5, 1.0))],
        "routing": [routing(how, seed) for how in ("routed", "routed, freeze", "plain", "filtered") for seed in SEEDS],
        "mup": [one for seed in SEEDS for one in width_sweeps(seed)],
    }


def tables(found: dict[str, Any]) -> dict[str, str]:
    """The page's blocks."""
    newton = [
        [
            one["problem"],
            one["method"],
            str(one["steps"]) if one["steps"] else f"more than {one['tried']:,}",
            f"{one['norm']:.1e}",
        ]
        for one in found["newton"]
    ]
    drift = [[one["how"], f"{one['value']:g}", f"{one['loss']:.4f}", f"{one['rate']:.3g}"] for one in found["drift"]]
    routed = []
    for how in dict.fromkeys(one["how"] for one in found["routing"]):
        own = [one for one in found["routing"] if one["how"] == how]
        cells = [mean_and_range([one[when][which] for one in own]) for when in ("before", "after") for which in (0, 1)]
        routed.append([how, *cells])
    rates = [f"{rate:g}" for rate in WIDE_RATES]
    mup = []
    for muP, width in dict.fromkeys((one["muP"], one["width"]) for one in found["mup"]):
        own = [one["losses"] for one in found["mup"] if (one["muP"], one["width"]) == (muP, width)]
        means = {rate: statistics.mean(losses[rate] for losses in own) for rate in rates}
        best = min(means, key=means.__getitem__)
        cells = [f"**{means[rate]:.3f}**" if rate == best else f"{means[rate]:.3f}" for rate in rates]
        of_each = ", ".join(min(losses, key=losses.__getitem__) for losses in own)
        mup.append(["muP" if muP else "standard", str(width), *cells, of_each])
    return {
        "newton": table(["problem", "method", "steps", "norm of the gradient at the end"], newton),
        "drift": table(["method", "rate or power", "loss after 300 steps", "last rate"], drift),
        "routing": table(["training", "retain, %", "forget, %", "retain, cut, %", "forget, cut, %"], routed),
        "mup": table(["parametrization", "width", *rates, "best of each seed"], mup),
    }


def main() -> None:
    """Measure, or write the page's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("measure", "tables"), default="measure")
    if parser.parse_args().what == "measure":
        torch.set_num_threads(1)
        started = time.process_time()
        found = measure()
        found |= {"torch": torch.__version__, "process_seconds": round(time.process_time() - started, 1)}
        write_text(FIGURES, json.dumps(found, indent=1) + "\n")
    fill(FIGURES.with_suffix(".md"), tables(json.loads(FIGURES.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
