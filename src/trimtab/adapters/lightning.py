"""A Lightning callback: levers, tracker and pruning in `lightning.pytorch.Trainer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from trimtab.adapters.lever_callback import LeverCallback
from trimtab.levers import Lever, innermost
from trimtab.observe import GradientTracker


class TrimtabCallback(LeverCallback, Callback):  # type: ignore[misc]
    """Levers on one optimizer of a LightningModule, for automatic and manual optimisation.

    They act once per optimizer step on unscaled, accumulated, reduced gradients, after Lightning's own clipping
    (`gradient_clip_val`). Their state is saved in and loaded from every checkpoint. The model is pruned after the last
    checkpoint is written.

    Args:
        levers, tracker, prune: see `LeverCallback`.
        optimizer: place of the optimizer in what `configure_optimizers` returns. Default None: the only one.

    Raises:
        ValueError: (when training starts) there are several optimizers and `optimizer` is None, or none in that place;
            SAM, ASAM or CrAM with `accumulate_grad_batches` above 1, whose closure repeats the last batch alone.

    Example:
        >>> import trimtab
        >>> callback = TrimtabCallback(levers=trimtab.penalties.L1(strength=1e-5), prune=0.9)
        >>> trainer = Trainer(callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        levers: Lever | Sequence[Lever] = (),
        tracker: GradientTracker | None = None,
        prune: float | Mapping[str, Any] | None = None,
        optimizer: int | None = None,
    ) -> None:
        super().__init__(levers, tracker, prune)
        self.optimizer = optimizer

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach, after a checkpoint has been restored."""
        present = len(trainer.optimizers)
        if present != 1 and not (self.optimizer is not None and 0 <= self.optimizer < present):
            raise ValueError(
                f"levers act on one optimizer and {type(pl_module).__name__} configures {present}; "
                f"TrimtabCallback(optimizer=...) must be below that, got {self.optimizer}"
            )
        optimizer = trainer.optimizers[self.optimizer or 0]
        if innermost(optimizer) is not optimizer and trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"{type(optimizer).__name__} takes both gradients from the last of {trainer.accumulate_grad_batches} "
                "accumulated batches alone; use accumulate_grad_batches=1 or manual optimization"
            )
        clips = f"gradient_clip_val={trainer.gradient_clip_val}" if trainer.gradient_clip_val else None
        self._start(optimizer, pl_module, clips)

    def on_train_end(self, *about: object) -> None:
        """Detach and flush, also after an exception."""
        self._stop()

    on_exception = on_train_end

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune."""
        self._prune(pl_module)
