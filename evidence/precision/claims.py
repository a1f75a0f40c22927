"""Two more small questions (plan: README.md): does `mu acts as mu q` hold for operands under SGD; MeZO on floats beside QZO.

python evidence/precision/claims.py sgd SEED       # digits: backward products in few bits; steps mu, mu q, mu / q
python evidence/precision/claims.py mezo SEED      # from the same int2 numbers: QZO on scales, MeZO on all weights as floats
python evidence/precision/claims.py mezo-rate      # how the rate of MeZO was chosen: validation rows, seed 9

The first two add their numbers to docs/evidence/precision-small.json.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from evidence_page import spread, table
from state_and_codes import FORMATS, QZO_BATCH, QZO_STEPS, accuracy, digits, keep, mended
from torch import Tensor, nn
from torch.nn import functional as F

import trimtab
from trimtab.precision import (
    MX,
    LowPrecision,
    Operand,
    PerChannel,
    Product,
    QuantizedZeroOrder,
    Recipe,
    quantize,
    recipe_named,
)  # fmt: skip
from trimtab.studies.statistics import estimate

RATE, STEPS, BATCH, EVERY = 0.1, 300, 64, 10
MEZO_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
MEZO_RATE = 3e-4
"""What `mezo-rate` chose."""


def backward_of(name: str) -> Recipe:
    """The recipe's products of gradients, in all layers; the forward pass stays in full precision."""
    return recipe_named(f"{name}-all-layers").replace(name=f"{name}, backward", fprop=Product())


_CUT = Operand("e2m1", MX(), "toward_zero")
RECIPES = {
    "mxfp4": backward_of("mxfp4"),
    "mxfp4, toward zero": Recipe("mxfp4 toward zero, backward", dgrad=(_CUT, _CUT), wgrad=(_CUT, _CUT)),
    "mxfp4-unbiased": backward_of("mxfp4-unbiased"),
    "nvfp4": backward_of("nvfp4"),
}


def gradient_of(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """All weights' gradients in one line; those that stand are let go."""
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.ndim > 1 and p.grad is not None]).double()


def descend(
    start: nn.Module, train: tuple[Tensor, Tensor], seed: int, rate: float, recipe: Recipe | None = None
) -> tuple[float, float, float]:
    """SGD from `start`: loss on all rows in full precision at the end, and medians of q and noise of whole gradients."""
    net = copy.deepcopy(start)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    lever = None if recipe is None else LowPrecision(matmul=recipe, seed=seed)
    handle = None if lever is None else trimtab.attach(optimizer, lever, model=net)
    generator, shares, noises = torch.Generator().manual_seed(seed), [], []
    for step in range(STEPS):
        at = torch.randint(len(train[0]), (BATCH,), generator=generator)
        x, y = train[0][at], train[1][at]
        if lever is not None and step % EVERY == 0:
            with lever.full_precision():
                exact = gradient_of(net, x, y)
        found = gradient_of(net, x, y)
        if lever is not None and step % EVERY == 0:
            q = float(found @ exact / exact.square().sum())
            shares.append(q)
            noises.append(float((found - q * exact).norm() / exact.norm()))
        optimizer.step()
    if handle is not None:
        handle.remove()
    with torch.no_grad():
        loss = float(F.cross_entropy(net(train[0]), train[1]))
    return loss, *(statistics.median(each) if each else float(name) for name, each in ((1, shares), (0, noises)))


def sgd(seed: int) -> list[dict[str, object]]:
    """Each recipe at the step mu and at mu / q, and full precision at mu and at mu q, on the same batches."""
    _, parts = digits(seed)
    torch.manual_seed(seed)
    start = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    train = parts["train"]
    full, *_ = descend(start, train, seed, RATE)
    rows: list[dict[str, object]] = []
    for label, recipe in RECIPES.items():
        loss, q, noise = descend(start, train, seed, RATE, recipe)
        shorter, *_ = descend(start, train, seed, RATE * q)
        longer, *_ = descend(start, train, seed, RATE / q, recipe)
        rows.append(
            {"label": label, "seed": seed, "q": q, "noise": noise, "full": full, "rounded": loss, "shorter": shorter,
             "longer": longer}
        )  # fmt: skip
    return rows


def as_floats(net: nn.Module) -> nn.Module:
    """The network with weights that are the numbers of int2 codes, kept as floats."""
    floats = copy.deepcopy(net)
    with torch.no_grad():
        for layer in floats.children():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(quantize(layer.weight, "int2", scaling=PerChannel()))
    return floats


def by_mezo(net: nn.Module, train: tuple[Tensor, Tensor], rate: float, seed: int) -> nn.Module:
    """As many steps of MeZO, on the same rows as QZO's, on all weights and biases."""
    moved = copy.deepcopy(net)
    optimizer = QuantizedZeroOrder(moved, lr=rate, clip=1e9, seed=seed, unquantized="mezo")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(QZO_STEPS):
        at = torch.randint(len(train[0]), (QZO_BATCH,), generator=generator)
        x, y = train[0][at], train[1][at]
        optimizer.step(lambda x=x, y=y: F.cross_entropy(moved(x), y))  # type: ignore[misc]
    return moved


def mezo(seed: int) -> list[dict[str, object]]:
    """Accuracy on the test rows from the same numbers, and bytes of what the weights are kept in."""
    net, parts = digits(seed)
    coded, scaled = mended(net, parts["train"], "int2", FORMATS["int2"], seed)
    floats = as_floats(net)
    moved = by_mezo(floats, parts["train"], MEZO_RATE, seed)
    found = {"coded": coded, "floats": floats, "qzo": scaled, "mezo": moved}
    weights = [layer.weight for layer in net.children() if isinstance(layer, nn.Linear)]
    held = {
        "codes": sum(w.numel() for w in weights) + 4 * sum(len(w) for w in weights),
        "floats": 4 * sum(w.numel() for w in weights),
    }
    own = {name: accuracy(each, parts["test"]) for name, each in found.items()}
    return [{"label": "int2", "seed": seed, **own, "bytes of codes": held["codes"], "bytes of floats": held["floats"]}]


def _of(rows: Sequence[Mapping[str, Any]], one: str, other: str | None = None) -> list[float]:
    return [row[one] - (row[other] if other is not None else 0.0) for row in rows]


def tables(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """The tables of the page, from what is kept."""
    claims = []
    for label in RECIPES:
        rows = [row for row in found.get("sgd", []) if row["label"] == label]
        if rows:
            cells = [spread(estimate(_of(rows, name)), digits=3) for name in ("q", "noise", "full")]
            pairs = (("rounded", "full"), ("rounded", "shorter"), ("longer", "full"))
            cells += [spread(estimate(_of(rows, *pair)), digits=4, signed=True) for pair in pairs]
            claims.append([label, *cells])
    head = [
        "backward products",
        "q",
        "noise to signal",
        "full at mu",
        "rounded at mu",
        "less full at mu q",
        "at mu / q",
    ]
    blocks = {"claims": table(head, claims)} if claims else {}
    rows = list(found.get("mezo", []))
    if rows:
        lines = [
            ["QZO on scales", _of(rows, "coded"), _of(rows, "qzo"), _of(rows, "qzo", "coded"), rows[0]["bytes of codes"]],
            ["MeZO on floats", _of(rows, "floats"), _of(rows, "mezo"), _of(rows, "mezo", "floats"),
             rows[0]["bytes of floats"]],
        ]  # fmt: skip
        shown = [
            [name, *(spread(estimate(each), 100, 1) for each in (before, after)), spread(estimate(gain), 100, 1, signed=True),
             f"{size:,}"]
            for name, before, after, gain, size in lines
        ]  # fmt: skip
        gap = spread(estimate(_of(rows, "mezo", "qzo")), 100, 1, signed=True)
        head = ["what moves", "at first, %", "after 2,000 steps, %", "gain, points", "bytes of the weights"]
        blocks["mezo"] = f"{table(head, shown)}\n\nMeZO less QZO, paired by seed: {gap} points."
    return blocks


def main() -> None:
    """One part."""
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["sgd", seed]:
            keep("sgd", sgd(int(seed)))
        case ["mezo", seed]:
            keep("mezo", mezo(int(seed)))
        case ["mezo-rate"]:
            net, parts = digits(9)
            floats = as_floats(net)
            for rate in MEZO_RATES:
                moved = by_mezo(floats, parts["train"], rate, 9)
                print(rate, *(f"{accuracy(each, parts['validation']):.3f}" for each in (floats, moved)), flush=True)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
