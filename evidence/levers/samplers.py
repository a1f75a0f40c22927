"""What is drawn: coresets of batches, questions of middling difficulty, packed rows; a first bias; guided scaling.

python evidence/levers/samplers.py      # ten seeds, two CPU minutes -> docs/evidence/levers-samplers.json
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from figures import Row, accuracy, best, digits, measure, perceptron
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from trimtab.curricula import BatchCoreset, BetaDifficultySampler, Moments, VarianceSampler, pack
from trimtab.losses import balance
from trimtab.models import prior_bias_

RATES = (0.001, 0.003, 0.01)
REFERENCES = {"to position": 1, "to class": 0}
"""Which loss keeps its size under guided scaling; the paper's is the position."""
ITEMS, GROUP, ASKED, UPDATES = 1000, 8, 32, 400


def uneven(data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Of the digits 5 to 9 every tenth only."""
    rare = (data[1] >= 5).nonzero().flatten()
    kept = torch.cat([(data[1] < 5).nonzero().flatten(), rare[::10]])
    return data[0][kept], data[1][kept]


def coreset(kind: str, rate: float, seed: int, *, tuning: bool) -> float:
    """Accuracy over all digits, after 200 steps on 64 examples of batches of 128 (or on all of them)."""
    torch.manual_seed(seed)
    parts = digits(seed)
    images, labels = uneven(parts.train)
    net, generator = perceptron(64, 32, 10), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    choose = BatchCoreset(ratio=0.5, keep_sources=("rare",) if kind == "sources" else ())
    for _ in range(200):
        rows = torch.randperm(len(images), generator=generator)[:128]
        if kind == "random":
            rows = rows[:64]
        elif kind != "full":
            with torch.no_grad():
                hidden = net[:-1](images[rows])
            last = net[-1].weight
            sources = (
                ["rare" if label >= 5 else "common" for label in labels[rows].tolist()] if kind == "sources" else None
            )
            found = choose.by_last_layer(
                net[-1](hidden).detach(), labels[rows], hidden, sources, moments=Moments.of(optimizer, last)
            )
            rows = rows[found.indices]
        optimizer.zero_grad()
        cross_entropy(net(images[rows]), labels[rows]).backward()
        optimizer.step()
    part = parts.validation if tuning else parts.test
    return accuracy(net(part[0]), part[1])


@cache
def rate_of(kind: str) -> float:
    return best(RATES, lambda rate, seed: coreset(kind, rate, seed, tuning=True))


def questions(kind: str, seed: int) -> tuple[float, float]:
    """Share of mixed groups over the last half of the updates, and the mean pass rate at the end.

    A thousand questions of logits from N(-3, 2); a question that is tried with a mixed group gains p (1 - p), as policy
    gradients with a group advantage do, and all gain a twentieth of the mean gain, since they have something in common.
    """
    generator = np.random.default_rng(seed)
    logits = generator.normal(-3, 2, ITEMS)
    sampler = {
        "vas": lambda: VarianceSampler(ITEMS, seed=seed),
        "vade": lambda: BetaDifficultySampler(ITEMS, batch=ASKED, seed=seed),
        "vade without decay": lambda: BetaDifficultySampler(ITEMS, batch=ASKED, seed=seed, seen=1.0, unseen=1.0),
        "uniform": lambda: None,
    }[kind]()
    mixed = []
    for update in range(UPDATES):
        rates = 1 / (1 + np.exp(-logits))
        if isinstance(sampler, VarianceSampler) and sampler.due(update):
            sampler.update(range(ITEMS), generator.binomial(32, rates) / 32)
        drawn = generator.choice(ITEMS, ASKED, replace=False) if sampler is None else sampler.draw(ASKED).numpy()
        right = generator.binomial(GROUP, rates[drawn])
        both = (right > 0) & (right < GROUP)
        mixed.append(both.mean())
        gains = np.where(both, right * (GROUP - right) / GROUP**2, 0)
        np.add.at(logits, drawn, gains)
        logits += 0.05 * gains.mean()
        if isinstance(sampler, BetaDifficultySampler):
            sampler.update(drawn, right, GROUP - right)
    return float(np.mean(mixed[UPDATES // 2 :])), float((1 / (1 + np.exp(-logits))).mean())


def prior(seed: int) -> Row:
    """Loss of 1,000 boxes of which one holds an object: at first and after 50 steps, with the bias at zero and at the prior."""
    found: Row = {}
    for name in ("zero", "prior"):
        torch.manual_seed(seed)
        inputs = torch.randn(20_000, 16)
        targets = torch.zeros(len(inputs), 1)
        targets[::1000] = 1
        inputs += targets
        net = perceptron(16, 32, 1)
        nn.init.normal_(net[-1].weight, std=0.01)
        nn.init.zeros_(net[-1].bias)
        if name == "prior":
            prior_bias_(net[-1], 0.001)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for step in range(51):
            loss = binary_cross_entropy_with_logits(net(inputs), targets)
            if step in (0, 50):
                found[f"loss {name} {step}"] = loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found["entropy of the prior"] = -0.001 * math.log(0.001) - 0.999 * math.log(0.999)
    return found


def guided(kind: str, rate: float, seed: int, *, tuning: bool) -> tuple[float, float]:
    """Accuracy, and unexplained share of a position, beside a hundredfold loss of classes: sum or guided scaling."""
    torch.manual_seed(seed)
    parts = digits(seed)
    net = perceptron(64, 32, 11)
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    images, labels = parts.train
    places = torch.arange(64.0) % 8 / 8

    def position(images: Tensor) -> Tensor:
        """Mean column of the ink, standardised."""
        found = images @ places / images.sum(1)
        return (found - 0.46) / 0.03

    for _ in range(200):
        out = net(images)
        terms = [100 * cross_entropy(out[:, :10], labels), mse_loss(out[:, 10], position(images))]
        optimizer.zero_grad()
        sum(terms if kind == "sum" else balance(terms, REFERENCES[kind])).backward()
        optimizer.step()
    images, labels = parts.validation if tuning else parts.test
    out, aim = net(images), position(images)
    return accuracy(out[:, :10], labels), (mse_loss(out[:, 10], aim) / aim.var()).item()


@cache
def guided_rate(kind: str) -> float:
    def score(rate: float, seed: int) -> float:
        right, left = guided(kind, rate, seed, tuning=True)
        return right - left if math.isfinite(left) else -math.inf

    return best((0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3), score)


def packed(seed: int) -> Row:
    """Share of a batch that is padding: sixteen rows at random, sixteen of like length, packed to the same number of tokens."""
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(4.5, 0.7, 4096), 8, 1024).astype(int)

    def padding(order: np.ndarray) -> float:
        batches = lengths[order].reshape(-1, 16)
        return float(1 - lengths.sum() / (batches.max(1) * 16).sum())

    bins = pack(lengths.tolist(), capacity=2048)
    return {
        "padding random": padding(generator.permutation(len(lengths))),
        "padding by length": padding(lengths.argsort()),
        "padding packed": float(1 - lengths.sum() / (len(bins) * 2048)),
        "bins over the bound": len(bins) / math.ceil(lengths.sum() / 2048),
    }


def figures(seed: int) -> Row:
    """What the table shows, of one seed."""
    found: Row = {}
    for kind in ("full", "random", "coreset", "sources"):
        found[f"{kind} accuracy"] = coreset(kind, rate_of(kind), seed, tuning=False)
        found[f"{kind} rate"] = rate_of(kind)
    for kind in ("uniform", "vas", "vade", "vade without decay"):
        found[f"{kind} mixed"], found[f"{kind} pass rate"] = questions(kind, seed)
    for kind in ("sum", *REFERENCES):
        found[f"{kind} class"], found[f"{kind} position"] = guided(kind, guided_rate(kind), seed, tuning=False)
        found[f"{kind} rate"] = guided_rate(kind)
    return found | prior(seed) | packed(seed)


if __name__ == "__main__":
    measure("samplers", figures, seeds=10)
