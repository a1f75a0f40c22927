"""Many workers on one machine, some of whom lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from trimtab.checks import below_one, positive, whole
from trimtab.workers.rules import Rule

Attack = Callable[[Tensor, Tensor], Tensor]


def sign_flip(before: Tensor, after: Tensor, strength: float = 3.0) -> Tensor:
    """What a liar sends who turns its step round: `before - strength (after - before)`.

    Example:
        >>> sign_flip(torch.zeros(1), torch.ones(1))
        tensor([-3.])
    """
    return before - strength * (after - before)


class WorkerSimulation:
    """n workers as one batch dimension: each has a model, a momentum and data of its own; after each step models are exchanged.

    `m <- mu m + (1 - mu) g`, `x <- x - lr m`, then every worker puts `rule(received, own)` in place of its model.

    Args:
        model: copied n times; buffers (as of BatchNorm in evaluation) are shared and stay.
        loss: of outputs and targets, a single number.
        workers: n, 2 or more.
        rule: such as `NearestNeighbourAverage(f=3)`.
        lr: above 0.
        momentum: mu, in [0, 1). Default 0.9.
        liars: how many of them lie, the last ones. Default 0.
        attack: what a liar sends, of its model before and after its step. Default `sign_flip`.

    Raises:
        ValueError: a value is out of range, or the liars are half or more.

    Reference: MoNNA, arXiv 2209.10931.

    Example:
        >>> from trimtab.workers import Median
        >>> simulation = WorkerSimulation(nn.Linear(2, 1), nn.functional.mse_loss, 4, Median(f=1), lr=0.1, liars=1)
        >>> simulation.step(torch.ones(4, 8, 2), torch.ones(4, 8, 1))
        >>> simulation.model(0)(torch.ones(1, 2)).shape
        torch.Size([1, 1])
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        workers: int,
        rule: Rule,
        lr: float,
        momentum: float = 0.9,
        liars: int = 0,
        attack: Attack = sign_flip,
    ) -> None:
        self.workers = whole("workers", workers, least=2)
        self.liars = whole("liars", liars, 0, (workers - 1) // 2)
        self.rule, self.attack, self.loss = rule, attack, loss
        self.lr, self.momentum = positive("lr", lr), below_one("momentum", momentum)
        self._model = model
        self._buffers = dict(model.named_buffers())
        self._shapes = {name: one.shape for name, one in model.named_parameters()}
        flat = torch.cat([one.detach().flatten() for one in model.parameters()])
        self.points = flat.expand(workers, -1).clone()
        """Models of all workers, (n, elements)."""
        self._momenta = torch.zeros_like(self.points)

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """One step of all on inputs (n, batch, ...) and targets (n, batch, ...)."""
        if not len(inputs) == len(targets) == self.workers:
            raise ValueError(f"each of {self.workers} workers needs its data, got {len(inputs)} and {len(targets)}")

        def value(flat: Tensor, one: Tensor, target: Tensor) -> Tensor:
            return self.loss(functional_call(self._model, {**self._named(flat), **self._buffers}, (one,)), target)

        gradients = vmap(grad(value))(self.points, inputs, targets)
        with torch.no_grad():
            self._momenta.lerp_(gradients, 1 - self.momentum)
            before, own = self.points, self.points - self.lr * self._momenta
            sent = own.clone()
            for liar in range(self.workers - self.liars, self.workers):
                sent[liar] = self.attack(before[liar], own[liar])
            self.points = own.clone()
            for worker in range(self.workers):  # liars too, so that they lie from where the others stand
                self.points[worker] = self.rule(sent, own[worker])

    def model(self, worker: int) -> Callable[[Tensor], Tensor]:
        """That worker's network, as a function of inputs."""
        named = self._named(self.points[whole("worker", worker, 0, self.workers - 1)])

        def outputs(inputs: Tensor) -> Tensor:
            found: Tensor = functional_call(self._model, {**named, **self._buffers}, (inputs,))
            return found

        return outputs

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        sizes: Sequence[int] = [shape.numel() for shape in self._shapes.values()]
        parts = torch.split(flat, list(sizes))
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}
