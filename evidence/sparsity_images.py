"""N:M and gates on a vision transformer, and binary weights, on CIFAR-10: what digits are too small for.

python evidence/sparsity_images.py PART --root CIFAR   # -> docs/evidence/sparsity-images.json; parts: vit, binary
python evidence/sparsity_images.py tables              # into docs/evidence/sparsity.md

Seed after seed; seeds that are in the file are left. Validation is not used, settings are chosen once and written here before
the test split is looked at:

  vit     patches of 8 x 8 (16 and a class token), 4 layers of 64 units, 4 heads (214,000 weights), 6 epochs of 18,000 images in
          batches of 100, AdamW 1e-3 with decay 0.05 and a cosine, mirrored images. Patterns 1:8 of every linear layer inside
          the transformer's layers: one-shot, SR-STE and a mask that fades (its defaults). Gates on the heads and neurons of
          the dense one, 200 steps with the weights as they are, 20 % closed
  binary  ResNet-8, 3 epochs of the same images in batches of 100, SGD 0.1 with momentum 0.9, decay 5e-4 and a cosine, products
          in bfloat16, weights binary but in the first and the last layer; `o_end` 1 (the straight-through estimator) to 5

What must come out:

  vit     1:8: a mask that fades >= SR-STE >= one-shot; 20 % of heads and neurons closed: at most 1 point lost
  binary  ReSTE (`o_end` 3) >= straight through; along `o_end` the error falls, the gradients' unsteadiness grows, and accuracy
          is best near 3 (paper)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from evidence_page import fill, table
from sparsity_small import SEEDS, Figures, judged, means
from sparsity_transformer import Watched
from torch import Tensor, nn
from torch.nn import functional as F

import trimtab
from trimtab import datasets, pruning
from trimtab.datasets import Batches, DataSet
from trimtab.files import write_text
from trimtab.models.cifar_resnet import CifarResNet
from trimtab.models.vit import VisionTransformer
from trimtab.parameters import Rule

FIGURES = Path(__file__).parent.parent / "docs" / "evidence" / "sparsity-images.json"
BATCH = 100
INSIDE = Rule(include=("layers.*.weight",), exclude=("*.norm*",))


def outputs_of(net: nn.Module, images: Tensor) -> Tensor:
    """Logits in float32; products of convolutions in bfloat16, which are many times faster so."""
    with torch.autocast("cpu", torch.bfloat16, enabled=isinstance(net, CifarResNet)):
        out: Tensor = net(images)
    return out.float()


def train(
    net: nn.Module, data: DataSet, seed: int, optimizer: torch.optim.Optimizer, epochs: int, lever: Any = None
) -> nn.Module:
    """Cross-entropy, the rate along a cosine."""
    batches = Batches(data.train, data, BATCH, seed=seed, augment="flip")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    handle = None if lever is None else trimtab.attach(optimizer, lever, model=net)
    net.train()
    for epoch in range(epochs):
        for images, targets in batches.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(outputs_of(net, images), targets).backward()
            optimizer.step()
            schedule.step()
    if handle is not None:
        handle.finish()
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, data: DataSet) -> float:
    """In per cent of the test split."""
    net.eval()
    right = 0
    for images, targets in Batches(data.test, data, 500, seed=0, shuffle=False).epoch(0):
        right += int((outputs_of(net, images).argmax(1) == targets).sum())
    return 100 * right / len(data.test)


def transformer(seed: int) -> VisionTransformer:
    torch.manual_seed(seed)
    net = VisionTransformer(10, dim=64, depth=4, heads=4, patch=8)
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()  # the deviation of 0.02 is for wider ones
    return net


def vit(seed: int, data: DataSet, epochs: int = 6) -> dict[str, float]:
    """Patterns, then gates on the dense network."""
    total = epochs * (len(data.train) // BATCH)

    def trained(lever: Any = None) -> nn.Module:
        net = transformer(seed)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
        return train(net, data, seed, optimizer, epochs, lever)

    dense = trained()
    found = {"dense": accuracy(dense, data)}
    pruned = pruning.one_shot(dense, pattern="1:8", rule=INSIDE)
    found["one-shot, 1:8"] = accuracy(dense, data)
    pruned.undo()
    for name, how in (("SR-STE, 1:8", {"method": "sr_ste", "begin": 0.0}), ("mask that fades, 1:8", {})):
        lever: Any = pruning.NMDecay(1, 8, total_steps=total, rule=INSIDE, **how)  # type: ignore[arg-type]
        found[name] = accuracy(trained(lever), data)

    images = next(Batches(data.train, data, 8, seed=seed).epoch(0))[0]
    gates = [pruning.gate_heads(dense), pruning.gate_channels(dense, images)]
    optimizer = torch.optim.Adam([one for own in gates for one in own.parameters()], lr=0.1)
    batches = Batches(data.train, data, BATCH, seed=seed, augment="flip")
    for step in range(200):
        if step % len(batches) == 0:
            stream = batches.epoch(epochs + step // len(batches))
        images, _ = next(stream)
        with gates[0].open(), gates[1].open(), torch.no_grad():
            teacher = outputs_of(dense, images)
        optimizer.zero_grad()
        (
            pruning.match_output_loss(outputs_of(dense, images), teacher) + 0.5 * sum(own.penalty() for own in gates)
        ).backward()
        optimizer.step()
    for own in gates:
        own.finalize(sparsity=0.2)
    return {**found, "20 % of heads and neurons closed": accuracy(dense, data)}


def binary(seed: int, data: DataSet, epochs: int = 3) -> dict[str, float]:
    """Accuracy, and the two indicators over the last tenth of the steps."""
    total = epochs * (len(data.train) // BATCH)
    found: dict[str, float] = {}
    for end in (1, 3, 2, 4, 5):
        torch.manual_seed(seed)
        net = CifarResNet(1, num_classes=10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        lever = Watched(o_end=float(end), total_steps=total)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
        found[f"o to {end}: accuracy"] = accuracy(train(net, data, seed, optimizer, epochs, lever), data)
        last = lever.told[-max(1, total // 10) :]
        found[f"o to {end}: error"] = sum(one for one, _ in last) / len(last)
        found[f"o to {end}: unsteadiness, billionths"] = 1e9 * sum(one for _, one in last) / len(last)
    return found


PARTS: dict[str, Callable[..., dict[str, float]]] = {"vit": vit, "binary": binary}

CLAIMS = (
    ("vit", "mask that fades, 1:8", "SR-STE, 1:8", 0.0), ("vit", "SR-STE, 1:8", "one-shot, 1:8", 0.0),
    ("vit", "20 % of heads and neurons closed", "dense", -1.0),
    ("binary", "o to 3: accuracy", "o to 1: accuracy", 0.0), ("binary", "o to 3: accuracy", "o to 5: accuracy", 0.0),
    ("binary", "o to 1: error", "o to 5: error", 0.0),
    ("binary", "o to 5: unsteadiness, billionths", "o to 1: unsteadiness, billionths", 0.0),
)  # fmt: skip


def kept() -> Figures:
    """What was measured before."""
    found: Figures = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
    return found


def measure(part: str, root: str) -> None:
    """Seed after seed, each written when it ends."""
    torch.set_num_threads(1)
    data = datasets.load("cifar10", root=root)
    for number, seed in enumerate(SEEDS):
        if len(next(iter(kept().get(part, {"": []}).values()))) > number:
            continue
        row = PARTS[part](seed, data)
        print(part, seed, row, flush=True)
        found = kept()
        own = found.setdefault(part, {name: [] for name in row})
        for name, value in row.items():
            own[name].append(float(f"{value:.4g}"))
        write_text(FIGURES, json.dumps(found, indent=1) + "\n")


def tables() -> None:
    """The figures into the page."""
    found = kept()
    head = ["accuracy in % (indicators as said), 3 seeds", "mean ± half the interval"]
    blocks = {
        "images": table(head, means(found)),
        "images-verdicts": table(["difference, paired by seed", "claim", "3 seeds", "verdict"], judged(found, CLAIMS)),
    }
    fill(FIGURES.with_name("sparsity.md"), blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "tables"])
    parser.add_argument("--root", default="")
    given = parser.parse_args()
    if given.part == "tables":
        tables()
    else:
        measure(given.part, given.root)


if __name__ == "__main__":
    main()
