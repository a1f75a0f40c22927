"""The battery's table: one row or more for every lever of the registry. What each row goes through stands in test_battery.py
(levers that act in `trimtab train`), test_battery_ranks.py (the same on two processes) and test_battery_probes.py (the others).

A new lever is one line in the registry, one row here, its formula in reference.py, one card. A lever that acts in training gets
a `Row`; any other one a `Probe`, which computes the same thing twice.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tests import reference
from tests.medclm.samples import source
from tests.reference import Array
from trimtab.curricula import STAGES, CurriculumSampler, Linear, weighted_cross_entropy
from trimtab.levers import attach
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.organs.rle import read_organs
from trimtab.observe.curvature import Objective, SpectralDensity
from trimtab.observe.landscape import random_directions
from trimtab.parameters import Entry, select
from trimtab.precision.randomness import Generators
from trimtab.registry import LEVERS, Home, create

RIGHT, LEFT_OUT, UNDONE = "right", "left out", "undone"
"""Beside these two a row may give the words with which such tensors are refused."""
DENSE = r"acts on dense gradients, that of table\.weight has layout torch\.sparse_coo.*exclude"
REAL = r"acts on real gradients, odd\.weight is torch\.complex128.*exclude"


@dataclass(frozen=True)
class Row:
    """How a lever that acts in training goes through the battery.

    Attributes:
        name: of the lever.
        reference: its formula.
        settings: given to the lever and the formula alike; strong enough to be seen.
        label: tells rows of one lever apart.
        tensors: what its default rule picks.
        sparse: `RIGHT`, or the words that refuse a sparse gradient of a parameter named "table.weight".
        complex: `RIGHT`, `LEFT_OUT`, or the words that refuse a complex parameter named "odd.weight".
        sharded: `RIGHT`, or the words that refuse sharded weights.
        elsewhere: `RIGHT`, or the words that refuse an optimizer whose state lies on other ranks.
        loose: how far it may be from the formula, where it computes in halves by its nature.
        joint: whether one NaN of a gradient reaches the whole tensor.
        other: settings that replace some in the checks named "sparse", "half" and "train".
        begun: what attaching it leaves, of the weights and a memory; None where it leaves them as they are.
        finished: what `Handle.finish` leaves, of the weights after every step; None where it leaves them as they are.
        steps: of the run, handed to a lever that names `total_steps`; 0 where it does not.
        network: whether its formula takes all matrices of the network, and a memory.
        rated: whether a wrapper's formula also gives what the learning rate is multiplied by.
        nan: `RIGHT`, or the words that refuse a NaN weight, or `UNDONE` where such a step is undone.
    """

    name: str
    reference: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""
    tensors: Literal["matrices", "all"] = "matrices"
    sparse: str = DENSE
    complex: str = REAL
    sharded: str = RIGHT
    elsewhere: str = RIGHT
    loose: float = 0.0
    joint: bool = False
    other: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    begun: Callable[..., Any] | None = None
    finished: Callable[..., Any] | None = None
    steps: int = 0
    network: bool = False
    rated: bool = False
    nan: str = RIGHT

    @property
    def home(self) -> Home:
        """Where the lever acts."""
        return LEVERS[self.name].home

    @property
    def given(self) -> Mapping[str, Any]:
        """What the formula takes: the settings, and what the lever's name fixes."""
        return {**LEVERS[self.name].fixed, **self.settings}

    def under(self, check: str) -> Row:
        """The row as it goes through that check."""
        return replace(self, settings={**self.settings, **self.other.get(check, {})})

    def create(self, *arguments: Any, **more: Any) -> Any:
        """The lever with the row's settings."""
        handed = {"total_steps": self.steps} if self.steps else {}
        return create(self.name, *arguments, **{**handed, **self.settings, **more})

    def __str__(self) -> str:
        return f"{self.name}-{self.label}" if self.label else self.name


@dataclass(frozen=True)
class Probe:
    """A lever that does not act in training by name: what it computes, and the same in NumPy, in one structure."""

    name: str
    compute: Callable[[], tuple[Any, Any]]

    def __str__(self) -> str:
        return self.name


NO_COMPLEX = r"perturbs real floating-point weights; .*torch\.complex128"
NO_SPARSE = r"needs dense gradients, that of table\.weight, .*torch\.sparse_coo"
WHOLE = r"selects over whole tensors and does not take sharded weights"
OF_STATE = "ZeroRedundancyOptimizer keeps that of a part of the weights alone"
RESETS: dict[str, Any] = {"sharded": WHOLE, "elsewhere": OF_STATE, "complex": LEFT_OUT}
GRADUAL = {"begin": 0.125, "end": 0.375, "every": 1, "initial": 0.2, "final": 0.7}
PHASES = {"sparsity": 0.6, "warm_up": 0.125, "phase": 0.125, "last_dense": 0.125, "last_sparse": 0.375}
DYNAMIC = {
    "sparsity": 0.6, "distribution": "uniform", "first_layer": "sparse", "start": "magnitude", "every": 1, "fraction": 0.4,
}  # fmt: skip
TOWARDS = {"n": 1, "m": 2, "begin": 0.125, "end": 0.375, "indivisible": "leave_out"}
MOVED = {"begin": 0.125, "end": 0.375, "every": 1, "initial": 0.2, "final": 0.7}
SELECTS = r"0\.weight holds NaN after 2 steps: .* cannot tell what is small"
CRAM = {"rho": 0.2, "sparsities": (0.6,)}
MUON: dict[str, Any] = {
    "sparse": RIGHT, "complex": LEFT_OUT, "loose": 4e-3, "joint": True,
    "sharded": "orthogonalises whole matrices and does not take sharded weights",
}  # fmt: skip
DENSE_STEPS: dict[str, Any] = {
    "sparse": r"acts on dense gradients, that of parameter 0 of group 0 has layout torch\.sparse_coo",
    "complex": r"acts on real parameters, parameter 0 of group 0 is torch\.complex128",
}
ADAMS: dict[str, Any] = {**DENSE_STEPS, "other": {"half": {"betas": (0.9, 0.9), "eps": 1e-3}}}
JUDGED = "judges whole tensors and does not take sharded weights"
ROWS = (
    Row("sgd", reference.sgd, {"weight_decay": 0.01}, sparse=RIGHT, complex=RIGHT, other={"sparse": {"weight_decay": 0.0}}),
    Row("sgd", reference.sgd, {"nesterov": True}, "nesterov", sparse=r"add\(sparse, dense\) is not supported", complex=RIGHT),
    Row("adamw", reference.adamw, {"lr": 0.01}, sparse="does not support sparse gradients", complex=RIGHT,
        other={"half": {"betas": (0.9, 0.9), "eps": 1e-3}}),
    Row("muon", reference.muon, {"lr": 0.01, "weight_decay": 0.1, "sgd_lr": 0.05}, **MUON),
    Row("muon", reference.muon, {"ns_steps": 3, "momentum": 0.6, "renormalize": True}, "renormalized", **MUON),
    Row("diffgrad", reference.diffgrad, {"lr": 0.01, "weight_decay": 0.1}, **ADAMS),
    Row("diffgrad", reference.diffgrad, {"lr": 0.01, "weight_decay": 0.1, "decoupled": True}, "decoupled", **ADAMS),
    Row("adamp", reference.adamp, {"lr": 0.01, "weight_decay": 0.1, "delta": 2.0}, **ADAMS, sharded=JUDGED),
    Row("adamp", reference.adamp, {"lr": 0.01, "weight_decay": 0.1, "delta": 0.4, "nesterov": True}, "nesterov", **ADAMS,
        sharded=JUDGED),
    *(Row("sgdp", reference.sgdp, {"momentum": 0.9, "weight_decay": 0.01, "delta": 2.0, **more}, label, **DENSE_STEPS,
          sharded=JUDGED) for label, more in (("", {}), ("nesterov", {"nesterov": True, "dampening": 0.1}))),
    *(Row("classp", reference.classp, {"lr": 0.05, "threshold": threshold, "power": power, "scaling": scaling}, label,
          **DENSE_STEPS, other={"half": {"threshold": 0.0, "eps": 1e-2}, "train": {"threshold": 0.0}})
      for label, threshold, power, scaling in (("", 1e-3, 1.0, True), ("square", 1e-4, 2.0, True),
                                               ("first", 1e-3, 1.0, False))),
    *(Row("fira", reference.fira, {"lr": 0.01, "rank": rank, **more}, label, **ADAMS, joint=True,
          sharded="projects whole matrices and does not take sharded weights")
      for label, rank, more in (("", 3, {"weight_decay": 0.1}), ("true", 2, {"residual": "true", "max_growth": 1.2}))),
    Row("sam", reference.sam, {"rho": 0.2}, sparse=NO_SPARSE, complex=NO_COMPLEX),
    Row("asam", reference.asam, {"rho": 0.5, "eta": 0.02}, sparse=NO_SPARSE, complex=NO_COMPLEX),
    Row("cram", reference.cram, CRAM, sparse=NO_SPARSE, complex=NO_COMPLEX, sharded=WHOLE),
    Row("cram", reference.cram, {**CRAM, "sparse_grad": False}, "dense", sparse=NO_SPARSE, complex=NO_COMPLEX, sharded=WHOLE),
    Row("cram+", reference.cram, CRAM, sparse=NO_SPARSE, complex=NO_COMPLEX, sharded=WHOLE),
    *(Row("drift", reference.drift, {"power": power, "max_lr": most}, label, sparse=NO_SPARSE, complex=NO_COMPLEX, rated=True)
      for label, power, most in (("", 0.5, 5.0), ("edge", 1.0, 50.0), ("capped", 1.0, 2.0))),
    Row("var", reference.var, {"eps": 1e-5}, complex=LEFT_OUT),
    Row("var", reference.var, {"form": "relative", "eps": 1e-5}, "relative", complex=LEFT_OUT),
    Row("var", reference.var, {"form": "as_printed", "eps": 1e-5}, "as_printed", complex=LEFT_OUT),
    Row("l1", reference.l1, sparse=RIGHT, complex=LEFT_OUT),
    Row("hoyer", reference.hoyer, complex=LEFT_OUT),
    *(Row("safe", reference.safe, {"sparsity": 0.6, "every": 3, "ramp": ramp}, label, complex=LEFT_OUT, sharded=WHOLE,
          network=True, steps=8, finished=reference.pruned_end)
      for label, ramp in (("", "constant"), ("cosine", "cosine"), ("ramp", "linear"))),
    *(Row("autoscale", reference.autoscale, {"scale": rule}, rule) for rule in ("log", "running_max", "first", "ema")),
    Row("autoscale", reference.autoscale, {"scale": "ema", "granularity": "channel"}, "channel"),
    Row("zscore", reference.zscore),
    Row("zscore", reference.zscore, {"granularity": "channel"}, "channel"),
    Row("zscore", reference.zscore, {"eps": 0.5}, "eps"),
    Row("centralize", reference.centralize),
    Row("perpendicular", reference.perpendicular, tensors="all"),
    Row("perpendicular", reference.perpendicular, {"rescale": False}, "plain", "all"),
    Row("perpendicular", reference.perpendicular, {"granularity": "channel"}, "channel", "all"),
    *(Row("adaptive_clip", reference.adaptive_clip, {"clip": clip, "eps": eps, "exclude_last_linear": False}, label, "all")
      for label, clip, eps in (("", 0.01, 1e-3), ("eps", 0.01, 4.0))),
    *(Row("clip_norm", reference.clip_norm, {"max_norm": 0.02, "norm_type": p}, f"{p:g}", "all", sparse=RIGHT)
      for p in (2.0, 1.0, np.inf)),
    Row("norm_growth", reference.norm_growth),
    Row("norm_growth", reference.norm_growth, {"per": "global"}, "global"),
    Row("norm_growth", reference.norm_growth, {"floor": 0.01, "max_growth": 1.1}, "floor"),
    *(Row("zclip", reference.zclip, {"warmup": 2, "max_norm": limit, "threshold": 0.2, "bound": bound}, bound, "all")
      for bound, limit in (("reciprocal", 0.2), ("mean", 0.15), ("fixed", 0.1))),
    Row("ada_gc", reference.ada_gc, {"start": 2, "absolute": 0.1}, "", "all"),
    Row("ada_gc", reference.ada_gc, {"start": 3, "absolute": 0.2, "decay": 0.5, "relative": 0.8}, "decay", "all"),
    Row("concentrate", reference.concentrate, {"rate": 0.5}, complex=LEFT_OUT),
    Row("concentrate", reference.concentrate, {"rate": 0.5, "scope": "layer"}, "layer", complex=LEFT_OUT),
    Row("concentrate", reference.concentrate, {"rate": 0.5, "preserve_norm": False}, "plain", complex=LEFT_OUT),
    Row("proximal_l1", reference.proximal_l1, {"strength": 0.05}, complex=LEFT_OUT),
    *(Row("spike_guard", reference.spike_guard, {"policy": policy, "threshold": threshold, "warmup": 2, "judge": ("update",)},
          policy, "all", sparse=RIGHT, complex=RIGHT, nan=UNDONE,
          other={"train": {"threshold": 1e-3, "decay": 0.0, "judge": ("loss", "gradient", "update")}})
      for policy, threshold in (("skip", 0.4), ("lower_lr", 0.3))),
    Row("momentum_reset", reference.momentum_reset, {"every": 2, "warmup": 2}, "", "all", sparse=RIGHT, complex=RIGHT,
        elsewhere=OF_STATE),
    *(Row("radius", reference.radius, {"target": 0.02, "mode": mode}, mode, "all", sharded="does not take sharded weights",
          sparse="saw no forward pass", complex=r"acts on real weights, odd\.weight is torch\.complex128")
      for mode in ("cap", "set")),
    Row("ema", reference.as_it_was, {"decay": 0.7, "warmup": False}, sparse=RIGHT, complex=RIGHT, finished=reference.ema),
    Row("ema", reference.as_it_was, {"decay": 0.9}, "warmup", sparse=RIGHT, complex=RIGHT, finished=reference.ema),
    Row("mean_weights", reference.as_it_was, {"start": 0.4, "every": 2}, sparse=RIGHT, complex=RIGHT,
        finished=reference.mean_weights, steps=4),
    *(Row("gradual", reference.gradual, {**GRADUAL, **more}, label, **{**RESETS, **own}, steps=8, nan=SELECTS,
          other={"half": {"initial": 0.05}, "train": {"end": 0.7}})
      for label, more, own in (("", {}, {}), ("global", {"scope": "global"}, {}), ("linear", {"power": 1.0}, {}),
                               ("reversible", {"reversible": True}, {"elsewhere": RIGHT}))),
    Row("progressive", reference.gradual, {**GRADUAL}, **RESETS, steps=8, nan=SELECTS,
        other={"half": {"initial": 0.05}, "train": {"end": 0.7}}),
    *(Row(name, reference.dynamic_sparse, {**DYNAMIC, **more}, label, **RESETS, steps=8, nan=SELECTS,
          begun=reference.sparse_start)
      for name, label, more in (("rigl", "", {}), ("rigl", "all", {"fraction": 1.0}), ("set", "", {}))),
    *(Row("nm_decay", reference.nm_decay, {**TOWARDS, **more}, label, complex=LEFT_OUT, sharded=WHOLE, steps=8,
          other={"pictures": {"m": 3}})
      for label, more in (("", {}), ("exponential", {"decay": "exponential"}))),
    Row("sr_ste", reference.nm_decay, {**TOWARDS, "strength": 0.2}, complex=LEFT_OUT, sharded=WHOLE, steps=8,
        other={"pictures": {"m": 3}}),
    *(Row("soft_threshold", reference.soft_threshold, {"init": -2.0, "decay": 0.1, **more}, label, complex=LEFT_OUT,
          sharded=WHOLE, joint=True, begun=reference.soft_start)
      for label, more in (("", {}), ("rate", {"lr": 0.5, "momentum": 0.5}))),
    *(Row("movement", reference.movement, {**MOVED, **more}, label, complex=LEFT_OUT, sharded=WHOLE, steps=8, nan=SELECTS,
          other={"half": {"initial": 0.05}, "train": {"end": 0.7}})
      for label, more in (("", {}), ("global", {"scope": "global"}))),
    *(Row("low_rank", reference.low_rank, {"energy": 0.8, "every": 2, "nuclear": 0.1, "first_layer": "low_rank", **more}, label,
          complex=LEFT_OUT, sharded=WHOLE, nan=SELECTS, finished=reference.low_rank_end, other={"half": {"energy": 1.0}})
      for label, more in (("", {}), ("often", {"every": 1}))),
    *(Row("ac_dc", reference.ac_dc, {**PHASES, **more}, label, **RESETS, steps=8,
          finished=reference.pruned_end,
          other={"half": {"sparsity": 0.05}, "train": {"warm_up": 0.2, "phase": 0.2, "last_dense": 0.2, "last_sparse": 0.4}})
      for label, more in (("", {}), ("layer", {"scope": "layer"}))),
)  # fmt: skip
STRENGTH = {
    "var": 1e-4,
    "relative": 1e-2,
    "as_printed": 1e-2,
    "l1": 1e-2,
    "hoyer": 1e-3,
    "safe": 0.5,
    "cosine": 2.0,
    "ramp": 2.0,
}
"""Of the penalties, in training."""


def numbers(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def attached(gradients: Sequence[Array], *levers: Any) -> list[Array]:
    """What is left of these gradients of one weight, step by step."""
    weight = nn.Parameter(torch.zeros(gradients[0].shape, dtype=torch.float64))
    left = []
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient.copy())
        for lever in levers:
            lever.before_step([Entry("weight", weight, 0)])
        left.append(weight.grad.numpy())
        for lever in levers:
            if hasattr(lever, "after_step"):
                lever.after_step([Entry("weight", weight, 0)])
    return left


GRADIENTS = [scale * numbers(seed, 9, 8) for seed, scale in ((0, 1.0), (1, 0.01), (2, 1e-3))]


def _rounded(gradients: Sequence[Array]) -> list[Array]:
    return [reference.rounded(gradient, 3, -6, 448.0) for gradient in gradients]


def low_precision() -> tuple[Any, Any]:
    gradients = [*GRADIENTS, 300 * GRADIENTS[0]]
    return attached(gradients, create("low_precision", "e4m3")), _rounded(gradients)


def compensate() -> tuple[Any, Any]:
    lever = create("low_precision", "e4m3")
    rounded = _rounded(GRADIENTS)
    shrunk = [reference.shrinkage(g, q)["projection"] for g, q in zip(GRADIENTS, rounded, strict=True)]
    return attached(GRADIENTS, lever, create("compensate", lever))[-1], reference.compensated(rounded, shrunk)


def shrinkage_meter() -> tuple[Any, Any]:
    meter, (small,) = create("shrinkage_meter"), _rounded(GRADIENTS[-1:])
    meter.observe(0, {"weight": (torch.from_numpy(GRADIENTS[-1]), torch.from_numpy(small))})
    expected = reference.shrinkage(GRADIENTS[-1], small)
    row = meter.table().to_pylist()[0]
    return {name: row[name] for name in expected}, expected


def layers(*shapes: tuple[int, int]) -> tuple[nn.Sequential, list[Array]]:
    """Linear layers in float64, without biases, and their weights."""
    weights = [numbers(seed, *shape) for seed, shape in enumerate(shapes)]
    return nn.Sequential(*map(linear, weights)), weights


def linear(weight: Array) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    layer.weight.data = torch.from_numpy(weight.copy())
    return layer


def one_shot() -> tuple[Any, Any]:
    weights = [numbers(0, 7, 5), numbers(1, 6, 7)]
    weights[1][0] = 0.25  # equal scores go by position
    net = nn.Sequential(*map(linear, weights))
    create("one_shot", net, 0.3)
    return [weight.detach().numpy() for weight in net.parameters()], reference.one_shot(weights, 0.3)


def wanda() -> tuple[Any, Any]:
    net, (weight,) = layers((6, 9))
    inputs = numbers(7, 20, 9) * np.arange(1, 10)
    create("one_shot", net, 0.4, score=create("wanda", [torch.from_numpy(part) for part in (inputs[:8], inputs[8:])]))
    return next(net.parameters()), reference.wanda(weight, inputs, 0.4)


def owl() -> tuple[Any, Any]:
    net, weights = layers((7, 9), (30, 7), (4, 30))
    inputs = numbers(7, 20, 9)
    found = create("owl", net, [torch.from_numpy(inputs)], 0.6, outlier=2.0, by="layer")
    return list(found.values()), reference.owl(weights, inputs, 0.6, 2.0, 0.08)


def sparse_gpt() -> tuple[Any, Any]:
    net, (weight,) = layers((6, 9))
    inputs = numbers(7, 20, 9) * np.arange(1, 10)
    create("sparse_gpt", net, [torch.from_numpy(part) for part in (inputs[:8], inputs[8:])], 0.4)
    return next(net.parameters()), reference.sparse_gpt(weight, inputs, 0.4)


def of_gradients(name: str, **settings: Any) -> tuple[Any, Any]:
    """The score of a linear layer under the mean squared error, over two batches."""
    net, (weight,) = layers((3, 5))
    batches = [(numbers(seed, 12, 5), numbers(seed + 9, 12, 3)) for seed in range(2)]
    data = [tuple(map(torch.from_numpy, batch)) for batch in batches]
    (found,) = create(name, data, nn.functional.mse_loss, **settings).of(net, select(net).chosen)
    return found, getattr(reference, name)(weight, batches, **settings)


def recalibrate() -> tuple[Any, Any]:
    batches = [3 * numbers(seed, 10, 4) + seed for seed in range(3)]
    norm = nn.BatchNorm1d(4).double()
    create("recalibrate", norm, [torch.from_numpy(batch) for batch in batches])
    return (norm.running_mean, norm.running_var), reference.recalibrate(batches)


LOSSES = [(0.97**epoch, 2 * 0.8**epoch, 4 * 0.76**epoch) for epoch in range(18)]


def shares(name: str, **settings: Any) -> list[list[float]]:
    """Of every epoch, where all stages are measured in each."""
    scheduler = create(name, **settings)
    scheduler.add_domain("all")
    found = []
    for losses in LOSSES:
        found.append(list(scheduler.shares("all").values()))
        for stage, loss in zip(STAGES, losses, strict=True):
            scheduler.observe("all", stage, loss)
        scheduler.end_epoch()
    return found


def curriculum() -> tuple[Any, Any]:
    """Counts of the draws, where the shares make them whole numbers, and of the least and most drawn item of each stage."""
    sizes = {"easy": 4, "medium": 7, "hard": 5}
    stages = [stage for stage, size in sizes.items() for _ in range(size)]
    scheduler = Linear(epochs=5)
    sampler = create("curriculum", stages, scheduler, length=20)
    assert isinstance(sampler, CurriculumSampler)
    for _ in range(3):
        scheduler.end_epoch()  # half of it medium, half hard
    drawn = Counter(sampler)
    counts = [[drawn[item] for item, stage in enumerate(stages) if stage == which] for which in sizes]
    found = {k: (sum(times), min(times), max(times)) for k, times in zip(sizes, counts, strict=True)}
    return found, reference.curriculum(sizes, scheduler.shares("all"), 20)


def span_weights() -> tuple[Any, Any]:
    weights, offsets = {"reasoning": 0.2, "answer": 0.8}, [(0, 3), (3, 5), (5, 8), (9, 12), (12, 15)]
    spans = {"reasoning": (0, 8), "answer": (9, 15)}
    row = create("span_weights", weights).tokens([8, 9], [1, 2, 3, 4, 5], offsets, spans)
    logits = numbers(3, 1, 7, 10)
    loss = weighted_cross_entropy(torch.from_numpy(logits), torch.tensor([row.labels]), torch.tensor([row.weights]))
    places = {"reasoning": (2, 3, 4), "answer": (5, 6)}
    return loss, np.float32(reference.span_loss(logits[0], row.ids, places, weights))


def gradient_tracker() -> tuple[Any, Any]:
    tracker, expected = create("gradient_tracker"), [reference.statistics(gradient) for gradient in GRADIENTS]
    weight = nn.Parameter(torch.zeros(9, 8, dtype=torch.float64))
    for gradient in GRADIENTS:
        weight.grad = torch.from_numpy(gradient.copy())
        tracker.before_step([Entry("weight", weight, 0)])
        tracker.after_step([Entry("weight", weight, 0)])
        tracker.end_step()
    rows = [row for row in tracker.table().to_pylist() if row["layer"] == "weight"]
    return [{name: row[name] for name in expected[0]} for row in rows], expected


def metered(name: str, net: nn.Module, passes: Callable[[Any], Any], *arguments: Any) -> dict[str, float]:
    """The signals of a meter after a step of plain gradient descent; `passes` does what comes before it."""
    meter, optimizer = create(name, *arguments), torch.optim.SGD(net.parameters(), lr=0.1)
    handle = attach(optimizer, meter, model=net)
    passes(meter)
    optimizer.step()
    handle.remove()
    return {key: float(value) for key, value in meter.signals().items()}


def step_meter(name: str) -> tuple[Any, Any]:
    net, (weight,) = layers((6, 9))
    inputs = torch.from_numpy(numbers(7, 5, 9))
    found = metered(name, net, lambda meter: net(inputs).square().sum().backward())
    gradient = 2 * (inputs.numpy() @ weight.T).T @ inputs.numpy()
    if name == "update_ratio":
        return found[name], reference.update_ratio(weight, weight - 0.1 * gradient)
    return found[name], reference.nlm_cosine(weight, gradient)


def noise_scale() -> tuple[Any, Any]:
    net, parts = layers((1, 9))[0], [1 + numbers(seed, 1, 9) for seed in range(4)]

    def passes(meter: Any) -> None:
        for part in parts:
            (net(torch.from_numpy(part)).sum() / 4).backward()

    return metered("noise_scale", net, passes, 5), reference.noise_scale(parts, 5)


def softmax_collapse() -> tuple[Any, Any]:
    logits, targets = 30 * numbers(3, 40, 5), numbers(4, 40, 5).argmax(1)
    net = layers((2, 2))[0]
    outputs = torch.from_numpy(logits).float()
    found = metered("softmax_collapse", net, lambda meter: meter.see_outputs(outputs, torch.from_numpy(targets)))
    return found, {"softmax_collapse": reference.softmax_collapse(logits, targets)}


def activations() -> tuple[Any, Any]:
    net, (weight,) = layers((8, 9))
    weight[2], weight[5] = 0, 100 * weight[5]
    net[0].weight.data = torch.from_numpy(weight.copy())
    inputs = numbers(7, 5, 9)
    found = metered("activations", net, lambda meter: net(torch.from_numpy(inputs)).sum().backward(), net)
    return found, reference.activations(inputs @ weight.T)


class Attending(nn.Module):
    """Queries and keys that are given, the values learned."""

    def __init__(self, query: Array, key: Array) -> None:
        super().__init__()
        self.query, self.key = torch.from_numpy(query), torch.from_numpy(key)
        self.values = nn.Parameter(self.key.clone())

    def forward(self) -> Tensor:
        return nn.functional.scaled_dot_product_attention(self.query, self.key, self.values).sum()


def lora_plus() -> tuple[Any, Any]:
    net = nn.ModuleDict({name: nn.Linear(3, 3, bias=False) for name in ("lora_A", "lora_B", "head")})
    groups = create("lora_plus", net, 0.01, 4.0)
    return [[group["lr"], [name for name, _ in group["params"]]] for group in groups], [
        [0.01, ["lora_A.weight", "head.weight"]], [0.04, ["lora_B.weight"]]
    ]  # fmt: skip


def mlp(inputs: int, width: int) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 2)).double()


def mup() -> tuple[Any, Any]:
    net, roles = mlp(3, 8), {"0.weight": "input", "0.bias": "input", "2.weight": "hidden", "2.bias": "input",
                             "3.weight": "output", "3.bias": "fixed"}  # fmt: skip
    found = [{name: group["lr"] for group in create("mup", net, mlp(3, 2), 0.1, kind) for name, _ in group["params"]}
             for kind in ("adam", "sgd")]  # fmt: skip
    expected = reference.mup(4)
    return found, [{name: 0.1 * expected[roles[name]][at] for name in found[at]} for at in range(2)]


def route_by_label() -> tuple[Any, Any]:
    """Weights after a forget batch, and what the network gives once the forget part is cut out."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    parts = {"0.weight": slice(4, 6), "0.bias": [4, 5], "2.weight": (slice(None), slice(4, 6)), "2.bias": None}
    lever, optimizer = create("route_by_label", parts), torch.optim.SGD(net.parameters(), lr=0.3)
    inputs, before = torch.from_numpy(numbers(1, 7, 4)), [one.detach().numpy().copy() for one in net.parameters()]
    handle = attach(optimizer, lever, model=net)
    with lever.batch("forget"):
        net(inputs).square().sum().backward()
        gradients = [one.grad.numpy().copy() for one in net.parameters() if one.grad is not None]
        optimizer.step()
    handle.remove()
    weights = reference.routed(before, gradients, "forget", 2, 0.3)
    found = [one.detach().numpy().copy() for one in net.parameters()]
    lever.ablate(net)
    small = np.tanh(inputs.numpy() @ weights[0][:4].T + weights[1][:4]) @ weights[2][:, :4].T + weights[3]
    return [*found, net(inputs)], [*weights, small]


def tract() -> tuple[Any, Any]:
    """More rows than inputs, and fewer."""
    found, expected = [], []
    for rows in (8, 3):
        net, _ = layers((2, 5))
        a, upstream = numbers(rows, rows, 5), numbers(rows + 1, rows, 2)
        create("tract", net[0], 0.3)
        net(torch.from_numpy(a)).backward(torch.from_numpy(upstream))
        found.append(net[0].weight.grad)
        expected.append(reference.tract(a, upstream, 0.3))
    return found, expected


def grad_norm_smooth() -> tuple[Any, Any]:
    hessian, slope = np.diag([1.0, 10.0, 100.0]), numbers(4, 3)
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer, matrix = create("grad_norm_smooth", [x]), torch.from_numpy(hessian)
    for _ in range(3):
        optimizer.step(lambda: x @ matrix @ x / 2 - torch.from_numpy(slope) @ x)
    return (x, optimizer.gamma), reference.grad_norm_smooth(hessian, slope, 3)


def batch_size() -> tuple[Any, Any]:
    parts = 0.3 + numbers(2, 8, 5)
    schedule = create("batch_size", 4, 100_000, test="augmented", theta=0.2, nu=0.3)
    return schedule.update(torch.from_numpy(parts), examples=4), reference.batch_size(parts, 4, 0.2, 0.3)


def of_loss(name: str, **given: Any) -> tuple[Any, Any]:
    logits, targets = 3 * numbers(3, 12, 5), numbers(4, 12, 5).argmax(1)
    found = create(name, **given)(torch.from_numpy(logits), torch.from_numpy(targets))
    return found, getattr(reference, name)(logits, targets, **given)


PACKED = [5, 7, 5, 2, 4, 2, 5, 1, 6, 3, 3, 8]


def robust(name: str, **given: Any) -> tuple[Any, Any]:
    """Seven workers, one of whom sends large numbers."""
    sent = numbers(3, 7, 5)
    sent[2] *= 40
    rows = torch.from_numpy(sent)
    found = create(name, **given)(rows, rows[0])
    return found, getattr(reference, name)(sent, **given)


def gradient_difference() -> tuple[Any, Any]:
    lever, points, gradients = create("gradient_difference", 1.0, 0.5, 0.0, 0.0, 3), numbers(1, 5, 4), numbers(2, 5, 4)
    found = [lever.step(torch.from_numpy(g), torch.from_numpy(x)) for g, x in zip(gradients, points, strict=True)]
    return found, reference.gradient_difference(gradients, points, 1.0, 0.5, 3)


def group_clip() -> tuple[Any, Any]:
    """A linear layer, weight and bias apart, without noise."""
    layer, (weight,) = layers((2, 4))
    layer[0].bias = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    inputs, targets = numbers(1, 6, 4), numbers(2, 6, 2)
    groups = {"weight": ["0.weight"], "bias": ["0.bias"]}
    lever = create("group_clip", layer, groups, {"weight": 0.5, "bias": 0.2}, sigma=0.0)
    lever.backward(torch.nn.functional.mse_loss, torch.from_numpy(inputs), torch.from_numpy(targets))
    found = layer[0].weight.grad, layer[0].bias.grad
    return found, reference.group_clip(inputs, inputs @ weight.T - targets, (0.5, 0.2))


LOSS_GRADIENTS = [numbers(seed, 3, 40) - 0.3 for seed in range(3)]


def combiner(name: str, **given: Any) -> tuple[Any, Any]:
    """Three steps of three losses."""
    lever, memory = create(name, **given), dict[str, Any]()
    found = [lever(torch.from_numpy(rows.copy())) for rows in LOSS_GRADIENTS]
    return found, [getattr(reference, name)(rows, memory, **given) for rows in LOSS_GRADIENTS]


def pcgrad() -> tuple[Any, Any]:
    """Of two losses, whose order does not matter."""
    return [create("pcgrad")(torch.from_numpy(rows[:2])) for rows in LOSS_GRADIENTS], [
        reference.pcgrad(rows[:2]) for rows in LOSS_GRADIENTS
    ]


def gradient_dropout() -> tuple[Any, Any]:
    lever = create("gradient_dropout", leak=0.2, seed=4)
    draws, rows = torch.Generator().manual_seed(4), LOSS_GRADIENTS[0]
    drawn = torch.rand(rows.shape[1], dtype=torch.float64, generator=draws).numpy()
    return lever(torch.from_numpy(rows)), reference.gradient_dropout(rows, drawn, 0.2)


def shared_or_own() -> tuple[Any, Any]:
    """Output and the gradients of weights and scores."""
    layer, (weight,) = layers((4, 6))
    lever = create("shared_or_own", layer[0], ("one", "two"), generator=torch.Generator().manual_seed(0))
    own, inputs, errors = numbers(5, 4, 6), numbers(6, 3, 6), numbers(7, 3, 4)
    lever.own["two"].data = torch.from_numpy(own.copy())
    outputs = lever(torch.from_numpy(inputs), task="two")
    outputs.backward(torch.from_numpy(errors))
    scores = lever.scores.detach().numpy()
    found = outputs, lever.layer.weight.grad, lever.own["two"].grad, lever.scores.grad
    return found, reference.shared_or_own(weight, own, scores, inputs, errors)


def dynamics_weights() -> tuple[Any, Any]:
    lever = create("dynamics_weights", decay=0.3)
    return [lever(list(losses)) for losses in LOSSES], reference.dynamics_weights(LOSSES, 0.3, 3.0)


def balance() -> tuple[Any, Any]:
    """Terms and their gradients."""
    values = torch.tensor([2.0, 0.5, 8.0], dtype=torch.float64, requires_grad=True)
    terms = create("balance", list(values.square().unbind()), reference=1)
    return (terms, torch.autograd.grad(sum(terms), values)[0]), (np.full(3, 0.25), 2 * 0.25 / values.detach().numpy())


def example_scores() -> tuple[Any, Any]:
    """Mean error and times forgotten, over four epochs."""
    lever, targets = create("example_scores", 6), numbers(9, 6, 3).argmax(1)
    epochs = [4 * numbers(seed, 6, 3) for seed in range(4)]
    for logits in epochs:
        lever.see(torch.arange(6), torch.from_numpy(logits), torch.from_numpy(targets))
        lever.end_epoch()
    return [lever.values(name) for name in ("el2n", "forgetting")], reference.example_scores(epochs, targets)


def batch_coreset() -> tuple[Any, Any]:
    features = numbers(2, 12, 5)
    found = create("batch_coreset", ratio=0.25, weights=True).choose(torch.from_numpy(features))
    return (found.indices, found.weights), reference.batch_coreset(features, 3)


def variance_sampler() -> tuple[Any, Any]:
    rates, diversity = np.abs(numbers(1, 6)) % 1, np.abs(numbers(2, 6)) % 1
    lever = create("variance_sampler", 6, mix=0.7)
    lever.update(range(6), rates, diversity)
    return lever.probabilities(), reference.variance_sampler(rates, diversity, 0.8, 0.2, 0.7)


def beta_difficulty() -> tuple[Any, Any]:
    """What is known of four questions after three updates with two of them."""
    lever, tries = create("beta_difficulty", 4, prior=(2.0, 1.0)), [([0, 2], [3, 1], [1, 4]), ([1, 2], [0, 2], [5, 3])]
    for ids, right, wrong in tries:
        lever.update(ids, right, wrong)
    return (lever.a, lever.b), reference.beta_difficulty(4, tries, (2.0, 1.0), 0.9, 0.99)


def prior_bias() -> tuple[Any, Any]:
    layer = torch.nn.Linear(3, 4).double()
    create("prior_bias", layer, 0.02)
    return layer.bias, np.full(4, math.log(0.02 / 0.98))


def attention() -> tuple[Any, Any]:
    query, key = (numbers(seed, 2, 3, 5, 4) for seed in (1, 2))
    net = Attending(query, key)
    return metered("attention", net, lambda meter: net().backward(), net), reference.attention(query, key)


def weight_distribution() -> tuple[Any, Any]:
    net, weights = layers((30, 20), (5, 30))
    found = create("weight_distribution", net, bins=21)
    return (found.counts, found.near_zero, found.variance_of_magnitude), reference.weight_distribution(weights, 21, 4.0)


def regression() -> tuple[Objective, list[Array]]:
    """One linear layer under the mean squared error: objective, and its weights, inputs and targets."""
    net, (weight,) = layers((1, 5))
    inputs, targets = numbers(5, 12, 5), numbers(6, 12, 1)
    batch = torch.from_numpy(inputs), torch.from_numpy(targets)
    return Objective(net, nn.functional.mse_loss, batch), [weight, inputs, targets]


def curvature() -> tuple[Any, Any]:
    objective, (_, inputs, _) = regression()
    operator = create("curvature", objective)
    return torch.stack([operator @ basis for basis in torch.eye(5, dtype=torch.float64)]), reference.hessian(inputs)


def landscape() -> tuple[Any, Any]:
    objective, (weight, inputs, targets) = regression()
    direction = random_directions(objective, 1)
    raw = random_directions(objective, 1, scale="none").vectors.numpy()
    found = create("landscape", objective, direction, points=5)
    return found.losses, reference.section(weight, raw, inputs, targets, found.coordinates)


def medclm() -> tuple[Any, Any]:
    """Host organ of every lesion."""
    with tempfile.TemporaryDirectory() as folder:
        options = source(Path(folder) / "source")
        create("medclm", options, Path(folder) / "out")
        found, expected = [], []
        for record in DataSetFolder(Path(folder) / "out").records():
            masks = read_organs(Path(folder) / "source" / "organs" / f"{Path(record.file).stem}.json")
            for lesion in record.lesions:
                assert lesion.host is not None
                x0, y0, x1, y1 = (round(40 * getattr(lesion.box, edge)) for edge in ("x0", "y0", "x1", "y1"))
                expected.append(reference.host((x0, y0, x1, y1), masks))
                found.append((lesion.host.organ, lesion.host.score))
        return found, expected


def norm_match() -> tuple[Any, Any]:
    """Factors of three steps of three branches."""
    norms, lever = [np.abs(numbers(step, 3)) for step in range(3)], create("norm_match")
    found = [lever.factors(torch.from_numpy(step)) for step in norms]
    return found, [reference.norm_match(norms[: at + 1]) for at in range(3)]


def gradient_reversal() -> tuple[Any, Any]:
    inputs = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    outputs, gradient = create("gradient_reversal", strength=0.3)(inputs), numbers(0, 3, 4)
    return torch.autograd.grad(outputs, inputs, torch.from_numpy(gradient))[0], reference.gradient_reversal(
        gradient, 0.3
    )


def hard_concrete() -> tuple[Any, Any]:
    alpha, u = 3 * numbers(3, 7), np.random.default_rng(4).random(7)
    gate = create("hard_concrete", 7).double()
    gate.alpha.data = torch.from_numpy(alpha)
    found = gate.sample(torch.from_numpy(u)), gate.eval()(), gate.penalty()
    return found, reference.hard_concrete(alpha, u)


def mask_tuning() -> tuple[Any, Any]:
    net, (weight,) = layers((3, 5))
    scores, inputs, targets = 5e-3 + 1e-3 * numbers(3, 3, 5), numbers(1, 7, 5), numbers(2, 7, 3)
    tuning = create("mask_tuning", net, include=("*",))
    tuning.scores["0.weight"].data = torch.from_numpy(scores)
    outputs = net(torch.from_numpy(inputs))
    ((outputs - torch.from_numpy(targets)).square().sum() / 2 + tuning.penalty()).backward()
    return (outputs, tuning.scores["0.weight"].grad), reference.mask_tuning(weight, scores, inputs, targets)


def binarize() -> tuple[Any, Any]:
    net, (weight,) = layers((3, 5))
    lever, gradient = create("binarize", ends=True, o_end=2.5), numbers(4, 3, 5)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    attach(optimizer, lever, model=net)
    lever.set_progress(0.7)
    (parameter,) = net.parameters()
    binary = parameter.detach().clone()
    parameter.grad = torch.from_numpy(gradient.copy())
    optimizer.step()
    o = 1 + (1 - np.cos(np.pi * 0.7 / 2)) * 1.5
    return (binary, parameter.grad), reference.binarize(weight, gradient, o)


def align() -> tuple[Any, Any]:
    full, sparse = ([2 * numbers(seed + at, 4, 3) for at in range(2)] for seed in (1, 5))
    found = create("align", list(map(torch.from_numpy, full)), list(map(torch.from_numpy, sparse)), weight=3.0)
    return found, reference.align(full, sparse, 3.0)


def magnitude_invariant() -> tuple[Any, Any]:
    start, x = numbers(3, 2, 3), np.array([0.2, 0.9])
    hyper = create("magnitude_invariant", 2, (7, 5), {"weight": torch.from_numpy(start)})
    weights = [layer.weight.detach().numpy() for layer in hyper.h if isinstance(layer, nn.Linear)]
    found = hyper(torch.from_numpy(x))["weight"].flatten()
    return found, reference.magnitude_invariant(x, weights, start.ravel())


def eight_bit_state() -> tuple[Any, Any]:
    weight = nn.Parameter(torch.zeros(9, 8, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    attach(optimizer, create("eight_bit_state", block=16, min_size=1))
    for gradient in GRADIENTS:
        weight.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    return weight, reference.eight_bit_momentum(GRADIENTS, reference.dynamic_map(), 16)


def frozen_codes() -> tuple[Any, Any]:
    weight = numbers(6, 5, 7)
    layer = create("frozen_codes", linear(weight), "int4")
    return (layer.codes.flatten(1), layer.weight), reference.codes(weight, 7)


def qzo() -> tuple[Any, Any]:
    scale, target = nn.Parameter(torch.from_numpy(abs(numbers(2, 3, 1)) + 0.5)), torch.from_numpy(numbers(3, 3, 4))
    optimizer, before = create("qzo", [scale], lr=0.1, clip=2.0), scale.detach().numpy().copy()
    z = torch.randn((3, 1), generator=Generators(0).begin(scale.device, 0, 0, 0)).double()
    slope = float((z * (scale.detach() - target)).sum())
    optimizer.step(lambda: (scale - target).square().sum() / 2)
    return scale, reference.zeroth_order(before, z.numpy(), slope, 0.1, 2.0, 1e-7)


def subspace_history() -> tuple[Any, Any]:
    iterates, gradient, history = numbers(1, 6, 5), numbers(2, 5), create("subspace_history", every=6, keep=0.7)
    for iterate in iterates:
        history.remember("w", torch.from_numpy(iterate))
    found = history.project("w", torch.from_numpy(gradient))
    return found, reference.subspace(iterates, gradient, 0.7, standardise=False)


def channels() -> tuple[Any, Any]:
    net, weights = layers((8, 5), (4, 8))
    smaller = create("channels", net, torch.zeros(1, 5, dtype=torch.float64), 0.4)
    return list(smaller.model.parameters()), reference.channels(weights, 0.4)


def depth_plan() -> tuple[Any, Any]:
    costs = list(numbers(3, 6) ** 2)
    plan = create("depth_plan", 6, lambda active: reference.skipped(active, costs), 4, keep_last=0)
    return list(plan.metric), reference.depth(costs, 4)


def of_tokens(name: str, **given: Any) -> tuple[Any, Any]:
    """Sum over three rollouts of up to six tokens, and for gppo its gradient."""
    logp, old, gain = numbers(1, 3, 6), numbers(2, 3, 6), numbers(3, 3, 6)
    mask = np.arange(6)[None] < np.array([[6], [2], [4]])
    leaf = torch.from_numpy(logp).requires_grad_()
    value, _ = create(name, leaf, *map(torch.from_numpy, (old, gain, mask)), aggregate="sum", **given)
    ratio = np.where(mask, np.exp(logp - old), 1)
    found = getattr(reference, name)(ratio, gain * mask, **given)
    return (value if name == "ppo" else (value, torch.autograd.grad(value, leaf)[0])), found


def drpo() -> tuple[Any, Any]:
    logp, lengths, right = numbers(1, 4, 5), np.array([5, 2, 3, 1]), np.array([True, False, True, False])
    mask = np.arange(5)[None] < lengths[:, None]
    rows = torch.from_numpy(logp)
    loss, _ = create(
        "drpo", rows, rows, torch.from_numpy(right.astype(float)), torch.from_numpy(mask), [0] * 4, tau=2.0, lam=0.5
    )
    return loss, reference.drpo((logp * mask).sum(1) / lengths, right, lengths / 5, 2.0, 0.5)


def dynamic_dpo() -> tuple[Any, Any]:
    rejected = np.array([0.5, -1.0, -4.0, 0.2])
    policy = torch.tensor([0.1], dtype=torch.float64), torch.from_numpy(rejected)[None]
    loss, _ = create("dynamic_dpo", *policy, *(torch.zeros_like(one) for one in policy), beta=0.7)
    return loss, reference.dynamic_dpo(0.1, rejected, 0.7)


def dot_lengths() -> tuple[Any, Any]:
    lengths = np.array([90, 110] * 10 + [3000])
    found = create("dot_lengths", torch.from_numpy(lengths), torch.ones(21), [0] * 21)
    return found, reference.dot_lengths(lengths, 3.0, 32)


def g2rl() -> tuple[Any, Any]:
    features, rewards = numbers(1, 5, 3), np.array([1.0, 1, -1, 1, -1])
    found, _ = create("g2rl", torch.from_numpy(features), torch.from_numpy(rewards), lam=0.7, cap=1.2)
    return found, reference.g2rl(features, rewards, 0.7, 1.2)


def of_rewards(name: str, which: int) -> tuple[Any, Any]:
    rewards, groups = numbers(1, 7), [0, 1, 0, 1, 1, 0, 0]
    return create(name, torch.from_numpy(rewards), groups, eps=0.1), reference.advantages(rewards, groups, 0.1)[which]


def noprop() -> tuple[Any, Any]:
    class Block(nn.Module):
        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return x

    net = create("noprop", [Block(), Block()], torch.eye(3).double(), eta=0.3)
    guess, labels = numbers(1, 4, 3), np.array([0, 2, 1, 1])
    signal = [float(np.cos(np.pi / 2 * (noise + 0.008) / 1.008) ** 2) for noise in (1.0, 0.5)]
    loss = net.local_loss(torch.from_numpy(guess), torch.from_numpy(labels), 1)
    return loss, reference.noprop(guess, np.eye(3)[labels], (signal[0], signal[1]), 2, 0.3)


def gbnn() -> tuple[Any, Any]:
    X = numbers(1, 30, 2)
    net = create("gbnn", stages=4, random_state=0).fit(X, X[:, 0] ** 2)
    parts = (net.hidden_weights_, net.hidden_biases_, net.output_weights_, net.intercept_)
    return net.predict(X), reference.perceptron(X, *parts)


def attention_residual() -> tuple[Any, Any]:
    mix, sources = create("attention_residual", 4).double(), numbers(1, 3, 4)
    mix.query.data = torch.from_numpy(numbers(2, 4))
    return mix([torch.from_numpy(one)[None] for one in sources])[0], reference.attention_residual(
        sources, numbers(2, 4)
    )


def inflection_probe() -> tuple[Any, Any]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    probe = create("inflection_probe", nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), alpha=0.3)
    rows = probe.run(torch.randn(2, 5, 8), lambda net, batch: net(batch).square().mean())
    given = [np.array([getattr(row, name) for row in rows]) for name in ("entropy", "activation_gradient")]
    return [row.ski for row in rows], reference.saturation(given[0], given[1], 0.3)


def effective_rank() -> tuple[Any, Any]:
    net, (weight,) = layers((5, 7))
    meter, entry = create("effective_rank"), Entry("weight", next(net.parameters()), 0)
    entry.parameter.grad = torch.zeros_like(entry.parameter)
    meter.before_step([entry])
    return meter.layers()["weight"], reference.effective_rank(weight)


def task_cosines() -> tuple[Any, Any]:
    slopes, weight = numbers(1, 3, 6), torch.zeros(6, dtype=torch.float64, requires_grad=True)
    losses = [(torch.from_numpy(one) * weight).sum() for one in slopes]
    return create("task_cosines", losses, [weight]).cosines, reference.cosines(slopes)


def negativity() -> tuple[Any, Any]:
    nodes, weights = np.array([-0.3, -0.01, 0.2, 5]), np.array([0.1, 0.4, 0.4, 0.1])
    density = SpectralDensity((), (), 1.0, (tuple(nodes),), (tuple(weights),), 0, 0, 0, 0, 0, 1, 100, 0)
    found = create("negativity", density, power=0.7)
    return (found.ratio, found.k), reference.negativity(nodes, weights, 0.7)


PROBES = (
    Probe("align", align),
    Probe("magnitude_invariant", magnitude_invariant),
    Probe("binarize", binarize),
    Probe("eight_bit_state", eight_bit_state),
    Probe("frozen_codes", frozen_codes),
    Probe("qzo", qzo),
    Probe("subspace_history", subspace_history),
    Probe("mask_tuning", mask_tuning),
    Probe("hard_concrete", hard_concrete),
    Probe("channels", channels),
    Probe("depth_plan", depth_plan),
    Probe("gradient_reversal", gradient_reversal),
    Probe("norm_match", norm_match),
    Probe("low_precision", low_precision),
    Probe("compensate", compensate),
    Probe("one_shot", one_shot),
    Probe("wanda", wanda),
    Probe("sparse_gpt", sparse_gpt),
    Probe("owl", owl),
    Probe("snip", lambda: of_gradients("snip")),
    Probe("taylor", lambda: of_gradients("taylor")),
    Probe("grasp", lambda: of_gradients("grasp", temperature=3.0)),
    Probe("recalibrate", recalibrate),
    Probe("adaptive", lambda: (shares("adaptive"), reference.adaptive(LOSSES))),
    Probe("released", lambda: (shares("released"), reference.released(LOSSES))),
    Probe("linear", lambda: (shares("linear", epochs=18), reference.linear(18))),
    Probe("mixed", lambda: (shares("mixed", weights=(2, 1, 1)), reference.mixed((2, 1, 1), 18))),
    Probe("easy_only", lambda: (shares("easy_only"), reference.easy_only(18))),
    Probe("hard_only", lambda: (shares("hard_only"), reference.hard_only(18))),
    Probe("reverse", lambda: (shares("reverse", epochs=18), reference.reverse(18))),
    Probe("curriculum", curriculum),
    Probe(
        "pixel_clip",
        lambda: (
            create("pixel_clip", torch.from_numpy(numbers(3, 2, 3, 4, 4)), 0.5),
            reference.vector_clip(numbers(3, 2, 3, 4, 4), 0.5),
        ),
    ),
    Probe("balance", balance),
    Probe(
        "occurrence_weights",
        lambda: (
            create("occurrence_weights", [10, 1, 0, 4], power=0.5),
            reference.occurrence_weights(np.array([10, 1, 0, 4.0]), 0.5),
        ),
    ),
    Probe("dynamics_weights", dynamics_weights),
    Probe("nearest_neighbours", lambda: robust("nearest_neighbours", f=2)),
    Probe("median", lambda: robust("median", f=2)),
    Probe("trimmed_mean", lambda: robust("trimmed_mean", f=2)),
    Probe("krum", lambda: robust("krum", f=2, select=2)),
    Probe(
        "coding_plan",
        lambda: (
            [[one.load, one.delay] for one in create("coding_plan", 60, 2, 5, 7)],
            reference.coding_plan(60, 2, 5, 7),
        ),
    ),
    Probe("gradient_difference", gradient_difference),
    Probe("group_clip", group_clip),
    Probe("example_scores", example_scores),
    Probe("batch_coreset", batch_coreset),
    Probe("variance_sampler", variance_sampler),
    Probe("beta_difficulty", beta_difficulty),
    Probe("prior_bias", prior_bias),
    Probe("pack", lambda: (create("pack", PACKED, 10), reference.pack(PACKED, 10))),
    Probe("pcgrad", pcgrad),
    Probe("cagrad", lambda: combiner("cagrad", c=0.4)),
    Probe("gcond", lambda: combiner("gcond")),
    Probe("similarity_momentum", lambda: combiner("similarity_momentum", gamma=0.97)),
    Probe("equal_norm", lambda: combiner("equal_norm")),
    Probe("gradient_dropout", gradient_dropout),
    Probe("shared_or_own", shared_or_own),
    Probe("batch_size", batch_size),
    Probe("stable_max", lambda: of_loss("stable_max")),
    Probe("z_loss", lambda: of_loss("z_loss", strength=0.3)),
    Probe(
        "scale_lr",
        lambda: ([create("scale_lr", 0.1, 32, 96, rule) for rule in ("linear", "sqrt")], [0.3, 0.1 * 3**0.5]),
    ),
    Probe("lora_plus", lora_plus),
    Probe("mup", mup),
    Probe("route_by_label", route_by_label),
    Probe("tract", tract),
    Probe("grad_norm_smooth", grad_norm_smooth),
    Probe("spectral_lr", lambda: (create("spectral_lr", [-1.0, 4.0], safety=0.25).lr, 0.125)),
    Probe("span_weights", span_weights),
    Probe(
        "pseudo_huber",
        lambda: (
            create("pseudo_huber", torch.from_numpy(numbers(1, 4, 5)), torch.zeros(4, 5), c=0.3),
            reference.pseudo_huber(numbers(1, 4, 5), 0.3),
        ),
    ),
    Probe(
        "u_shaped_timestep",
        lambda: (
            create("u_shaped_timestep", 3.0, 0.0, 1.0).density(torch.linspace(0.0, 1.0, 7, dtype=torch.float64)),
            reference.u_shaped(np.linspace(0, 1, 7), 3.0),
        ),
    ),
    Probe("attention_residual", attention_residual),
    Probe("noprop", noprop),
    Probe("gbnn", gbnn),
    Probe("ppo", lambda: of_tokens("ppo", low=0.3, high=0.4)),
    Probe("gppo", lambda: of_tokens("gppo", low=0.3, high=0.4, dual=1.5)),
    Probe("drpo", drpo),
    Probe("group_advantage", lambda: of_rewards("group_advantage", 0)),
    Probe("batch_advantage", lambda: of_rewards("batch_advantage", 1)),
    Probe("dot_lengths", dot_lengths),
    Probe("dynamic_dpo", dynamic_dpo),
    Probe("void_turn_mask", lambda: (create("void_turn_mask", [["```ls```"], ["?", "```ls```"]]), [True, False])),
    Probe("g2rl", g2rl),
    Probe("gradient_tracker", gradient_tracker),
    Probe("update_ratio", lambda: step_meter("update_ratio")),
    Probe("nlm_cosine", lambda: step_meter("nlm_cosine")),
    Probe("noise_scale", noise_scale),
    Probe("softmax_collapse", softmax_collapse),
    Probe("activations", activations),
    Probe("attention", attention),
    Probe("inflection_probe", inflection_probe),
    Probe("effective_rank", effective_rank),
    Probe("task_cosines", task_cosines),
    Probe("negativity", negativity),
    Probe("shrinkage_meter", shrinkage_meter),
    Probe("weight_distribution", weight_distribution),
    Probe("curvature", curvature),
    Probe("landscape", landscape),
    Probe("medclm", medclm),
)


def flat(value: Any) -> list[tuple[str, Any]]:
    """Every number and word of a nested structure with its place."""
    if isinstance(value, Tensor):
        value = value.detach().double().numpy()
    if isinstance(value, Mapping):
        return [(f".{key}{place}", item) for key, inner in value.items() for place, item in flat(inner)]
    if isinstance(value, list | tuple):
        return [(f"[{at}]{place}", item) for at, inner in enumerate(value) for place, item in flat(inner)]
    if isinstance(value, np.ndarray):
        return [(f"{list(at)}", item) for at, item in np.ndenumerate(value)]
    return [("", value)]
