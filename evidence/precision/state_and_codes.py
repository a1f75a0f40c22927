"""Two small questions: does a state in bytes cost loss, and do two forward passes mend a network of few bits (plan: README.md).

python evidence/precision/state_and_codes.py state DATA SEED [LABEL]   # the small GPT: AdamW's state in 32 bits and in codes
python evidence/precision/state_and_codes.py codes SEED         # digits: int4 and int2, then QZO on the scales
python evidence/precision/state_and_codes.py rate               # how the rate of QZO was chosen: validation rows, seed 9

Each adds its numbers to docs/evidence/precision-small.json.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import trimtab
from trimtab.datasets.text import read_tinyshakespeare
from trimtab.files import write_text
from trimtab.models.gpt import ByteGPT
from trimtab.precision import EightBitState, QuantizedZeroOrder, freeze_codes

KEPT = Path(__file__).parents[2] / "docs/evidence/precision-small.json"
STEPS, BATCH, WINDOWS = 120, 8, 200
STATES: dict[str, dict[str, object] | None] = {
    "32 bits": None, "dynamic, 8 bits": {}, "linear, 8 bits": {"map": "linear"}, "dynamic, 4 bits": {"bits": 4},
}  # fmt: skip
QZO_STEPS, QZO_BATCH, RATES = 2000, 64, (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
FORMATS = {"int4": 1e-2, "int2": 1e-2}
"""Format and the rate that `rate` chose."""


def keep(study: str, rows: list[dict[str, object]]) -> None:
    """Add rows; those of the same study, label and seed are replaced."""
    found = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    own = {(row["label"], row["seed"]): row for row in [*found.get(study, []), *rows]}
    found[study] = [own[key] for key in sorted(own, key=str)]
    write_text(KEPT, json.dumps(found, indent=1) + "\n")
    for row in rows:
        print(row, flush=True)


def state(root: Path, seed: int, labels: Sequence[str] = tuple(STATES)) -> None:
    """120 steps of the small GPT from the same start, on the same windows."""
    source = read_tinyshakespeare(root)
    assert source.test is not None
    train, test = (torch.cat([split.images.long(), split.targets[:, -1:]], 1) for split in (source.train, source.test))
    rows: list[dict[str, object]] = []
    for label in labels:
        settings = STATES[label]
        torch.manual_seed(seed)
        model = ByteGPT(256, 128, dim=64, heads=2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1, betas=(0.9, 0.98))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 12, 1 - step / STEPS))
        lever = None if settings is None else EightBitState(**settings)  # type: ignore[arg-type]
        if lever is not None:
            trimtab.attach(optimizer, lever, model=model)
        generator, losses = torch.Generator().manual_seed(seed), []
        for _ in range(STEPS):
            text = train[torch.randint(len(train), (BATCH,), generator=generator)]
            loss = F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        with torch.no_grad():
            parts = [
                float(F.cross_entropy(model(t[:, :-1]).flatten(0, 1), t[:, 1:].flatten()))
                for t in test[:WINDOWS].split(50)
            ]
        rows.append(
            {"label": label, "seed": seed, "train": sum(losses[-30:]) / 30, "test": sum(parts) / len(parts),
             "bytes": None if lever is None else lever.bytes[0] / lever.bytes[1]}
        )  # fmt: skip
    keep("state", rows)


def digits(seed: int) -> tuple[nn.Sequential, dict[str, tuple[Tensor, Tensor]]]:
    """A trained network, and its data: 1,000 rows to train on, 297 to choose the rate, 500 to judge."""
    data = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(data.data, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order]
    parts = dict(
        zip(
            ("train", "validation", "test"),
            zip(x.split([1000, 297, 500]), y.split([1000, 297, 500]), strict=True),
            strict=True,
        )
    )
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(400):
        at = torch.randint(1000, (64,))
        optimizer.zero_grad()
        F.cross_entropy(net(parts["train"][0][at]), parts["train"][1][at]).backward()
        optimizer.step()
    return net, parts


def accuracy(net: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """Share that is right."""
    with torch.no_grad():
        return float((net(part[0]).argmax(1) == part[1]).float().mean())


def mended(
    net: nn.Sequential, train: tuple[Tensor, Tensor], format: str, rate: float, seed: int
) -> tuple[nn.Module, nn.Module]:
    """The network in codes, and after QZO on its scales."""
    coded = copy.deepcopy(net)
    freeze_codes(coded, format)
    before = copy.deepcopy(coded)
    optimizer = QuantizedZeroOrder(coded, lr=rate, seed=seed, relative=True)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(QZO_STEPS):
        at = torch.randint(len(train[0]), (QZO_BATCH,), generator=generator)
        x, y = train[0][at], train[1][at]
        optimizer.step(lambda x=x, y=y: F.cross_entropy(coded(x), y))  # type: ignore[misc]
    return before, coded


def main() -> None:
    """One part."""
    torch.set_num_threads(1)
    match sys.argv[1:]:
        case ["state", root, seed, *labels] if set(labels) <= STATES.keys():
            state(Path(root), int(seed), labels or tuple(STATES))
        case ["codes", seed]:
            net, parts = digits(int(seed))
            rows: list[dict[str, object]] = []
            for format, rate in FORMATS.items():
                before, after = mended(net, parts["train"], format, rate, int(seed))
                own = [accuracy(each, parts["test"]) for each in (net, before, after)]
                rows.append(
                    {"label": format, "seed": int(seed), **dict(zip(("float", "coded", "mended"), own, strict=True))}
                )
            keep("codes", rows)
        case ["rate"]:
            net, parts = digits(9)
            for format in FORMATS:
                for rate in RATES:
                    found = mended(net, parts["train"], format, rate, 9)
                    print(format, rate, *(f"{accuracy(each, parts['validation']):.3f}" for each in found), flush=True)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
