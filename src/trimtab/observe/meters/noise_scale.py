"""GradientNoiseScale: from which batch on a larger one no longer helps, read off micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trimtab.checks import below_one, positive
from trimtab.collectives import is_distributed, is_sharded, sum_over_ranks
from trimtab.levers import numbers_of
from trimtab.observe.meters.meter import Meter
from trimtab.parameters import Entry
from trimtab.tensors.norms import each_norm


class GradientNoiseScale(Meter):
    """Simple noise scale `B = tr(Sigma) / |G|^2`, in examples, from the gradients of parts of a step.

    A step of `k` micro-batches on each of `W` ranks, of b examples each, holds gradients of batches of b and of `B = k W b`.
    With n_b and n_B the squared norms, n_b the mean over the parts:

        |G|^2 = (B n_B - b n_b) / (B - b),   tr(Sigma) = (n_b - n_B) / (1/b - 1/B),

    both without bias, smoothed over steps, then divided. Batches well below B halve the steps needed when doubled, well above
    they do not.

    The parts are counted as they come: whatever the loop calls, each backward pass through the parameters is one, before
    ranks are averaged. Nothing is copied.

    Signals: `noise_scale` (NaN while the signal is not above 0), `noise_signal` |G|^2, `noise_variance` tr(Sigma).

    Args:
        batch: examples of a micro-batch of one rank, b; above 0.
        every: as of `Meter`.
        decay: of the smoothing, in [0, 1). Default 0.99.
        scaler: the GradScaler, where the loss is scaled; its factor is taken off the parts.

    Raises:
        ValueError: a number is out of range; (at a step) the step has one micro-batch on one rank, or weights are sharded.

    Reference: McCandlish et al., arXiv 1812.06162, appendix A.

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> optimizer, meter = torch.optim.SGD(net.parameters(), lr=0.0), GradientNoiseScale(batch=1)
        >>> handle = trimtab.attach(optimizer, meter, model=net)
        >>> for value in (1.0, 3.0):  # per-example gradients 1 and 3: variance 2, squared mean 4 - 2 / 2
        ...     (net(torch.tensor([[value]])).sum() / 2).backward()
        >>> optimizer.step()
        >>> {name: round(float(value), 6) for name, value in meter.signals().items()}
        {'noise_scale': 0.666667, 'noise_signal': 3.0, 'noise_variance': 2.0}
    """

    one_optimizer = "it joins the gradients of one optimizer's step; make one for each"

    def __init__(
        self,
        batch: float,
        every: int | Callable[[int], bool] = 1,
        decay: float = 0.99,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        super().__init__(every)
        self.batch = positive("batch", batch)
        self.decay = below_one("decay", decay)
        self.scaler = scaler
        self._sums = torch.zeros(3, dtype=torch.float64)
        """Smoothed signal and variance, and the weight that their smoothing has."""
        self._hooks: dict[int, Any] = {}
        self._squares: list[Tensor] = []
        self._calls: dict[int, int] = {}
        self._factor = 1.0

    def bind(self, optimizer: torch.optim.Optimizer, model: Any, parameters: Sequence[Entry]) -> None:
        """Listen to the parameters' gradients; called by `trimtab.attach`."""
        known = {id(one.parameter): one for one in parameters if one.parameter.requires_grad}
        if sharded := [one.name for one in known.values() if is_sharded(one.parameter)]:
            raise ValueError(
                f"{self!r} compares the gradients of ranks before they are averaged, which sharded weights such as "
                f"{sharded[0]} never hold"
            )
        self._drop(known)
        for key, entry in known.items():
            if key not in self._hooks:
                self._hooks[key] = entry.parameter.register_hook(  # type: ignore[no-untyped-call]
                    self._listener(key)
                )

    def _drop(self, known: Any = ()) -> None:
        for key in [key for key in self._hooks if key not in known]:
            self._hooks.pop(key).remove()

    def unbind(self) -> None:
        """Listen no more; called by `Handle.remove`."""
        self._drop()

    def _listener(self, key: int) -> Callable[[Tensor], None]:
        def listen(gradient: Tensor) -> None:
            if self.due:
                if not self._calls:
                    self._factor = 1.0 if self.scaler is None else float(self.scaler.get_scale())
                self._calls[key] = self._calls.get(key, 0) + 1
                numbers = numbers_of(gradient.detach())
                norm = torch.linalg.vector_norm(numbers, dtype=torch.promote_types(numbers.dtype, torch.float32))
                self._squares.append(norm.double().square())

        return listen

    def measure(self, parameters: Sequence[Entry]) -> dict[str, Tensor]:
        """The estimates with this step's."""
        parts, squares = max(self._calls.values(), default=0), self._squares
        heard = [one for one in parameters if id(one.parameter) in self._calls and one.parameter.grad is not None]
        self._calls, self._squares = {}, []
        self.bind(None, None, parameters)  # type: ignore[arg-type]  # parameters may have come or been replaced
        if not heard:
            return {}
        ranks = dist.get_world_size() if is_distributed() else 1
        if parts * ranks < 2:
            raise ValueError(
                f"{self!r} needs the gradients of two or more micro-batches or ranks in a step, this one has a single one; "
                "accumulate, or use several processes"
            )
        device = squares[0].device
        small, large = self.batch, self.batch * parts * ranks
        of_parts = sum_over_ranks(torch.stack([one.to(device) for one in squares]).sum()) / self._factor**2
        of_small = of_parts * parts / ranks
        whole = [one.parameter.grad for one in heard if one.parameter.grad is not None]
        of_large = each_norm([numbers_of(one) for one in whole]).square().sum().to(device)
        signal = (large * of_large - small * of_small) / (large - small)
        variance = (of_small - of_large) / (1 / small - 1 / large)
        found = torch.stack([signal, variance, torch.ones_like(signal)])
        self._sums = self._sums.to(device)
        moved = self.decay * self._sums + (1 - self.decay) * found
        self._sums = torch.where(found.isfinite().all(), moved, self._sums)
        signal, variance, weight = self._sums.unbind()
        scale = torch.where(signal > 0, variance / signal, torch.nan)
        return {"noise_scale": scale, "noise_signal": signal / weight, "noise_variance": variance / weight}

    def state_dict(self) -> dict[str, Any]:
        """Steps seen, and the smoothed estimates."""
        return {**super().state_dict(), "sums": self._sums.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        super().load_state_dict(state)
        self._sums = torch.tensor(state["sums"], dtype=torch.float64)
