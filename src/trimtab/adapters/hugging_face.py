"""A Hugging Face callback: levers, tracker and pruning in `transformers.Trainer`."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from torch import nn

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ModuleNotFoundError as error:
    raise ImportError("the Trainer's callback needs transformers: pip install 'trimtab[transformers]'") from error

from trimtab.adapters.lever_callback import LeverCallback


class TrimtabCallback(LeverCallback, TrainerCallback, ExportableState):  # type: ignore[misc]
    """Levers on the optimizer of a `transformers.Trainer`, one such callback per Trainer.

    They act once per optimizer step on unscaled, accumulated, reduced gradients, after the Trainer's own clipping
    (`max_grad_norm`, 1.0 unless set to 0). Their state is saved in `trainer_state.json` of every checkpoint and loaded from
    there when training resumes; `restore_callback_states_from_checkpoint` must stay False, because it would build the
    callback anew without its levers. Levers that do something last (`finish`) do it after the last checkpoint is written; then
    the model is pruned.

    Args:
        levers, tracker, prune, masks: see `LeverCallback`.

    Example:
        >>> import trimtab
        >>> callback = TrimtabCallback(levers=trimtab.penalties.L1(strength=1e-5), prune=0.9)
    """

    def state(self) -> dict[str, Any]:
        """What the Trainer saves: `state_dict` as base64 text, exact to the bit."""
        file = io.BytesIO()
        torch.save(self.state_dict(), file)
        return {"args": {}, "attributes": {"saved": base64.b64encode(file.getvalue()).decode()}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Attach, after a checkpoint has been restored."""
        # a checkpoint saved without this callback has no entry, and saving the next one needs it
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if isinstance(saved, list):
            raise ValueError(f"give one TrimtabCallback all levers; this Trainer has {len(saved)}")
        file = io.BytesIO(base64.b64decode(saved["attributes"]["saved"]))
        self.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self._start(
            others["optimizer"], others["model"], f"max_grad_norm={args.max_grad_norm}" if args.max_grad_norm else None
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **others: Any
    ) -> None:
        """Finish, detach, flush and prune."""
        self._finish(model)
