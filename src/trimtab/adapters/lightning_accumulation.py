"""Both passes of SAM, ASAM and CrAM over all batches that Lightning accumulates."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from trimtab.optimizers import TwoPassOptimizer
from trimtab.optimizers.second_pass import RandomState


class AccumulatedBatches:
    """Keeps the batches of a step and repeats them in the second pass, with the random numbers of the first.

    Lightning's closure runs the last batch alone: the gradients of those before it stand already. So the first pass adds the
    last batch to them, and the second one, at the perturbed weights, repeats them all.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, optimizer: TwoPassOptimizer) -> None:
        self._trainer, self._module, self._optimizer = trainer, module, optimizer
        self._batches: list[tuple[Any, int, RandomState]] = []
        self._hook = optimizer.register_step_pre_hook(self._before_step)

    def remove(self) -> None:
        """Let the optimizer and the batches go."""
        self._hook.remove()
        self._batches = []

    def _random_state(self) -> RandomState:
        return RandomState(parameter.device for parameter in self._module.parameters())

    def add(self, batch: Any, batch_idx: int) -> None:
        """Keep a batch that is about to be seen; a window that begins anew forgets the last one."""
        if batch_idx % self._trainer.accumulate_grad_batches == 0:
            self._batches = []
        self._batches.append((batch, batch_idx, self._random_state()))

    def _before_step(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        *earlier, _ = self._batches
        if closure is None or not earlier:
            return None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        standing: list[tuple[Tensor, Tensor | None]] = [(parameter, parameter.grad) for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        last = self._random_state()
        calls: list[int] = []

        def all_batches() -> Any:
            if calls:
                for kept in earlier:
                    self._backward(*kept)
                last.restore()
            else:
                for parameter, gradient in standing:
                    parameter.grad = gradient
            calls.append(1)
            return closure()

        return args[:1], {**kwargs, "closure": all_batches}

    def _backward(self, batch: Any, batch_idx: int, random: RandomState) -> None:
        """Repeat a batch, without a reduction over the ranks: that of the last batch does it."""
        random.restore()
        strategy = self._trainer.strategy
        takes_index = is_param_in_hook_signature(self._module.training_step, "batch_idx", min_args=2)
        with strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext():
            output = call._call_strategy_hook(self._trainer, "training_step", batch, *[batch_idx][:takes_index])  # noqa: SLF001  (the hook that Lightning itself calls)
            loss = output["loss"] if isinstance(output, Mapping) else output
            if loss is not None:
                normed = loss / self._trainer.accumulate_grad_batches
                call._call_strategy_hook(self._trainer, "backward", normed, self._optimizer)  # noqa: SLF001  (the hook that Lightning itself calls)
