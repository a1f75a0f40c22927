"""Optimizers and rules of the step where the answer is known: friction, projection, memory of a task, growth of the batch.

python evidence/levers/steps.py      # five seeds, a CPU minute -> docs/evidence/levers-steps.json
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from figures import Row, accuracy, best, digits, measure, perceptron
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy, normalize

from trimtab.curricula import AdaptiveBatchSize
from trimtab.optimizers import CLASSP, SGDP, AdamP, DiffGrad, lora_plus_groups, scale_learning_rate

_chosen: dict[str, tuple[float, ...]] = {}
"""What was best on the seeds for tuning."""

# DiffGrad: three functions after its paper's, not checked against it, with a minimum that Adam runs past


def valley(x: Tensor) -> Tensor:
    """Two parabolas side by side, the left one deeper."""
    return torch.where(x <= 0, (x + 0.3) ** 2, (x - 0.2) ** 2 + 0.05)


def wall(x: Tensor) -> Tensor:
    """A steep wall, and waves behind it."""
    return torch.where(x <= -0.9, -40 * x - 35.15, x**3 + x * (8 * x).sin() + 0.85)


def roof(x: Tensor) -> Tensor:
    """A parabola with a tooth in the middle, whose tip at 0 is the lowest place near by."""
    size = x.abs()
    return torch.where(size > 0.5, x**2, torch.where(size > 0.4, 0.75 - size, 0.875 * size))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"valley": valley, "wall": wall, "roof": roof}


def friction(seed: int) -> Row:
    """Value after 300 steps at rate 0.1 from near -1; Adam at that rate and at half of it."""
    start = -1 + 0.1 * (torch.rand((), generator=torch.Generator().manual_seed(seed)).item() - 0.5)
    found: Row = {}
    for name, function in FUNCTIONS.items():
        for how in ("diffgrad", "adam", "adam at half"):
            x = torch.tensor([start], requires_grad=True)
            optimizer = (
                DiffGrad([x], lr=0.1) if how == "diffgrad" else torch.optim.Adam([x], lr=0.1 / (1 + (how != "adam")))
            )
            for _ in range(300):
                optimizer.zero_grad()
                function(x).sum().backward()
                optimizer.step()
            found[f"{name} {how}"] = function(x).item()
    return found


# SGDP and AdamP: directions are learned, so that lengths of weights mean nothing


def directions(seed: int) -> Row:
    """Growth of the norm of eight vectors of 16, and distance from the targets' directions, after 1,000 steps with noise."""
    found: Row = {}
    for name, build in (
        ("sgd", lambda weights: torch.optim.SGD(weights, lr=0.1, momentum=0.9)),
        ("sgdp", lambda weights: SGDP(weights, lr=0.1, momentum=0.9)),
        ("adam", lambda weights: torch.optim.Adam(weights, lr=0.01)),
        ("adamp", lambda weights: AdamP(weights, lr=0.01)),
    ):
        torch.manual_seed(seed)
        weight, target = nn.Parameter(normalize(torch.randn(8, 16))), normalize(torch.randn(8, 16))
        optimizer = build([weight])
        for _ in range(1000):
            optimizer.zero_grad()
            seen = normalize(target + 0.5 * torch.randn(8, 16) / 4)
            (1 - (normalize(weight) * seen).sum(1)).mean().backward()
            optimizer.step()
        found[f"{name} growth"] = weight.detach().norm(dim=1).mean().item() - 1
        found[f"{name} distance"] = 1 - (normalize(weight.detach()) * target).sum(1).mean().item()
    return found


# CLASSP: digits, then digits with their pixels in another order

LEVEL, LONGEST = 0.9, 1000
SETTINGS: dict[str, list[tuple[float, ...]]] = {
    "sgd": [(rate,) for rate in (0.03, 0.1, 0.3, 1.0)],
    "adagrad": [(rate,) for rate in (0.003, 0.01, 0.03, 0.1)],
    "pull": [(0.3, strength) for strength in (0.001, 0.003, 0.01, 0.03)],
    "classp": [(rate, quantile) for rate in (0.03, 0.1, 0.3, 1.0) for quantile in (0.0, 0.5, 0.9)],
}


def two_tasks(how: str, setting: tuple[float, ...], seed: int, part: str = "test") -> Row:
    """Accuracy on the first task when that on the second reaches 90 % of its validation part; and the steps that took."""
    torch.manual_seed(seed)
    data = digits(seed)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    net = perceptron(64, 64, 10)
    rate = setting[0]
    if how == "classp":
        optimizer: torch.optim.Optimizer = CLASSP(net.parameters(), lr=0.1, quantile=setting[1], scaling=False)
    elif how == "adagrad":
        optimizer = torch.optim.Adagrad(net.parameters(), lr=rate)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    held = [torch.zeros_like(one) for one in net.parameters()]
    draws = torch.Generator().manual_seed(seed)
    for step in range(400 + LONGEST):
        second = step >= 400
        if step == 400:
            held = [one.detach().clone() for one in net.parameters()]
            if isinstance(optimizer, CLASSP):
                optimizer.start_task()
            for group in optimizer.param_groups:
                group["lr"] = rate
        rows = torch.randint(len(data.train[0]), (64,), generator=draws)
        images = data.train[0][rows]
        optimizer.zero_grad()
        loss = cross_entropy(net(images[:, order] if second else images), data.train[1][rows])
        if second and how == "pull":
            ends = zip(net.parameters(), held, strict=True)
            loss = loss + setting[1] * sum((one - other).square().sum() for one, other in ends)
        loss.backward()
        optimizer.step()
        if second and step % 5 == 0:
            images, labels = data.validation
            with torch.no_grad():
                if accuracy(net(images[:, order]), labels) >= LEVEL:
                    break
    images, labels = getattr(data, part)
    with torch.no_grad():
        return {
            "first": accuracy(net(images), labels),
            "second": accuracy(net(images[:, order]), labels),
            "steps": float(step - 400),
        }


def memories(seed: int) -> Row:
    """Each way at the setting that keeps most of the first task, among those that learn the second."""
    found: Row = {}
    for how, settings in SETTINGS.items():
        if how not in _chosen:

            def kept(setting: tuple[float, ...], at: int, how: str = how) -> float:
                row = two_tasks(how, setting, at, "validation")
                return row["first"] if row["steps"] < LONGEST - 1 else 0.0

            _chosen[how] = best(settings, kept)
        found |= {f"{how} {key}": value for key, value in two_tasks(how, _chosen[how], seed).items()}
        found |= {f"{how} setting {at}": value for at, value in enumerate(_chosen[how])}
    return found


# AdaptiveBatchSize: a perceptron on digits by AdaGrad, until 95 % of the test part are told


def gradients_of(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """One row for each example."""
    weights = {name: one.detach() for name, one in net.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(net, weights, (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(weights, images, labels)
    return torch.cat([one.flatten(1) for one in each.values()], 1)


def until(eta: float | None, seed: int, part: str = "test") -> Row:
    """Examples seen and steps taken until 95 %; `eta` None for a batch of 16 throughout."""
    torch.manual_seed(seed)
    data, net = digits(seed), perceptron(64, 32, 10)
    optimizer = torch.optim.Adagrad(net.parameters(), lr=0.03)
    schedule = AdaptiveBatchSize(16, 1000, eta=eta or 1.0, every=10)
    images, labels = getattr(data, part)
    draws, seen, looked = torch.Generator().manual_seed(seed), 0, 0
    steps = 0
    while steps < 5000:
        steps += 1
        rows = torch.randint(len(data.train[0]), (schedule.size if eta else 16,), generator=draws)
        batch = data.train[0][rows], data.train[1][rows]
        seen += len(rows)
        if eta:
            schedule.update(gradients_of(net, *batch) if schedule.calls % 10 == 0 else torch.zeros(2, 1))
        optimizer.zero_grad()
        cross_entropy(net(batch[0]), batch[1]).backward()
        optimizer.step()
        if seen // 500 > looked:
            looked = seen // 500
            with torch.no_grad():
                if accuracy(net(images), labels) >= 0.95:
                    break
    return {"examples": float(seen), "steps": float(steps), "batch": float(schedule.size)}


def growing(seed: int) -> Row:
    """Growing batches, and a batch of 16."""
    if "eta" not in _chosen:

        def steps(eta: float, at: int) -> float:
            grown, fixed = until(eta, at, "validation"), until(None, at, "validation")
            return -grown["steps"] if grown["examples"] <= 1.2 * fixed["examples"] else -5000.0

        _chosen["eta"] = (best((0.5, 1.0, 1.2, 1.4, 1.7), steps),)
    eta = _chosen["eta"][0]
    rows = {"grown": until(eta, seed), "fixed": until(None, seed)}
    return {"eta": eta} | {f"{name} {key}": value for name, row in rows.items() for key, value in row.items()}


# scale_learning_rate: the largest rate that a batch bears

BATCHES = (4, 16, 64, 256)


def bears(batch: int, rate: float, how: str, seed: int) -> bool:
    """Whether the loss after 100 steps is below where it began."""
    torch.manual_seed(seed)
    data, net = digits(seed).train, perceptron(64, 32, 10)
    optimizer: torch.optim.Optimizer = (torch.optim.SGD if how == "sgd" else torch.optim.Adam)(
        net.parameters(), lr=rate
    )
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        before = cross_entropy(net(data[0]), data[1]).item()
    for _ in range(100):
        rows = torch.randint(len(data[0]), (batch,), generator=draws)
        optimizer.zero_grad()
        cross_entropy(net(data[0][rows]), data[1][rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return cross_entropy(net(data[0]), data[1]).item() < before  # NaN is not


def largest(batch: int, how: str, seed: int) -> float:
    """By bisection of the logarithm, to a tenth."""
    low, high = math.log(1e-3), math.log(1e3)
    while high - low > 0.1:
        middle = (low + high) / 2
        low, high = (middle, high) if bears(batch, math.exp(middle), how, seed) else (low, middle)
    return math.exp(low)


def slope(values: Iterable[tuple[float, float]]) -> float:
    """Of the logarithms, by least squares."""
    pairs = torch.tensor([(math.log(x), math.log(y)) for x, y in values])
    centred = pairs - pairs.mean(0)
    return float((centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum())


def batches(seed: int) -> Row:
    """Largest rates, their slope over the batch, and whether the rule's rate from the smallest batch is borne by the others."""
    found: Row = {}
    for how, rule in (("sgd", "linear"), ("adam", "sqrt")):
        rates = {batch: largest(batch, how, seed) for batch in BATCHES}
        found |= {f"{how} rate {batch}": rate for batch, rate in rates.items()}
        found[f"{how} slope"] = slope(rates.items())
        scaled = {batch: scale_learning_rate(rates[BATCHES[0]], BATCHES[0], batch, rule) for batch in BATCHES}  # type: ignore[arg-type]
        found[f"{how} borne"] = sum(scaled[batch] <= 1.2 * rates[batch] for batch in BATCHES) / len(BATCHES)
    return found


# LoRA+: an adapter of rank 4 in a wide layer finds a change of rank 4


class Adapted(nn.Module):
    """A product `x A^T B^T` that is to become `x W^T`."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)
        nn.init.normal_(self.lora_A.weight, std=width**-0.5)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape as x."""
        found: Tensor = self.lora_B(self.lora_A(x))
        return found


def adapter(ratio: float, rate: float, seed: int) -> float:
    """Share of the change that is not found after 50 steps of Adam."""
    torch.manual_seed(seed)
    width, rank = 256, 4
    change = torch.randn(width, rank) @ torch.randn(rank, width) / width
    net = Adapted(width, rank)
    optimizer = torch.optim.Adam(lora_plus_groups(net, rate, ratio))
    for _ in range(50):
        inputs = torch.randn(64, width)
        optimizer.zero_grad()
        (net(inputs) - inputs @ change.T).square().mean().backward()
        optimizer.step()
    left = net.lora_B.weight.detach() @ net.lora_A.weight.detach() - change
    return (left.square().sum() / change.square().sum()).item()


def adapters(seed: int) -> Row:
    """One rate for both factors, and B sixteen times as fast, each at its best rate."""
    found: Row = {}
    for name, ratio in (("lora", 1.0), ("lora+", 16.0)):
        if name not in _chosen:
            rates = [1e-4 * 2.0**k for k in range(11)]
            _chosen[name] = (best(rates, lambda rate, at, ratio=ratio: -adapter(ratio, rate, at)),)  # type: ignore[misc]
        found |= {f"{name} left": adapter(ratio, _chosen[name][0], seed), f"{name} rate": _chosen[name][0]}
    return found


def figures(seed: int) -> Row:
    """What the table shows, of one seed."""
    return friction(seed) | directions(seed) | memories(seed) | growing(seed) | batches(seed) | adapters(seed)


if __name__ == "__main__":
    measure("steps", figures)
