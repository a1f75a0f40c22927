"""What observers say, against what is known: inflection layers, effective rank, cosines of tasks.

python evidence/levers/observers.py      # three seeds, a CPU minute -> docs/evidence/levers-observers.json
"""

from __future__ import annotations

import copy

import torch
from figures import Row, measure, perceptron
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from trimtab.datasets.sonnets import SONNETS
from trimtab.models.gpt import ByteGPT
from trimtab.observe import InflectionProbe, delta_cka, effective_rank, task_cosines

LENGTH, LAYERS, BUDGET = 32, 4, 2
TEXT = torch.tensor(list(SONNETS.encode()))


class Added(nn.Module):
    """A Linear that is frozen, and a low-rank part beside it that learns."""

    def __init__(self, line: nn.Linear, rank: int) -> None:
        super().__init__()
        self.line = line
        self.down = nn.Parameter(torch.randn(rank, line.in_features) / line.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(line.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Both parts, added."""
        found: Tensor = self.line(x) + x @ self.down.T @ self.up.T
        return found


def text(kind: str, *, test: bool = False) -> Tensor:
    """The sonnets, or the sonnets backwards with every letter moved on by five; the last fifth is for the test."""
    whole = TEXT if kind == "a" else torch.where(TEXT >= 97, (TEXT - 97 + 5) % 26 + 97, TEXT).flip(0)
    cut = len(whole) * 4 // 5
    return whole[cut:] if test else whole[:cut]


def batches(data: Tensor, number: int, seed: int) -> list[Tensor]:
    """So many batches of sixteen lines, of one byte more than the network sees."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(data) - LENGTH, (number, 16), generator=generator)
    return [torch.stack([data[at : at + LENGTH + 1] for at in row]) for row in starts.tolist()]


def loss_of(net: nn.Module, batch: Tensor) -> Tensor:
    return cross_entropy(net(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def learn(net: nn.Module, data: Tensor, steps: int, seed: int) -> None:
    optimizer = torch.optim.Adam([one for one in net.parameters() if one.requires_grad], lr=3e-3)
    for batch in batches(data, steps, seed):
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        optimizer.step()


def adapted(source: nn.Module, layers: list[str], seed: int) -> float:
    """Loss on unseen lines of text B after 100 steps with low-rank parts in these layers, the same number of weights in all."""
    torch.manual_seed(seed)
    net = copy.deepcopy(source).requires_grad_(requires_grad=False)
    for name in layers:
        layer = net.get_submodule(name)
        for at in (0, 2):
            layer.mlp[at] = Added(layer.mlp[at], 4 * LAYERS // len(layers))
    learn(net, text("b"), 100, seed)
    with torch.no_grad():
        return sum(loss_of(net, batch).item() for batch in batches(text("b", test=True), 8, seed)) / 8


def inflection(seed: int) -> Row:
    """A source trained for 60 and for 240 steps on text A, looked at on text B, and adapted to it."""
    found: Row = {}
    for name, steps in (("under", 60), ("over", 240)):
        torch.manual_seed(seed)
        net = ByteGPT(256, LENGTH, dim=32, depth=LAYERS, heads=2)
        learn(net, text("a"), steps, seed)
        probe = InflectionProbe(net)
        rows = probe.run(batches(text("b"), 1, seed)[0], loss_of)
        found[f"{name} entropy"] = sum(row.entropy for row in rows) / LAYERS
        found[f"{name} least entropy"] = min(row.entropy for row in rows)
        found[f"{name} gradient"] = min(row.activation_gradient for row in rows)
    by_index = [row.layer for row in sorted(rows, key=lambda row: -row.ski)]
    picked = [*probe.candidates(BUDGET), *by_index]
    chosen = list(dict.fromkeys(picked))[:BUDGET]
    others = [name for name in by_index if name not in chosen][:BUDGET]
    every = [row.layer for row in rows]
    for name, layers in (("candidates", chosen), ("other layers", others), ("every layer", every)):
        found[f"adapted {name}"] = adapted(net, sorted(layers), seed)
    before = copy.deepcopy(net)
    inputs = batches(text("b"), 1, seed)[0][:, :-1]
    found["delta cka untrained"] = max(delta_cka(before, net, inputs, every).values())
    learn(net, text("b"), 60, seed)
    found["delta cka trained"] = min(delta_cka(before, net, inputs, every).values())
    return found


def ranks(seed: int) -> Row:
    """Effective rank of what a linear autoencoder with a waist of r learned of white data: r."""
    found: Row = {}
    for waist in (2, 4, 8):
        torch.manual_seed(seed)
        data = torch.randn(2000, 16)
        net = nn.Sequential(nn.Linear(16, waist, bias=False), nn.Linear(waist, 16, bias=False))
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(500):
            optimizer.zero_grad()
            mse_loss(net(data), data).backward()
            optimizer.step()
        found[f"rank of waist {waist}"] = float(effective_rank(net[1].weight @ net[0].weight))
    return found


def cosines(seed: int) -> Row:
    """Cosines of the gradients of two regressions whose teachers stand at 30, 90 and 150 degrees; and whether the sign tells

    if a small step for one of six tasks of a perceptron lowers the loss of another.
    """
    found: Row = {}
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(20_000, 8, generator=generator)
    weight = torch.zeros(8, requires_grad=True)
    for degrees in (30, 90, 150):
        angle = torch.tensor(degrees * torch.pi / 180)
        teachers = torch.zeros(2, 8)
        teachers[0, 0], teachers[1, 0], teachers[1, 1] = 1, angle.cos(), angle.sin()
        both = task_cosines([mse_loss(inputs @ weight, inputs @ one) for one in teachers], [weight])
        found[f"cosine error {degrees}"] = abs(float(both.cosines[0, 1]) - float(angle.cos()))
    torch.manual_seed(seed)
    net, inputs = perceptron(8, 16, 6, active=nn.Tanh), inputs[:500]
    targets = inputs @ torch.randn(8, 6)

    def losses() -> list[Tensor]:
        return list((net(inputs).mean(1, keepdim=True) - targets).square().mean(0))

    values = losses()
    signs = task_cosines(values, net.parameters()).cosines
    slopes = [torch.autograd.grad(value, list(net.parameters()), retain_graph=True) for value in values]
    right = pairs = 0
    for one in range(6):
        with torch.no_grad():
            for parameter, slope in zip(net.parameters(), slopes[one], strict=True):
                parameter -= 1e-4 * slope
            after = losses()
            for parameter, slope in zip(net.parameters(), slopes[one], strict=True):
                parameter += 1e-4 * slope
        for other in range(6):
            if other != one:
                pairs += 1
                right += bool((after[other] < values[other]) == (signs[one, other] > 0))
    return found | {"signs told right": right / pairs}


def figures(seed: int) -> Row:
    """What the table shows, of one seed."""
    return inflection(seed) | ranks(seed) | cosines(seed)


if __name__ == "__main__":
    measure("observers", figures, seeds=3)
