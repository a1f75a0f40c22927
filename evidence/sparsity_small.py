"""What each sparsity lever's description promises, tried on scikit-learn's digits: seconds a row, no proof for larger networks.

python evidence/sparsity_small.py          # -> docs/evidence/sparsity-small.json, and the tables into docs/evidence/sparsity.md
python evidence/sparsity_small.py tables   # the tables alone

A network of 64, 64, 64 and 10 units (8,832 weights), 1,437 images to train and 360 to test on (the same in every row), 450
steps of batch 64, SGD 0.1 with momentum 0.9 and a cosine, seeds 20, 21, 22. Written before it ran; what must come out:

  along training  gradual >= one-shot at 90 and 95 %; RigL > SET > the mask that never moves;
                  N:M that fades >= SR-STE >= one-shot
  movement        fine-tuned on digits 5 to 9 from a network of 0 to 4: above magnitude (gradual) at 90 %
  scores          SNIP at initialisation above random at 90 %, GraSP too; Taylor and SNIP above magnitude of a trained network
  low rank        decomposed at 90 % energy: far less is lost than by decomposing a plainly trained network to as few weights
  gates           20 % of the neurons closed in 200 steps with the weights as they are: at most 1 point lost
  binary          ReSTE >= the straight-through estimator
  mask tuning     digits 5 to 9 on a frozen network of 0 to 4: masks with a new last layer above a new last layer alone
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from evidence_page import fill, spread, table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import trimtab
from trimtab import pruning
from trimtab.files import write_text
from trimtab.precision import Binarize
from trimtab.studies.statistics import Estimate, estimate, paired_difference

FIGURES = Path(__file__).parent.parent / "docs" / "evidence" / "sparsity-small.json"
SEEDS = (20, 21, 22)
STEPS = 450
Data = tuple[Tensor, Tensor]


def digits() -> tuple[Data, Data]:
    """Images to train on, and to test on."""
    found = load_digits()
    images, labels = torch.tensor(found.data / 16, dtype=torch.float32), torch.tensor(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return (images[train], labels[train]), (images[test], labels[test])


def among(data: Data, low: int, high: int) -> Data:
    chosen = (data[1] >= low) & (data[1] < high)
    return data[0][chosen], data[1][chosen] - low


def network(seed: int, classes: int = 10) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes)
    )  # fmt: skip


def train(
    net: nn.Module, data: Data, seed: int, lever: Any = None, steps: int = STEPS, rate: float = 0.1, trained: Any = None
) -> nn.Module:
    """SGD with momentum and a cosine; `trained` are other parameters than the network's."""
    optimizer = torch.optim.SGD(trained or net.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    handle = None if lever is None else trimtab.attach(optimizer, lever, model=net)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(data[1]), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(net(data[0][batch]), data[1][batch]).backward()
        optimizer.step()
        schedule.step()
    if handle is not None:
        handle.finish()
        handle.remove()
    return net


@torch.no_grad()
def accuracy(net: nn.Module, data: Data) -> float:
    return 100 * float((net(data[0]).argmax(1) == data[1]).double().mean())


def batches(data: Data) -> list[Data]:
    return list(zip(data[0].split(256), data[1].split(256), strict=True))


def along(seed: int, data: Data, test: Data) -> dict[str, float]:
    dense = train(network(seed), data, seed)
    found = {"dense": accuracy(dense, test)}
    for final in (0.9, 0.95):
        point = f"{100 * final:.0f} %"
        with_undo = pruning.one_shot(dense, final, scope="layer")
        found[f"one-shot, {point}"] = accuracy(dense, test)
        with_undo.undo()
        levers = {
            "gradual": pruning.GradualPruning(final, total_steps=STEPS),
            "RigL": pruning.DynamicSparse(final, every=25, total_steps=STEPS),
            "SET": pruning.DynamicSparse(final, grow="random", every=25, total_steps=STEPS),
            "a mask that never moves": pruning.DynamicSparse(final, every=10**6, total_steps=STEPS),
        }
        for name, lever in levers.items():
            found[f"{name}, {point}"] = accuracy(train(network(seed), data, seed, lever), test)
    with_undo = pruning.one_shot(dense, pattern="1:8")
    found["one-shot, 1:8"] = accuracy(dense, test)
    with_undo.undo()
    fading = {
        "SR-STE": {"method": "sr_ste", "begin": 0.0},
        "mask that fades": {},
        "stages, sparsify": {"method": "structure"},
    }
    for name, how in fading.items():
        lever: Any = pruning.NMDecay(1, 8, total_steps=STEPS, **how)  # type: ignore[arg-type]
        found[f"{name}, 1:8"] = accuracy(train(network(seed), data, seed, lever), test)
    lever = pruning.SoftThreshold(decay=5e-3)
    soft = train(network(seed), data, seed, lever)
    zeros = sum(int((weight == 0).sum()) for weight in soft.parameters() if weight.ndim > 1)
    found |= {"STR": accuracy(soft, test), "STR's sparsity": 100 * zeros / size(soft)}
    return found


def movement(seed: int, data: Data, test: Data) -> dict[str, float]:
    first, second, judged = among(data, 0, 5), among(data, 5, 10), among(test, 5, 10)
    start = train(network(seed, 5), first, seed)
    found = {}
    for name, lever in (
        ("movement", pruning.MovementPruning(0.9, total_steps=300)),
        ("magnitude", pruning.GradualPruning(0.9, begin=0.1, total_steps=300)),
    ):
        net = copy.deepcopy(start)
        found[name] = accuracy(train(net, second, seed, lever, 300, 0.02), judged)
    return found


def scores(seed: int, data: Data, test: Data) -> dict[str, float]:
    loader, loss = batches(data), F.cross_entropy
    classes = [torch.nonzero(data[1] == digit).flatten()[:50] for digit in range(10)]
    balanced = torch.cat(classes)[torch.randperm(500, generator=torch.Generator().manual_seed(seed))]
    even = [(data[0][balanced[:250]], data[1][balanced[:250]]), (data[0][balanced[250:]], data[1][balanced[250:]])]
    early: dict[str, Any] = {"SNIP": pruning.Snip(loader, loss), "GraSP": pruning.GraSP(even, loss), "random": "random"}
    found = {}
    for name, score in early.items():
        net = network(seed)
        pruned = pruning.one_shot(net, 0.9, score=score)
        found[f"{name}, at initialisation"] = accuracy(
            train(net, data, seed, pruning.KeepMasks(pruned.masks)), test
        )  # fmt: skip
    dense = train(network(seed), data, seed)
    late: dict[str, Any] = {
        "magnitude": "magnitude",
        "Taylor": pruning.Taylor(loader, loss),
        "SNIP": pruning.Snip(loader, loss),
    }
    for name, score in late.items():
        pruned = pruning.one_shot(dense, 0.8, score=score)
        found[f"{name}, trained, 80 %"] = accuracy(dense, test)
        pruned.undo()
    return found


def size(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters() if parameter.ndim > 1)


def low_rank(seed: int, data: Data, test: Data) -> dict[str, float]:
    plain = train(network(seed), data, seed)
    trained = train(network(seed), data, seed, pruning.LowRankProjection(0.9, every=20, first_layer="low_rank"))
    small = pruning.decompose(trained, 0.9999).model
    cut: nn.Module = plain
    for level in range(199, 20, -1):
        with contextlib.suppress(ValueError):  # two layers would not be smaller yet
            cut = pruning.decompose(plain, level / 200).model
        if size(cut) <= size(small):
            break
    return {
        "dense": accuracy(plain, test), "trained to low rank": accuracy(small, test),
        "plain, decomposed": accuracy(cut, test), "times fewer weights": size(plain) / size(small),
    }  # fmt: skip


def gates(seed: int, data: Data, test: Data) -> dict[str, float]:
    net = train(network(seed), data, seed).eval()
    before = accuracy(net, test)
    found = pruning.gate_channels(net, data[0][:8])
    optimizer = torch.optim.Adam(found.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(200):
        images = data[0][torch.randint(len(data[0]), (64,), generator=generator)]
        with found.open(), torch.no_grad():
            teacher = net(images)
        optimizer.zero_grad()
        (pruning.match_output_loss(net(images), teacher) + 0.5 * found.penalty()).backward()
        optimizer.step()
    found.finalize(sparsity=0.2)
    return {"before": before, "20 % of the neurons closed": accuracy(net, test)}


def binary(seed: int, data: Data, test: Data) -> dict[str, float]:
    found = {}
    for name, how in (("ReSTE", {}), ("straight through", {"estimator": "ste"})):
        lever: Any = Binarize(total_steps=STEPS, ends=True, **how)  # type: ignore[arg-type]
        found[name] = accuracy(train(network(seed), data, seed, lever), test)
    return found


def masks(seed: int, data: Data, test: Data) -> dict[str, float]:
    second, judged = among(data, 5, 10), among(test, 5, 10)
    start = train(network(seed, 5), among(data, 0, 5), seed)
    probe = copy.deepcopy(start)
    head = nn.Linear(64, 5)
    probe[4] = head  # type: ignore[index]
    train(probe, second, seed, trained=list(head.parameters()))
    tuned = copy.deepcopy(start)
    tuned[4] = nn.Linear(64, 5)  # type: ignore[index]
    own = list(tuned[4].parameters())  # type: ignore[index]
    tuning = pruning.MaskTuning(tuned, include=("0.weight", "2.weight"))
    optimizer = torch.optim.Adam([{"params": tuning.parameters(), "lr": 1e-3}, {"params": own, "lr": 1e-2}])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        batch = torch.randint(len(second[1]), (64,), generator=generator)
        optimizer.zero_grad()
        (F.cross_entropy(tuned(second[0][batch]), second[1][batch]) + tuning.penalty()).backward()
        optimizer.step()
    return {"a new last layer": accuracy(probe, judged), "masks and a new last layer": accuracy(tuned, judged)}


PARTS: dict[str, Callable[[int, Data, Data], dict[str, float]]] = {
    "along": along, "movement": movement, "scores": scores, "low_rank": low_rank, "gates": gates, "binary": binary,
    "masks": masks,
}  # fmt: skip

CLAIMS = (
    ("along", "gradual, 90 %", "one-shot, 90 %"), ("along", "gradual, 95 %", "one-shot, 95 %"),
    ("along", "RigL, 95 %", "SET, 95 %"), ("along", "SET, 95 %", "a mask that never moves, 95 %"),
    ("along", "gradual, 95 %", "RigL, 95 %"), ("along", "mask that fades, 1:8", "SR-STE, 1:8"),
    ("along", "SR-STE, 1:8", "one-shot, 1:8"), ("movement", "movement", "magnitude"),
    ("scores", "SNIP, at initialisation", "random, at initialisation"),
    ("scores", "GraSP, at initialisation", "random, at initialisation"),
    ("scores", "Taylor, trained, 80 %", "magnitude, trained, 80 %"),
    ("scores", "SNIP, trained, 80 %", "magnitude, trained, 80 %"),
    ("low_rank", "trained to low rank", "plain, decomposed"), ("gates", "20 % of the neurons closed", "before"),
    ("binary", "ReSTE", "straight through"), ("masks", "masks and a new last layer", "a new last layer"),
)  # fmt: skip


Figures = dict[str, dict[str, list[float]]]


def verdict(difference: Estimate, least: float = 0.0) -> str:
    """Holds where the interval is above `least`; below 0 points, so many may be lost."""
    assert difference.low is not None
    assert difference.high is not None
    if difference.low > least:
        return "**holds**"
    if difference.high < least:
        return "does not hold" if least else "**the other way**"
    return "not told apart"


def means(found: Figures) -> list[list[str]]:
    """Each part's figures over the seeds."""
    return [
        [f"{part.replace('_', ' ')}: {name}", spread(estimate(values), digits=1)]
        for part, own in found.items()
        for name, values in own.items()
    ]


def difference_of(figures: dict[str, list[float]], own: str, other: str) -> Estimate:
    """Of two rows of a part, paired by seed."""
    found = paired_difference(*(list(zip(SEEDS, figures[name], strict=True)) for name in (own, other)))
    assert found is not None
    return found


def judged(found: Figures, claims: Sequence[tuple[str, str, str, float]]) -> list[list[str]]:
    """Of (part, row, other row, points that may be lost) where the part was measured: what was asked, found and said."""
    lines = []
    for part, own, other, least in claims:
        if part in found:
            difference = difference_of(found[part], own, other)
            asked = "above" if not least else f"at most {-least:.0f} point less"
            digits = 1 if abs(difference.mean) < 1000 else 0
            says = verdict(difference, least)
            lines.append([f"{own} - {other}", asked, spread(difference, digits=digits, signed=True), says])
    return lines


def measured(measure: Callable[[int, Data, Data], dict[str, float]], data: Data, test: Data) -> dict[str, list[float]]:
    """A part's figures, seed by seed."""
    rows = [measure(seed, data, test) for seed in SEEDS]
    return {name: [round(row[name], 2) for row in rows] for name in rows[0]}


def tables() -> None:
    found = json.loads(FIGURES.read_text(encoding="utf-8"))
    lines = []
    for part, own, other in CLAIMS:
        if part not in found:
            lines.append([f"{own} - {other}", "", "not measured"])
            continue
        difference = difference_of(found[part], own, other)
        says = verdict(difference, -1.0 if part == "gates" else 0.0)
        lines.append([f"{own} - {other}", spread(difference, digits=1, signed=True), says])
    blocks = {
        "small": table(["accuracy in %, 3 seeds", "mean ± half the interval"], means(found)),
        "small-verdicts": table(["difference in points, paired by seed", "digits, 3 seeds", "as described"], lines),
    }
    fill(FIGURES.with_name("sparsity.md"), blocks)


def main() -> None:
    if "tables" not in sys.argv:
        torch.set_num_threads(1)
        data, test = digits()
        found: Figures = {}
        for part, measure in PARTS.items():
            found[part] = measured(measure, data, test)
            print(
                part, {name: [round(value, 1) for value in values] for name, values in found[part].items()}, flush=True
            )
        write_text(FIGURES, json.dumps(found, indent=1) + "\n")
    tables()


if __name__ == "__main__":
    main()
