"""The figures of docs/evidence/precision.md: simulations against closed forms, logistic regression, a study of a network.

python evidence/precision_evidence.py theory              # simulates, writes docs/evidence/precision-theory.json
python evidence/precision_evidence.py tables STUDY        # puts tables into the page; STUDY holds precision.json
"""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from evidence_page import fill, spread, table
from torch import nn

from trimtab.files import write_text
from trimtab.precision import MX, quantize, shrinkage, shrinkage_sums
from trimtab.precision.theory import stationary_second_moment
from trimtab.studies.precision.conclusions import comparisons, quality
from trimtab.studies.precision.logistic import (
    STEP,
    Descent,
    breast_cancer,
    descend,
)
from trimtab.studies.precision.records import PrecisionStudy

FOLDER = Path(__file__).parent.parent / "docs" / "evidence"
PAGE, THEORY, NETWORK = (
    FOLDER / name for name in ("precision.md", "precision-theory.json", "precision-cifar10-resnet20.json")
)
CHAINS = 100_000
DESCENTS = [
    ("full", "nearest", "none"),
    *itertools.product(("fp16", "e4m3", "e5m2", "e2m1", "int4"), ("nearest", "stochastic"), ("none",)),
    *itertools.product(("e2m1", "int4"), ("nearest", "stochastic", "toward_zero"), ("tensor",)),
]


def equivalence() -> list[dict[str, Any]]:
    """Two networks: one with step mu and gradients times q, one with step mu q; greatest difference after 100 steps."""
    rows = []
    for momentum, q in itertools.product((0.0, 0.9), (0.5, 0.125, 0.7)):
        networks = []
        for shrunk in (True, False):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 3)).double()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1 if shrunk else 0.1 * q, momentum=momentum)
            for _ in range(100):
                optimizer.zero_grad()
                x = torch.randn(16, 20, dtype=torch.float64)
                nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
                if shrunk:
                    for parameter in model.parameters():
                        parameter.grad.mul_(q)  # type: ignore[union-attr]
                optimizer.step()
            networks.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        difference = float((networks[0] - networks[1]).abs().max())
        rows.append({"momentum": momentum, "q": q, "difference": difference})
    return rows


def stationary() -> list[dict[str, Any]]:
    """E x^2 over independent chains after they have forgotten their start, against the closed form."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    for mu, q, sigma, s in itertools.product((0.1, 0.5), (1.0, 0.7, 0.3), (1.0, 0.3), (0.0, 1.0)):
        x = torch.zeros(CHAINS, dtype=torch.float64)
        for _ in range(math.ceil(7 / (mu * q))):  # the start weighs e^-14
            n = torch.randn(CHAINS, generator=generator, dtype=torch.float64)
            e = torch.randn(CHAINS, generator=generator, dtype=torch.float64)
            x -= mu * (q * (x + sigma * n) + s * e)
        square = x.square()
        expected = stationary_second_moment(1.0, mu, shrinkage=q, gradient_variance=sigma**2, quantiser_variance=s**2)
        error = float(square.std()) / CHAINS**0.5
        measured = float(square.mean())
        rows.append(
            {
                "mu": mu,
                "q": q,
                "sigma2": sigma**2,
                "s2": s**2,
                "measured": measured,
                "error": error,
                "closed_form": expected,
            }
            | {"distance": (measured - expected) / error}
        )
    return rows


def mx_rules() -> list[dict[str, Any]]:
    """q of MXFP4 on normal numbers, for each rule of the scale, with its standard error over 20 parts."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(2**19, generator=generator) for _ in range(20)]
    for rule in ("floor", "even", "ceil", "power_of_two"):
        scaling = MX(rule=rule)
        sums = [shrinkage_sums(part, quantize(part, "e2m1", scaling=scaling)) for part in parts]
        found = shrinkage(torch.stack(sums))
        together = shrinkage(torch.stack(sums).sum(0))
        error = float(found.projection.std()) / len(parts) ** 0.5
        rows.append(
            {"rule": rule, "q": float(together.projection), "error": error, "noise": float(together.noise_to_signal)}
        )
    return rows


def theory() -> None:
    """Simulate and write."""
    found = {"equivalence": equivalence(), "stationary": stationary(), "mx_rules": mx_rules()}
    found["logistic"] = [descend(*one).model_dump() for one in DESCENTS]  # type: ignore[arg-type]
    write_text(THEORY, json.dumps(found, indent=1) + "\n")


def theory_tables() -> dict[str, str]:
    found = json.loads(THEORY.read_text(encoding="utf-8"))
    far = max(found["stationary"], key=lambda row: abs(row["distance"]))
    within = sum(abs(row["distance"]) <= 3 for row in found["stationary"])
    descents = [Descent(**one) for one in found["logistic"]]
    full = descents[0]
    return {
        "equivalence": table(
            ["momentum", "q", "greatest difference of a weight"],
            [[f"{r['momentum']:g}", f"{r['q']:g}", f"{r['difference']:.2g}"] for r in found["equivalence"]],
        ),
        "stationary": f"{within} of {len(found['stationary'])} within 3 standard errors; the farthest at "
        f"{abs(far['distance']):.1f}.\n\n"
        + table(
            ["mu", "q", "sigma²", "s²", "measured E x²", "closed form", "distance, standard errors"],
            [
                [f"{r[key]:g}" for key in ("mu", "q", "sigma2", "s2")]
                + [f"{r['measured']:.5f} ± {r['error']:.5f}", f"{r['closed_form']:.5f}", f"{r['distance']:+.1f}"]
                for r in found["stationary"]
            ],
        ),
        "mx": table(
            ["rule", "q", "noise to signal"],
            [[r["rule"], f"{r['q']:.4f} ± {r['error']:.4f}", f"{r['noise']:.4f}"] for r in found["mx_rules"]],
        ),
        "logistic": table(
            ["format", "rounding", "scale", "q", "least q", "dead, %", "steps to a tenth", "full's / q", "bound's",
             "floor, measured", "predicted", "over full", "bound"],
            [
                [
                    one.format, one.rounding.replace("_", " "), one.scaling, "" if one.q is None else f"{one.q:.4f}",
                    f"{one.q_min:.4f}", f"{100 * one.dead:.1f}", *to_a_tenth(one, full),
                    f"{one.floor:.2e} ± {one.floor_half:.0e}",
                    "" if one.floor_predicted is None else f"{one.floor_predicted:.2e}", f"{one.floor / full.floor:.2f}",
                    f"{one.floor_bound:.2g}" if one.floor_bound is not None else "none",
                ]
                for one in descents
            ],
        ),
    }  # fmt: skip


def to_a_tenth(found: Descent, full: Descent) -> list[str]:
    """Steps until the gap is a tenth of the first: measured, those of full precision over q, by the bound's contraction."""

    def measured(one: Descent) -> int | None:
        return next((step for step, gap in zip(one.steps, one.gap, strict=True) if gap < 0.1 * one.gap[0]), None)

    steps, of_full, problem = measured(found), measured(full), breast_cancer()
    expected = "" if found.q is None or of_full is None else f"{of_full / found.q:.0f}"
    factor = 1 - STEP / problem.smoothness * problem.convexity * min(found.q_min, 1.0)
    bound = f"{math.log(0.1) / math.log(factor):.0f}" if found.q_min > 0 else "none"
    return ["never" if steps is None else str(steps), expected, bound]


def network_tables(folder: Path) -> dict[str, str]:
    study = PrecisionStudy.model_validate_json((folder / "precision.json").read_bytes())
    slim = [
        run.model_copy(update={"shrinkage": run.shrinkage and run.shrinkage.model_copy(
            update={"layers": [layer.model_copy(update={"curve": []}) for layer in run.shrinkage.layers]}
        )})
        for run in study.runs
    ]  # fmt: skip
    recipe = study.recipe | {"data": study.recipe["data"] | {"root": None}}
    study.model_copy(update={"runs": slim, "logistic": [], "recipe": recipe}).write(NETWORK)
    rows = []
    for label in study.labels:
        found, runs = quality(study, label), study.of(label)
        curves = [run.shrinkage for run in runs if run.shrinkage is not None]
        means = [_mean([getattr(own, name) for own in curves]) for name in ("q_median", "q_min")]
        dead = _mean([own.dead_median for own in curves])
        layers = [(layer.q, layer.name) for own in curves[:1] for layer in own.layers if layer.q is not None]
        least = "" if not layers else f"{min(layers)[1].removesuffix('.weight')} ({min(layers)[0]:.3f})"
        rows.append(
            [
                label, f"{found.finished} of {len(runs)}", spread(found.train_loss), spread(found.loss),
                spread(found.accuracy, 100, 1), spread(found.to_full, 100, 1, signed=True), *means, least,
                dead and f"{100 * float(dead):.1f}",
            ]
        )  # fmt: skip
    effects = [
        [
            one.what,
            one.label,
            one.against,
            spread(one.accuracy, 100, 1, signed=True),
            spread(one.train_loss, signed=True),
        ]
        for one in comparisons(study)
    ]
    seeds = sorted({run.seed for run in study.runs})
    complete = [
        seed for seed in seeds if all(any(run.seed == seed for run in study.of(label)) for label in study.labels)
    ]
    return {
        "network": f"Seeds with every variant: {', '.join(map(str, complete)) or 'none'}; "
        f"runs in the table: {len(study.runs)}.\n\n"
        + table(
            ["format", "finished", "training loss", "test loss", "test accuracy, %", "against full", "q", "least q",
             "layer of least q (median)", "dead, %"],
            rows,
        ),
        "effects": table(["what", "format", "against", "test accuracy, points", "training loss"], effects),
    }  # fmt: skip


def _mean(values: list[float | None]) -> str:
    kept = [value for value in values if value is not None]
    return f"{sum(kept) / len(kept):.4f}" if kept else ""


def main() -> None:
    match sys.argv[1:]:
        case ["theory"]:
            theory()
        case ["tables", study]:
            fill(PAGE, theory_tables() | network_tables(Path(study)))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
