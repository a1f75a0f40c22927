"""A Lightning callback: levers, tracker and pruning in `lightning.pytorch.Trainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise ImportError("the Lightning callback needs lightning: pip install 'trimtab[lightning]'") from error

from trimtab.adapters.lever_callback import LeverCallback
from trimtab.adapters.lightning_accumulation import AccumulatedBatches
from trimtab.levers import Lever
from trimtab.observe import GradientTracker
from trimtab.optimizers import TwoPassOptimizer


class TrimtabCallback(LeverCallback, Callback):  # type: ignore[misc]
    """Levers on one optimizer, or several as one, of a LightningModule, for automatic and manual optimisation.

    They act once per optimizer step on unscaled, accumulated, reduced gradients, after Lightning's own clipping
    (`gradient_clip_val`). Their state is saved in and loaded from every checkpoint. Levers that do something last (`finish`) do
    it after the last checkpoint is written; then the model is pruned.

    Args:
        levers, tracker, prune, masks: see `LeverCallback`.
        optimizer: place of the optimizer in what `configure_optimizers` returns, or a tuple of places: then the levers act
            at each one's step, and a step counts once for all (a GAN's). Default None: the only one.

    With SAM, ASAM or CrAM and `accumulate_grad_batches` above 1, the callback (also without levers) repeats all accumulated
    batches in the second pass, for which it keeps them until the step; `self.log` then hears of them twice.

    Raises:
        ValueError: (when training starts) there are several optimizers and `optimizer` is None, or none in that place; there
            is nothing to do.

    Example:
        >>> import trimtab
        >>> callback = TrimtabCallback(levers=trimtab.penalties.L1(strength=1e-5), prune=0.9)
        >>> trainer = Trainer(callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False)
    """

    may_be_empty = True

    def __init__(
        self,
        levers: Lever | Sequence[Lever] = (),
        tracker: GradientTracker | None = None,
        prune: float | Mapping[str, Any] | None = None,
        optimizer: int | tuple[int, ...] | None = None,
        masks: Mapping[str, Tensor] | Literal["zeros"] | None = None,
    ) -> None:
        super().__init__(levers, tracker, prune, masks)
        self.optimizer = optimizer
        self._accumulated: list[AccumulatedBatches] = []

    @property
    def state_key(self) -> str:
        """Where a checkpoint keeps the state: apart for callbacks of different optimizers."""
        return type(self).__name__ if self.optimizer is None else f"{type(self).__name__}[optimizer={self.optimizer}]"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach, after a checkpoint has been restored."""
        present = len(trainer.optimizers)
        wanted = (self.optimizer,) if isinstance(self.optimizer, int) else self.optimizer
        if (wanted is None and present != 1) or not all(0 <= place < present for place in wanted or (0,)):
            raise ValueError(
                f"levers act on one optimizer and {type(pl_module).__name__} configures {present}; "
                f"TrimtabCallback(optimizer=...) must be one place or several below that, got {self.optimizer}"
            )
        optimizers = [trainer.optimizers[place] for place in wanted or (0,)]
        two_pass = [item for item in optimizers if isinstance(item, TwoPassOptimizer)]
        if self.empty and not two_pass:
            raise ValueError("TrimtabCallback has nothing to do: give levers, tracker, prune or masks")
        if pl_module.automatic_optimization:
            self._accumulated = [AccumulatedBatches(trainer, pl_module, item) for item in two_pass]
        clips = f"gradient_clip_val={trainer.gradient_clip_val}" if trainer.gradient_clip_val else None
        self._start(optimizers[0] if len(optimizers) == 1 else optimizers, pl_module, clips)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batches that SAM, ASAM or CrAM will repeat."""
        for batches in self._accumulated:
            batches.add(batch, batch_idx)

    def on_exception(self, *about: object) -> None:
        """Detach and flush."""
        while self._accumulated:
            self._accumulated.pop().remove()
        self._stop()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish, detach, flush and prune; the last checkpoint is written."""
        self._finish(pl_module)
        self.on_exception()
