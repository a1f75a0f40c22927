"""VAR against weight decay: measured V against V*, coefficient of variation against T, without a task and on digits.

    python evidence/var_evidence.py [--runs FOLDER]

Writes docs/evidence/var.json and docs/images/var-balance.svg. Runs that lie finished in FOLDER are not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import trimtab
from trimtab.files import write_text
from trimtab.penalties import VarianceAmplifier
from trimtab.runs.recipe import load_recipe
from trimtab.runs.training import train

DOCS = Path(__file__).parents[1] / "docs"
RATE, MOMENTUM, STEPS = 0.1, 0.9, 700
SHARES, DECAYS = (0.15, 0.91, 3.6), (5e-4, 1.6e-3, 5e-3)
DIGITS = ((1e-5, 5e-4, 60), (1e-4, 5e-4, 20), (3.2e-5, 1.6e-3, 20), (1e-5, 5e-3, 20), (1e-4, 5e-3, 20), (1e-4, 5e-3, 5))
"""Strength, decay, epochs."""
GAUSSIAN = math.sqrt(math.pi / 2 - 1)
"""Coefficient of variation of the magnitudes of Gaussian weights."""
COLOURS = {"a": "#3b6ea5", "b": "#c2571a", "line": "#888888", "ink": "#333333"}


def simulated(share: float, decay: float) -> dict[str, float]:
    """20,000 Gaussian weights without a task, five epochs of 140 steps, from V0 = share V*."""
    torch.manual_seed(0)
    net = nn.Linear(200, 100, bias=False, dtype=torch.float64)
    nn.init.normal_(net.weight)
    variance = float(net.weight.detach().abs().var(unbiased=False))
    penalty = VarianceAmplifier((variance / share) ** 2 * net.weight.numel() * decay / 2)
    optimizer = torch.optim.SGD(net.parameters(), RATE, MOMENTUM, weight_decay=decay)
    trimtab.attach(optimizer, penalty, model=net)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * step / STEPS)) / 2
        net.weight.grad = torch.zeros_like(net.weight)
        optimizer.step()
    sizes = net.weight.detach().abs()
    at_zero = float((sizes < 1e-3 * sizes.mean()).double().mean())
    return {"start": share, "decay": decay, **penalty.describe(), "at_zero": at_zero}


def on_digits(runs: Path, strength: float, decay: float, epochs: int) -> dict[str, Any]:
    """One run of `resnet_digits` with VAR, and what its record says."""
    settings = {"levers": ("var",), "var.strength": strength, "sgd.weight_decay": decay, "epochs": epochs}
    folder = train(load_recipe("digits").with_settings(settings), runs / f"var-{strength:g}-{decay:g}-{epochs}")
    return {"strength": strength, "decay": decay, "epochs": epochs, **folder.info()["levers"]["var"]}


class Panel:
    """Axes with logarithmic scales where asked, in an SVG."""

    def __init__(
        self, left: float, x: tuple[float, float], y: tuple[float, float], title: str, labels: tuple[str, str]
    ) -> None:
        self.left, self.x, self.y, self.parts = left, x, y, []
        self.parts += [
            f'<rect x="{left}" y="40" width="300" height="260" fill="none" stroke="{COLOURS["line"]}"/>',
            f'<text x="{left}" y="26" font-weight="bold">{title}</text>',
            f'<text x="{left + 150}" y="338" text-anchor="middle">{labels[0]}</text>',
            f'<text transform="translate({left - 40} 170) rotate(-90)" text-anchor="middle">{labels[1]}</text>',
        ]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies; both axes are logarithmic."""
        across, up = (math.log(v / lo) / math.log(hi / lo) for v, (lo, hi) in ((x, self.x), (y, self.y)))
        return round(self.left + 300 * across, 1), round(300 - 260 * up, 1)

    def ticks(self, x: Iterable[float], y: Iterable[float]) -> None:
        """Numbers on the axes."""
        for value in x:
            across, _ = self.at(value, self.y[0])
            self.parts.append(f'<text x="{across}" y="316" text-anchor="middle">{value:g}</text>')
        for value in y:
            _, up = self.at(self.x[0], value)
            self.parts.append(f'<text x="{self.left - 6}" y="{up + 4}" text-anchor="end">{value:g}</text>')

    def dot(self, x: float, y: float, colour: str, radius: float = 4) -> None:
        """One point."""
        across, up = self.at(x, y)
        self.parts.append(
            f'<circle cx="{across}" cy="{up}" r="{radius}" fill="{COLOURS[colour]}" fill-opacity="0.75"/>'
        )

    def curve(self, points: Iterable[tuple[float, float]]) -> None:
        """A line through points."""
        text = " ".join(f"{x},{y}" for x, y in (self.at(*point) for point in points))
        self.parts.append(f'<polyline points="{text}" fill="none" stroke="{COLOURS["line"]}" stroke-dasharray="4 3"/>')


def drawn(alone: list[dict[str, float]], digits: list[dict[str, Any]]) -> str:
    """The figure."""
    rest = Panel(70, (0.03, 30), (0.1, 10), "Where V ends", ("V0 / V*", "V / V* at the end"))
    rest.ticks((0.1, 1, 10), (0.1, 0.3, 1, 3, 10))
    rest.curve([(0.03, 1), (30, 1)])
    rest.curve([(0.1, 0.1), (10, 10)])
    clock = Panel(470, (0.01, 10), (0.6, 3), "Coefficient of variation against T", ("T", "CV of |w| at the end"))
    clock.ticks((0.01, 0.1, 1, 10), (0.6, 1, 2, 3))
    clock.curve([(10 ** (k / 20 - 2), GAUSSIAN * math.exp(10 ** (k / 20 - 2))) for k in range(43)])
    for row in alone:
        rest.dot(row["V0/V*"], row["V/V*"], "a")
        clock.dot(row["T"], row["CV"], "a")
    for row in digits:
        clock.dot(row["T"], row["CV"], "b")
        for name in (key.removeprefix("T ") for key in row if key.startswith("T ")):
            if 0.03 < row[f"V0/V* {name}"] < 30 and 0.1 < row[f"V/V* {name}"] < 10:
                rest.dot(row[f"V0/V* {name}"], row[f"V/V* {name}"], "b", 2.5)
    legend = [
        f'<circle cx="76" cy="362" r="4" fill="{COLOURS["a"]}"/><text x="86" y="366">without a task: three starts, each at '
        "three decays</text>",
        f'<circle cx="476" cy="362" r="4" fill="{COLOURS["b"]}"/><text x="486" y="366">resnet_digits: layers (left), runs '
        "(right)</text>",
    ]
    body = "\n".join([*rest.parts, *clock.parts, *legend])
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 380" font-family="sans-serif" font-size="12" '
        f'fill="{COLOURS["ink"]}" role="img"><title>Variance of the magnitudes at the end of training against where VAR and '
        "weight decay balance, and coefficient of variation against the clock T</title>\n"
        f'<rect width="800" height="380" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def main() -> None:
    """Simulate, train what is missing, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/var-evidence"))
    runs = parser.parse_args().runs
    alone = [simulated(share, decay) for share in SHARES for decay in DECAYS]
    digits = [on_digits(runs, *each) for each in DIGITS]
    rounded = json.loads(
        json.dumps({"without_task": alone, "digits": digits}), parse_float=lambda x: float(f"{float(x):.4g}")
    )
    write_text(DOCS / "evidence" / "var.json", json.dumps(rounded, indent=1) + "\n")
    write_text(DOCS / "images" / "var-balance.svg", drawn(alone, digits))


if __name__ == "__main__":
    main()
