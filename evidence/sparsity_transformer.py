"""Levers on a small transformer, and what else `sparsity_small.py` leaves open, on scikit-learn's digits: seconds a row.

python evidence/sparsity_transformer.py PART    # -> docs/evidence/sparsity-transformer.json; parts: see PARTS
python evidence/sparsity_transformer.py tables  # into docs/evidence/sparsity.md

The transformer: patches of 2 x 2 (16 of them and a class token), 2 layers of 32 units, 4 heads (26,000 weights); AdamW 3e-3
and a cosine, 300 steps of batch 64, seeds 20, 21, 22, the images of `sparsity_small.py`. Written before it ran; what must come
out:

  patterns    1:8: a mask that fades >= SR-STE >= one-shot
  movement    fine-tuned on digits 5 to 9 from a transformer of 0 to 4: above magnitude (gradual) at 90 %
  gates       20 % of the heads and neurons closed in 200 steps with the weights as they are: at most 1 point lost
  size        64 units with 93 % zeros (gradual) above 8 dense units, which have as many weights (the network of
              `sparsity_small.py`)
  align       attention to neighbours alone, in a network that was trained with both kinds and `align`: above the same in a
              network that was trained with full attention, and at most 1 point below its own full attention (a weight of 1
              beside the default of 10 was added after the first seed was seen; no claim is made of it)
  balance     digits beside a regression in units a thousand times as large: balanced, above the plain sum
  indicators  of Binarize over o_end 1 to 5: the error falls, the gradients' unsteadiness grows, accuracy is best near 3 (paper)
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from evidence_page import fill, table
from sparsity_small import (
    Data,
    accuracy,
    among,
    digits,
    judged,
    means,
    measured,
    network,
    size,
)
from sparsity_small import train as train_plain
from torch import Tensor, nn
from torch.nn import functional as F

import trimtab
from trimtab import pruning
from trimtab.files import write_text
from trimtab.losses import align, balance
from trimtab.models.vit import SelfAttention, VisionTransformer
from trimtab.precision import Binarize

FIGURES = Path(__file__).parent.parent / "docs" / "evidence" / "sparsity-transformer.json"
STEPS = 300


def transformer(seed: int, classes: int = 10) -> VisionTransformer:
    torch.manual_seed(seed)
    net = VisionTransformer(classes, in_channels=1, image_size=8, dim=32, depth=2, heads=4, patch=2)
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()  # the deviation of 0.02 is for wider ones
    return net


def images(data: Data) -> Data:
    """As images instead of rows."""
    return data[0].view(-1, 1, 8, 8), data[1]


def train(
    net: nn.Module, data: Data, seed: int, lever: Any = None, *, steps: int = STEPS, rate: float = 3e-3,
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor] = lambda net, x, y: F.cross_entropy(net(x), y),
) -> nn.Module:  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    handle = None if lever is None else trimtab.attach(optimizer, lever, model=net)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(data[1]), (64,), generator=generator)
        optimizer.zero_grad()
        loss(net, data[0][batch], data[1][batch]).backward()
        optimizer.step()
        schedule.step()
    if handle is not None:
        handle.finish()
        handle.remove()
    return net


def patterns(seed: int, data: Data, test: Data) -> dict[str, float]:
    data, test = images(data), images(test)
    rule = trimtab.parameters.Rule(include=("layers.*.weight",), exclude=("*.norm*",))
    dense = train(transformer(seed), data, seed)
    found = {"dense": accuracy(dense, test)}
    pruning.one_shot(dense, pattern="1:8", rule=rule)
    found["one-shot, 1:8"] = accuracy(dense, test)
    for name, how in (("SR-STE, 1:8", {"method": "sr_ste", "begin": 0.0}), ("mask that fades, 1:8", {})):
        lever: Any = pruning.NMDecay(1, 8, total_steps=STEPS, rule=rule, **how)  # type: ignore[arg-type]
        found[name] = accuracy(train(transformer(seed), data, seed, lever), test)
    return found


def movement(seed: int, data: Data, test: Data) -> dict[str, float]:
    first, second, judged = (
        images(among(part, low, low + 5)) for part, low in ((data, 0), (data, 5), (test, 5))
    )  # fmt: skip
    start = train(transformer(seed, 5), first, seed)
    found = {}
    for name, lever in (
        ("movement, 90 %", pruning.MovementPruning(0.9, total_steps=STEPS)),
        ("magnitude, 90 %", pruning.GradualPruning(0.9, begin=0.1, total_steps=STEPS)),
    ):
        found[name] = accuracy(train(copy.deepcopy(start), second, seed, lever, rate=1e-3), judged)
    return found


def gates(seed: int, data: Data, test: Data) -> dict[str, float]:
    data, test = images(data), images(test)
    net = train(transformer(seed), data, seed).eval()
    before = accuracy(net, test)
    found = [pruning.gate_heads(net), pruning.gate_channels(net, data[0][:8])]
    optimizer = torch.optim.Adam([one for own in found for one in own.parameters()], lr=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(200):
        batch = data[0][torch.randint(len(data[0]), (64,), generator=generator)]
        with found[0].open(), found[1].open(), torch.no_grad():
            teacher = net(batch)
        optimizer.zero_grad()
        (pruning.match_output_loss(net(batch), teacher) + 0.5 * sum(own.penalty() for own in found)).backward()
        optimizer.step()
    for own in found:
        own.finalize(sparsity=0.2)
    return {"before": before, "20 % of heads and neurons closed": accuracy(net, test)}


def large(seed: int, data: Data, test: Data) -> dict[str, float]:
    torch.manual_seed(seed)
    small = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10))
    wide = network(seed)
    share = 1 - size(small) / size(wide)
    lever = pruning.GradualPruning(share, scope="global", total_steps=450)
    return {
        "64 units, 93 % zeros": accuracy(train_plain(wide, data, seed, lever), test),
        "8 units": accuracy(train_plain(small, data, seed), test),
    }


class BothWays(SelfAttention):
    """Attention to all tokens and to neighbours (and the class token) alone; `main` says which goes on."""

    main = "full"
    seen: tuple[Tensor, Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """What goes on; both are in `seen`."""
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        place = torch.arange(x.shape[1])
        near = ((place[:, None] - place).abs() <= 1) | (place[:, None] == 0) | (place == 0)
        near[0, 1:] = place[1:] % 4 == 0  # the class token sees a token in four
        self.seen = (
            self.out(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)),
            self.out(F.scaled_dot_product_attention(query, key, value, near).transpose(1, 2).flatten(2)),
        )
        return self.seen[0] if self.main == "full" else self.seen[1]


def aligned(seed: int, data: Data, test: Data) -> dict[str, float]:
    data, test = images(data), images(test)
    found = {}
    for name, weight in (
        ("trained full", None), ("a coin alone", 0.0), ("a coin and align", 10.0), ("a coin and align of weight 1", 1.0)
    ):  # fmt: skip
        net = transformer(seed)
        ways = [BothWays(32, 4) for _ in net.layers]
        for layer, way in zip(net.layers, ways, strict=True):
            way.load_state_dict(layer.attention.state_dict())
            layer.attention = way
        coin = torch.Generator().manual_seed(seed)

        def loss(
            net: nn.Module, x: Tensor, y: Tensor, ways: list[BothWays] = ways, weight: float | None = weight,
            coin: torch.Generator = coin,
        ) -> Tensor:  # fmt: skip
            for way in ways:
                way.main = "full" if weight is None or float(torch.rand((), generator=coin)) < 0.5 else "sparse"
            told = F.cross_entropy(net(x), y)
            return told + align(*zip(*(way.seen for way in ways), strict=True), weight=weight) if weight else told

        train(net, data, seed, loss=loss)
        for main in ("full", "sparse"):
            for way in ways:
                way.main = main
            found[f"{name}, {main}"] = accuracy(net, test)
    return found


def balanced(seed: int, data: Data, test: Data) -> dict[str, float]:
    def told(net: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
        out = net(x)
        bright = 1000 * x.mean(1) + 300 * x[:, :32].mean(1)
        return [F.cross_entropy(out[:, :10], y), (100 * out[:, 10] - bright).square().mean()]

    ways: dict[str, Callable[[list[Tensor]], Tensor]] = {
        "digits alone": lambda losses: losses[0],
        "plain sum": lambda losses: losses[0] + losses[1],
        "balanced": lambda losses: sum(balance(losses)),  # type: ignore[return-value, arg-type]
    }
    found = {}
    for name, way in ways.items():
        net = train(
            network(seed, 11), data, seed, loss=lambda net, x, y, way=way: way(told(net, x, y))  # type: ignore[misc]
        )  # fmt: skip
        with torch.no_grad():
            right = (net(test[0])[:, :10].argmax(1) == test[1]).double().mean()
        found[name] = 100 * float(right)
    return found


class Watched(Binarize):
    """Keeps the indicators of every step."""

    def after_step(self, parameters: Any) -> None:
        """As of `Binarize`."""
        super().after_step(parameters)
        told = self.describe()
        self.told = [*getattr(self, "told", []), (told["error"], told["stability"])]


def indicators(seed: int, data: Data, test: Data) -> dict[str, float]:
    found: dict[str, float] = {}
    for end in (1, 2, 3, 4, 5):
        lever = Watched(o_end=float(end), total_steps=450, ends=True)
        found[f"o to {end}: accuracy"] = accuracy(train_plain(network(seed), data, seed, lever), test)
        last = lever.told[-100:]
        found[f"o to {end}: error"] = sum(one for one, _ in last) / len(last)
        found[f"o to {end}: unsteadiness, millionths"] = 1e6 * sum(one for _, one in last) / len(last)
    return found


PARTS: dict[str, Callable[[int, Data, Data], dict[str, float]]] = {
    "patterns": patterns, "movement": movement, "gates": gates, "size": large, "align": aligned, "balance": balanced,
    "indicators": indicators,
}  # fmt: skip

CLAIMS = (
    ("patterns", "mask that fades, 1:8", "SR-STE, 1:8", 0.0), ("patterns", "SR-STE, 1:8", "one-shot, 1:8", 0.0),
    ("movement", "movement, 90 %", "magnitude, 90 %", 0.0),
    ("gates", "20 % of heads and neurons closed", "before", -1.0),
    ("size", "64 units, 93 % zeros", "8 units", 0.0),
    ("align", "a coin and align, sparse", "trained full, sparse", 0.0),
    ("align", "a coin and align, sparse", "a coin and align, full", -1.0),
    ("align", "a coin and align, sparse", "a coin alone, sparse", 0.0),
    ("balance", "balanced", "plain sum", 0.0),
    ("indicators", "o to 3: accuracy", "o to 1: accuracy", 0.0),
    ("indicators", "o to 3: accuracy", "o to 5: accuracy", 0.0),
)  # fmt: skip


def tables() -> None:
    found = json.loads(FIGURES.read_text(encoding="utf-8"))
    head = ["accuracy in % (indicators as said), 3 seeds", "mean ± half the interval"]
    blocks = {
        "transformer": table(head, means(found)),
        "transformer-verdicts": table(
            ["difference in points, paired by seed", "claim", "3 seeds", "verdict"], judged(found, CLAIMS)
        ),
    }
    fill(FIGURES.with_name("sparsity.md"), blocks)


def main() -> None:
    if "tables" not in sys.argv:
        torch.set_num_threads(1)
        data, test = digits()
        for part in sys.argv[1:]:
            own = measured(PARTS[part], data, test)
            kept = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.is_file() else {}
            write_text(FIGURES, json.dumps(kept | {part: own}, indent=1) + "\n")
            print(part, own, flush=True)
        return
    tables()


if __name__ == "__main__":
    main()
