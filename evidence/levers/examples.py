"""Scores of examples on digits of which a tenth is labelled wrongly: do they find those, and is what they keep worth more?

A perceptron 64-64-10, Adam at 1e-3, batches of 64, 20 epochs. EL2N is the mean over the first ten, forgetting over all;
GraNd, VoG and TracIn look at the states after epochs 2, 4, 6.

python evidence/levers/examples.py      # ten seeds, under a CPU minute -> docs/evidence/levers-examples.json
"""

from __future__ import annotations

import torch
from figures import Row, accuracy, digits, fit, measure, perceptron
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import cross_entropy

from trimtab.datasets import keep
from trimtab.observe import ExampleScores

EPOCHS, EARLY, LOOKED, RATE = 20, 10, (2, 4, 6), 1e-3


def flipped(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A tenth of the labels replaced by another one, and which."""
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(len(labels), generator=generator)[: len(labels) // 10]
    changed = labels.clone()
    changed[wrong] = (labels[wrong] + torch.randint(1, 10, (len(wrong),), generator=generator)) % 10
    return changed, changed != labels


def scored(images: Tensor, labels: Tensor, seed: int) -> dict[str, Tensor]:
    """Every score, from one run."""
    torch.manual_seed(seed)
    net, generator = perceptron(64, 64, 10), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE)
    early, along = ExampleScores(len(images)), ExampleScores(len(images))
    states = []
    for epoch in range(1, EPOCHS + 1):
        for ids in torch.randperm(len(images), generator=generator).split(64):
            logits = net(images[ids])
            for scores in (early, along) if epoch <= EARLY else (along,):
                scores.see(ids, logits, labels[ids])
            optimizer.zero_grad()
            cross_entropy(logits, labels[ids]).backward()
            optimizer.step()
        early.end_epoch()
        along.end_epoch()
        if epoch in LOOKED:
            states.append({name: value.clone() for name, value in net.state_dict().items()})
    batches = [(torch.arange(len(images)), images, labels)]
    along.look(net, batches, ("grand", "vog", "tracin"), states, rates=[RATE] * len(states))
    found = {name: along.values(name) for name in ("forgetting", "grand", "vog", "tracin")}
    return {"el2n": early.values("el2n"), **found}


def figures(seed: int) -> Row:
    """What the table shows, of one seed."""
    parts = digits(seed, train=1200, validation=0)
    images, right = parts.train
    labels, wrong = flipped(right, seed)
    found: Row = {}
    everything = scored(images, labels, seed)
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + 1))
    rows = {"all": torch.arange(len(images))}
    for part in (70, 90):
        rows[f"random {part}"] = drawn[: part * len(images) // 100]
    for name, values in everything.items():
        ranks = values.nan_to_num(posinf=1e9)
        found[f"{name} auroc"] = float(roc_auc_score(wrong, ranks))
        for part in (70, 90):
            rows[f"{name} {part}"] = keep(values, part / 100, "easy", by_class=labels)
    for name, kept in rows.items():
        torch.manual_seed(seed)
        net = fit(perceptron(64, 64, 10), (images[kept], labels[kept]), 400, RATE * 3, seed)
        found[f"{name} accuracy"] = accuracy(net(parts.test[0]), parts.test[1])
    return found


if __name__ == "__main__":
    measure("examples", figures, seeds=10)
