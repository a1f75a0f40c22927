"""Levers on gradients on their way back, and a loss, where the answer is known.

python evidence/levers/backward.py      # five seeds, a CPU minute -> docs/evidence/levers-backward.json
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from figures import Row, accuracy, best, digits, fit, measure, perceptron
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from trimtab.gradients import NormMatch, TrAct, clip_vectors_
from trimtab.losses import stable_max_cross_entropy
from trimtab.observe import softmax_collapse

# PixelClip: a picture is found again from what a frozen network says of it, while every gradient is hit by heavy-tailed noise

CLIPS = [(lr, limit) for lr in (0.01, 0.1, 1.0, 3.0, 10.0) for limit in (0.001, 0.003, 0.01, 0.03)]


def picture(mode: str, rate: tuple[float, float], seed: int) -> float:
    """Squared error of the picture after 200 steps; the noise is the same for every mode."""
    torch.manual_seed(seed)
    eyes = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Tanh(), nn.Conv2d(16, 16, 3, padding=1))
    eyes.requires_grad_(requires_grad=False)
    target = torch.nn.functional.interpolate(torch.randn(1, 3, 4, 4), 16, mode="bilinear")
    image, seen = torch.zeros_like(target), eyes(target)
    lr, limit = rate
    noise = torch.distributions.StudentT(1.1)
    for _ in range(200):
        image.requires_grad_()
        gradient = torch.autograd.grad(16 * 16 * mse_loss(eyes(image), seen), image)[0]
        # a colour of its own for every pixel's noise, and a size that is now and then huge
        gradient += 0.3 * noise.sample((1, 1, 16, 16)) * torch.randn_like(gradient)
        if mode != "none":
            clip_vectors_(gradient, limit, mode=mode)  # type: ignore[arg-type]
        image = image.detach() - lr * gradient
    return mse_loss(image, target).nan_to_num(1e6, posinf=1e6).clamp(max=1e6).item()


def pictures(seed: int) -> Row:
    """Each way at its best rate and bound; and all of them at those of the clip of vectors."""
    found: Row = {}
    for mode in ("vector", "element", "none"):
        found[f"picture {mode}"] = picture(mode, chosen(mode), seed)
        found[f"rate {mode}"], found[f"bound {mode}"] = chosen(mode)
        found[f"picture alike {mode}"] = picture(mode, chosen("vector"), seed)
    return found


_chosen: dict[str, tuple[float, float]] = {}


def chosen(mode: str) -> tuple[float, float]:
    """Best rate and bound on the seeds for tuning."""
    if mode not in _chosen:
        _chosen[mode] = best(CLIPS, lambda rate, seed: -picture(mode, rate, seed))
    return _chosen[mode]


# NormMatch: two views of one digit, of which one counts a hundredfold where they meet


class TwoViews(nn.Module):
    """Two branches of eight units, whose outputs meet in one head; the second one's count a hundredfold."""

    def __init__(self, match: NormMatch | None) -> None:
        super().__init__()
        self.branches, self.head = nn.ModuleList(perceptron(64, 32, 8) for _ in range(2)), nn.Linear(16, 10)
        self.match = match

    def features(self, views: Tensor) -> list[Tensor]:
        """What each branch makes of its view."""
        return [branch(view) for branch, view in zip(self.branches, views.unbind(1), strict=True)]

    def forward(self, views: Tensor) -> Tensor:
        """Logits of shape (examples, 10) from views of shape (examples, 2, 64)."""
        weak, strong = self.features(views)
        if self.match is not None:
            weak, strong = self.match.match(weak, strong)
        found: Tensor = self.head(torch.cat([weak, 100 * strong], 1))
        return found


def branches(matched: str, lr: float, seed: int, part: str = "test") -> Row:
    """Accuracy of the whole, and of a probe on each branch, after 300 steps of SGD."""
    torch.manual_seed(seed)
    data = digits(seed)
    noise = torch.Generator().manual_seed(seed)

    def views(images: Tensor) -> Tensor:
        return torch.stack([images + 0.4 * torch.randn(images.shape, generator=noise) for _ in range(2)], 1)

    train = views(data.train[0]), data.train[1]
    images, labels = getattr(data, part)
    seen = views(images)
    net = TwoViews(NormMatch(target="geometric", max_factor=1000.0) if matched == "matched" else None)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(300):
        rows = torch.randint(len(train[0]), (64,), generator=draws)
        optimizer.zero_grad()
        cross_entropy(net(train[0][rows]), train[1][rows]).backward()
        optimizer.step()
    found: Row = {"whole": accuracy(net(seen), labels)}
    with torch.no_grad():
        features, tested = net.features(train[0]), net.features(seen)
    for name, inputs, outputs in zip(("weak", "strong"), features, tested, strict=True):
        spread, mean = inputs.std(0) + 1e-6, inputs.mean(0)
        probe = fit(nn.Linear(8, 10), ((inputs - mean) / spread, train[1]), 300, 0.03, seed)
        found[name] = accuracy(probe((outputs - mean) / spread), labels)
    return found


RATES = (1e-4, 1e-3, 1e-2, 1e-1)


def matching(seed: int) -> Row:
    """With and without, each at the rate of the best whole on validation parts."""
    found: Row = {}
    for name in ("matched", "plain"):
        if name not in _rates:
            score = lambda lr, at, name=name: branches(name, lr, at, "validation")["whole"]  # noqa: E731
            _rates[name] = best(RATES, score)
        found |= {f"{name} rate": _rates[name]} | {
            f"{name} {key}": value for key, value in branches(name, _rates[name], seed).items()
        }
    return found


_rates: dict[str, float] = {}


# TrAct: a small convolutional network on standardised digits, at its best rate for each number of epochs


def convolutional(how: str, epochs: int, lr: float, seed: int, part: str = "test") -> float:
    """Accuracy after so many epochs of SGD with momentum, cosine to zero."""
    torch.manual_seed(seed)
    data = digits(seed)
    mean, spread = data.train[0].mean(), data.train[0].std()
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )  # fmt: skip
    if how == "tract":
        TrAct(net[0])
    images, labels = ((data.train[0] - mean) / spread).view(-1, 1, 8, 8), data.train[1]
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    steps = epochs * 15
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    draws = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(labels), (64,), generator=draws)
        optimizer.zero_grad()
        cross_entropy(net(images[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    images, labels = getattr(data, part)
    return accuracy(net(((images - mean) / spread).view(-1, 1, 8, 8)), labels)


def first_layers(seed: int) -> Row:
    """Half and all of eight epochs."""
    found: Row = {}
    for name in ("tract", "plain"):
        for epochs in (4, 8):
            key = f"{name} {epochs}"
            if key not in _rates:
                score = lambda lr, at, name=name, epochs=epochs: convolutional(name, epochs, lr, at, "validation")  # noqa: E731
                _rates[key] = best((0.01, 0.03, 0.1, 0.3, 1.0), score)
            found[f"{key} rate"] = _rates[key]
            found[f"{key} accuracy"] = convolutional(name, epochs, _rates[key], seed)
    return found


# StableMax: what softmax absorbs in half precision, where no decay holds the logits back

PRIME, WIDTH, EPOCHS = 59, 128, 300


def absorbed(seed: int) -> Row:
    """(a + b) mod 59 from 40 % of the pairs, full-batch AdamW without decay; the loss is taken in float16.

    Share of the training pairs whose own logit has no gradient at the end.
    """
    a, b = torch.meshgrid(torch.arange(PRIME), torch.arange(PRIME), indexing="ij")
    inputs = torch.cat([one_hot(each.flatten(), PRIME) for each in (a, b)], 1).float()
    labels, order = ((a + b) % PRIME).flatten(), torch.randperm(PRIME**2, generator=torch.Generator().manual_seed(seed))
    train, test = order[: int(0.4 * PRIME**2)], order[int(0.4 * PRIME**2) :]
    torch.manual_seed(seed)
    start = nn.Sequential(
        nn.Linear(2 * PRIME, WIDTH, bias=False), nn.ReLU(), nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU(),
        nn.Linear(WIDTH, PRIME, bias=False),
    )  # fmt: skip
    found: Row = {}
    for name, loss in (("softmax", cross_entropy), ("stable max", partial(stable_max_cross_entropy, dtype=torch.half))):
        net = copy.deepcopy(start)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0)
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            loss(net(inputs[train]).half(), labels[train]).backward()
            optimizer.step()
        logits = net(inputs[train]).detach().half().requires_grad_()
        loss(logits, labels[train], reduction="sum").backward()
        gradient = logits.grad
        assert gradient is not None
        own = gradient.gather(1, labels[train].unsqueeze(1))
        found[f"{name} without gradient"] = float((own == 0).float().mean())
        found[f"{name} absorbed in float32"] = float(softmax_collapse(logits.detach().float(), labels[train]))
        found[f"{name} train"] = accuracy(logits, labels[train])
        found[f"{name} test"] = accuracy(net(inputs[test]), labels[test])
    return found


def figures(seed: int) -> Row:
    """What the table shows, of one seed."""
    return pictures(seed) | matching(seed) | first_layers(seed) | absorbed(seed)


if __name__ == "__main__":
    measure("backward", figures)
