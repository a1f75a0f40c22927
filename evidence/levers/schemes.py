"""Averaged weights, the two pieces of rectified flow, NoProp, attention residuals, boosted perceptrons, gradient reversal.

python evidence/levers/schemes.py      # three seeds, a CPU minute -> docs/evidence/levers-schemes.json
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from figures import Row, accuracy, best, digits, fit, measure, perceptron
from sklearn.datasets import make_friedman1
from sklearn.neural_network import MLPRegressor
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

import trimtab
from trimtab.averaging import MeanWeights
from trimtab.gradients import GradientReversal
from trimtab.losses import pseudo_huber
from trimtab.models import AttentionResidual
from trimtab.observe.curvature import Hessian, Objective, top_eigenvalues
from trimtab.schemes import GBNNRegressor, NoProp, UShapedTimestep


def averaged(seed: int) -> Row:
    """Loss on the test part and largest eigenvalue of the Hessian, of the last weights and of the mean over the last half."""
    found: Row = {}
    parts = digits(seed)
    for name in ("last", "mean"):
        torch.manual_seed(seed)
        net, generator = perceptron(64, 24, 10, active=nn.Tanh), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        handle = trimtab.attach(optimizer, MeanWeights(start=0.5, total_steps=600)) if name == "mean" else None
        for _ in range(600):
            rows = torch.randint(1000, (16,), generator=generator)
            optimizer.zero_grad()
            cross_entropy(net(parts.train[0][rows]), parts.train[1][rows]).backward()
            optimizer.step()
        if handle is not None:
            handle.finish()
        objective = Objective(net, cross_entropy, parts.train)
        found[f"{name} eigenvalue"] = float(top_eigenvalues(Hessian(objective), seed=seed).values[0])
        with torch.no_grad():
            found[f"{name} loss"] = cross_entropy(net(parts.test[0]), parts.test[1]).item()
    return found


def _flow() -> nn.Module:
    return perceptron(3, 64, 64, 2, active=nn.SiLU)


def _ring(number: int, generator: torch.Generator) -> Tensor:
    """Eight blobs on a circle."""
    angles = torch.randint(8, (number,), generator=generator) * (torch.pi / 4)
    return 2 * torch.stack([angles.cos(), angles.sin()], 1) + 0.1 * torch.randn(number, 2, generator=generator)


def _taught(seed: int, draw: str, loss: str, rate: float, pairs: tuple[Tensor, Tensor] | None, steps: int) -> nn.Module:
    """A flow on pairs (noise, data); without pairs a first one, on noise and data that do not belong together."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = _flow()
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    for _ in range(steps):
        if pairs is None:
            noise, data = torch.randn(256, 2, generator=generator), _ring(256, generator)
        else:
            rows = torch.randint(len(pairs[0]), (256,), generator=generator)
            noise, data = pairs[0][rows], pairs[1][rows]
        t = UShapedTimestep().sample(256, generator=generator) if draw == "u" else torch.rand(256, generator=generator)
        given = torch.cat([(1 - t)[:, None] * noise + t[:, None] * data, t[:, None]], 1)
        value = (pseudo_huber if loss == "huber" else mse_loss)(net(given), data - noise)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return net


@torch.no_grad()
def _sent(net: nn.Module, noise: Tensor, steps: int) -> Tensor:
    x = noise
    for step in range(steps):
        x = x + net(torch.cat([x, torch.full((len(x), 1), step / steps)], 1)) / steps
    return x


@cache
def _pairs(seed: int) -> tuple[Tensor, Tensor]:
    """Noise and where a first flow sends it."""
    first = _taught(seed, "even", "squared", 3e-3, None, 600)
    noise = torch.randn(4096, 2, generator=torch.Generator().manual_seed(seed + 1))
    return noise, _sent(first, noise, 30)


def second_flow(kind: tuple[str, str], rate: float, seed: int, *, tuning: bool) -> float:
    """Mean distance between one step of the second flow and where the first one goes, on noise it has not seen."""
    noise, data = _pairs(seed)
    net = _taught(seed, *kind, rate, (noise[:3072], data[:3072]), 300)
    part = slice(3072, 3584) if tuning else slice(3584, 4096)
    return (_sent(net, noise[part], 1) - data[part]).norm(dim=1).mean().item()


@cache
def flow_rate(kind: tuple[str, str]) -> float:
    return best((3e-3, 1e-2), lambda rate, seed: -second_flow(kind, rate, seed, tuning=True))


class Block(nn.Module):
    """One block of NoProp."""

    def __init__(self) -> None:
        super().__init__()
        self.net = perceptron(10 + 64, 64, 10)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        """The output."""
        found: Tensor = self.net(torch.cat([z, x], 1))
        return found


def without_backpropagation(seed: int) -> Row:
    """Accuracy of ten blocks trained apart from each other, and of the same chain of blocks trained through."""
    parts, found = digits(seed), Row()
    for name in ("noprop", "through"):
        torch.manual_seed(seed)
        net, generator = NoProp([Block() for _ in range(10)], torch.eye(10)), torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(300):
            rows = torch.randint(1000, (64,), generator=generator)
            x, y = parts.train[0][rows], parts.train[1][rows]
            if name == "noprop":
                loss = net.loss(x, y, generator)
            else:
                z = torch.zeros(64, 10)
                for block in net.blocks:
                    z = z + block(z, x)
                loss = cross_entropy(net.head(z), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x, y = parts.test
        if name == "noprop":
            found[name] = accuracy(net(x, generator, noise=False), y)
        else:
            z = torch.zeros(len(x), 10)
            for block in net.blocks:
                z = z + block(z, x)
            found[name] = accuracy(net.head(z), y)
    return found


class Deep(nn.Module):
    """Eight layers before whose input the outputs so far are added, or mixed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(8)
        )
        self.mixes = nn.ModuleList(AttentionResidual(32) for _ in range(9)) if kind == "mixed" else None

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        sources = [self.first(x)]
        self.sizes: list[float] = []
        for at in range(9):
            h = torch.stack(sources).sum(0) if self.mixes is None else self.mixes[at](sources)
            self.sizes.append(h.detach().norm(dim=1).mean().item())
            if at < 8:
                sources.append(self.layers[at](h))
        found: Tensor = self.head(h)
        return found


def depth(kind: str, rate: float, seed: int, *, tuning: bool) -> tuple[float, float]:
    """Accuracy after 80 steps, and how many times as large the last layer's input is as the first one's."""
    torch.manual_seed(seed)
    parts = digits(seed)
    net = Deep(kind)
    fit(net, parts.train, 80, rate, seed)
    part = parts.validation if tuning else parts.test
    with torch.no_grad():
        return accuracy(net(part[0]), part[1]), net.sizes[-1] / net.sizes[0]


@cache
def depth_rate(kind: str) -> float:
    return best((1e-3, 3e-3), lambda rate, seed: depth(kind, rate, seed, tuning=True)[0])


def boosted(seed: int) -> Row:
    """R^2 on Friedman's first problem, 300 examples: boosted stages, and one perceptron of as many units trained at once."""
    X, y = make_friedman1(1500, n_features=10, noise=1.0, random_state=seed)
    part, rest, test = slice(0, 300), slice(300, 500), slice(500, None)
    scale = (y[part] - y[part].mean()) / y[part].std()
    models = {
        "gbnn": [GBNNRegressor(stages=50, learning_rate=rate, random_state=seed) for rate in (0.1, 0.3, 0.5, 1.0)],
        "perceptron": [
            MLPRegressor(
                hidden_layer_sizes=(50,),
                activation="tanh",
                solver="lbfgs",
                alpha=alpha,
                max_iter=500,
                random_state=seed,
            )
            for alpha in (0.01, 0.1, 1.0, 10.0)
        ],
    }
    found: Row = {}
    for name, grid in models.items():
        fitted = [one.fit(X[part], scale) for one in grid]
        aim = (y - y[part].mean()) / y[part].std()
        chosen = int(np.argmax([one.score(X[rest], aim[rest]) for one in fitted]))
        found |= {f"{name} r2": fitted[chosen].score(X[test], aim[test]), f"{name} setting": chosen}
    return found


def reversed_gradient(kind: str, seed: int) -> tuple[float, float]:
    """Accuracy on digits of another hospital, and how well a classifier of hospitals does on the features.

    There the pictures are darker and noisy; their labels are never seen.
    """
    torch.manual_seed(seed)
    parts = digits(seed)

    def elsewhere(images: Tensor) -> Tensor:
        return 0.4 * images + 0.3 + 0.1 * torch.randn_like(images)

    body, head, judge = perceptron(64, 64, 32), perceptron(32, 10), perceptron(32, 32, 2)
    reverse = GradientReversal(0.0)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters(), *judge.parameters()], lr=2e-3)
    here, there = parts.train[0][:500], elsewhere(parts.train[0][500:])
    for step in range(400):
        reverse.strength = float(2 / (1 + np.exp(-10 * step / 400)) - 1) if kind == "reversed" else 0.0
        features = body(torch.cat([here, there])).relu()
        domain = one_hot(torch.arange(1000) // 500, 2).float()
        loss = cross_entropy(head(features[:500]), parts.train[1][:500]) + cross_entropy(
            judge(reverse(features)), domain
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = parts.test
    both = body(torch.cat([x, elsewhere(x)])).relu().detach()
    torch.manual_seed(seed)
    rows = torch.arange(len(both)) % 2 == 0
    where = torch.arange(len(both)) // len(x)
    fresh = fit(perceptron(32, 32, 2), (both[rows], where[rows]), 200, 3e-3, seed)
    return accuracy(head(both[len(x) :]), y), accuracy(fresh(both[~rows]), where[~rows])


def figures(seed: int) -> Row:
    """What the table shows, of one seed."""
    found = averaged(seed) | without_backpropagation(seed) | boosted(seed)
    for draw, loss in (("even", "squared"), ("u", "squared"), ("even", "huber"), ("u", "huber")):
        rate = flow_rate((draw, loss))
        found |= {f"{draw} {loss}": second_flow((draw, loss), rate, seed, tuning=False), f"{draw} {loss} rate": rate}
    for kind in ("added", "mixed"):
        found[f"{kind} accuracy"], found[f"{kind} growth"] = depth(kind, depth_rate(kind), seed, tuning=False)
        found[f"{kind} rate"] = depth_rate(kind)
    for kind in ("plain", "reversed"):
        found[f"{kind} elsewhere"], found[f"{kind} told apart"] = reversed_gradient(kind, seed)
    return found


if __name__ == "__main__":
    measure("schemes", figures, seeds=3)
