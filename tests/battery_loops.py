"""The small network, its data, and the training loops in which the battery's rows act."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import trimtab
from tests import reference
from tests.battery import STRENGTH, Row
from tests.reference import Array, Arrays, Gradient, Memory

RATE, MOMENTUM = 0.1, 0.9
EXAMPLES = 12


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).to(dtype)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    inputs = torch.randn(EXAMPLES, 6, dtype=torch.float64, generator=generator)
    return inputs, torch.randint(0, 4, (EXAMPLES,), generator=generator)


def weights(net: nn.Module) -> list[Tensor]:
    """Copies of the parameters, whole also where they are sharded."""
    parts = [item.full_tensor() if hasattr(item, "full_tensor") else item for item in net.parameters()]
    return [part.detach().clone() for part in parts]


class Training:
    """One lever in a training loop: a network, an optimizer, what is attached to it, one method that takes a step."""

    def __init__(
        self, row: Row | None, net: nn.Module | None = None, fused: bool = False, accumulate: int = 1,
        scaler: torch.amp.GradScaler | None = None, unscale: bool = False, rank: int = 0, world: int = 1,
        own_shards: bool = False,
    ) -> None:  # fmt: skip
        self.net = network() if net is None else net
        self.accumulate, self.rank, self.world = accumulate, rank, world
        self.unscale = unscale
        self.scaler = torch.amp.GradScaler("cpu", enabled=False) if scaler is None else scaler
        home = None if row is None else row.home
        fast = {"fused": True} if fused else {}
        self.optimizer: Any
        if own_shards:
            from torch.distributed.optim import ZeroRedundancyOptimizer

            self.optimizer = ZeroRedundancyOptimizer(self.net.parameters(), torch.optim.SGD, lr=RATE, momentum=MOMENTUM)
        else:
            self.optimizer = torch.optim.SGD(self.net.parameters(), RATE, MOMENTUM, **fast)
        self.lever: Any = None
        self.handle: trimtab.levers.Handle | None = None
        if row is None:
            pass
        elif home == "optimizer":
            named = {"model": self.net} if row.name == "muon" else {}
            self.optimizer = row.create(self.net.parameters(), **named)
            for group in self.optimizer.param_groups:
                group.update(fast)
        elif home == "wrapper":
            self.optimizer = row.create(self.optimizer, model=self.net)
        else:
            strength = {"strength": strength_of(row)} if home == "penalty" else {}
            self.lever = row.create(**strength)
            self.handle = trimtab.attach(self.optimizer, self.lever, model=self.net)

    def backward(self, step: int, factor: float = 1.0) -> Tensor:
        """The gradients of the batch's mean loss, in micro-batches; each rank sees each `world`-th example."""
        inputs, labels = batch(step)
        inputs = inputs.to(next(self.net.parameters()).dtype)
        self.optimizer.zero_grad()
        total = torch.zeros(())
        for part in range(self.accumulate):
            mine = slice(self.rank + part * self.world, None, self.world * self.accumulate)
            loss = factor * nn.functional.cross_entropy(self.net(inputs[mine]), labels[mine]) / self.accumulate
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach()
        return total

    def step(self, step: int, factor: float = 1.0) -> None:
        """One step; a wrapper calls for the gradients itself."""
        if isinstance(self.optimizer, trimtab.optimizers.TwoPassOptimizer):
            scaler = self.scaler if self.scaler.is_enabled() else None
            self.optimizer.step(lambda: self.backward(step, factor), grad_scaler=scaler)
        else:
            self.backward(step, factor)
            if self.unscale:
                self.scaler.unscale_(self.optimizer)
            self.scaler.step(self.optimizer)
        self.scaler.update()

    def run(self, steps: Sequence[int]) -> list[Tensor]:
        for step in steps:
            self.step(step)
        return weights(self.net)

    def finish(self) -> list[Tensor]:
        """The weights that the run keeps."""
        if self.handle is not None:
            self.handle.finish()
        return weights(self.net)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        handle = None if self.handle is None else self.handle.state_dict()
        return copy.deepcopy({"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "handle": handle})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.handle is not None:
            self.handle.load_state_dict(state["handle"])


def strength_of(row: Row) -> float:
    """Of a penalty in training: seen, but not all there is."""
    return STRENGTH[row.label or row.name]


def as_arrays(tensors: Sequence[Tensor]) -> Arrays:
    return [tensor.detach().double().numpy().copy() for tensor in tensors]


def gradient_at(step: int) -> Gradient:
    """The gradient of the mean cross-entropy of the small network, as a function of its weights."""
    inputs, labels = (tensor.numpy() for tensor in batch(step))

    def gradient(w: Arrays) -> Arrays:
        hidden = np.tanh(inputs @ w[0].T + w[1])
        error = np.exp(hidden @ w[2].T + w[3])
        error = error / error.sum(1, keepdims=True) - np.eye(4)[labels]
        error /= len(labels)
        back = error @ w[2] * (1 - hidden**2)
        return [back.T @ inputs, back.sum(0), error.T @ hidden, error.sum(0)]

    return gradient


def _rows(arrays: Arrays) -> Arrays:
    return [one if one.ndim > 1 else one.reshape(1, -1) for one in arrays]


def transformed(row: Row, w: Arrays, g: Arrays, memory: Memory) -> Arrays:
    """`g` after the formula of a transform has acted on what its rule picks."""
    counted = [at for at, one in enumerate(w) if one.ndim > 1 or row.tensors == "all"]
    found = row.reference(_rows([w[at] for at in counted]), _rows([g[at] for at in counted]), memory, **row.given)
    changed = dict(zip(counted, found, strict=True))
    return [changed.get(at, one).reshape(one.shape) for at, one in enumerate(g)]


def penalised(row: Row, w: Arrays, g: Arrays, strength: float, memory: Memory) -> Arrays:
    """`g` with the gradient of a penalty on what its rule picks."""
    found = iter([gradient for _, gradient in terms(row, [one for one in w if one.ndim > 1], memory)])
    return [b + strength * next(found) if a.ndim > 1 else b for a, b in zip(w, g, strict=True)]


def terms(row: Row, matrices: Arrays, memory: Memory) -> list[tuple[float, Array]]:
    """psi of a penalty and its gradient, of each matrix."""
    if row.network:
        found: list[tuple[float, Array]] = row.reference(matrices, memory, **row.given)
        return found
    return [row.reference(one, **row.given) for one in matrices]


def written_out(row: Row | None, steps: Sequence[int]) -> Iterator[Arrays]:
    """The weights after each step of training, in NumPy float64 from the formulas alone."""
    w = as_arrays(weights(network()))
    memory: Memory = {}
    base: Memory = {}
    if row is not None and row.begun is not None:
        w = row.begun(w, base, **row.given)
    plain: Callable[..., Arrays] = reference.sgd
    for step in steps:
        gradient = gradient_at(step)
        home = None if row is None else row.home
        base["inputs"] = batch(step)[0].numpy()
        factor = 1.0
        g = base["g"] = gradient(w)
        if row is not None and home == "optimizer":
            w = row.reference(w, g, memory, **row.given)
            yield w
            continue
        if row is not None and home == "wrapper":
            g = row.reference(gradient, w, **row.given)
            if row.rated:
                g, factor = g
        elif row is not None and home == "penalty":
            g = penalised(row, w, g, strength_of(row), memory)
        elif row is not None and home == "transform":
            g = transformed(row, w, g, memory)
        moved = plain(w, g, base, lr=RATE * factor, momentum=MOMENTUM, weight_decay=0.0)
        w = row.reference(w, moved, base, **row.given) if row is not None and home == "after_step" else moved
        yield w


def kept_weights(row: Row, steps: Sequence[int]) -> Arrays:
    """The weights that a run over these steps keeps, in NumPy float64."""
    every = list(written_out(row, steps))
    return every[-1] if row.finished is None else row.finished(every, **row.given)


def distance(left: Sequence[Array | Tensor], right: Sequence[Array | Tensor]) -> float:
    """The largest difference."""
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(left, right, strict=True))
