"""What a lever is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from trimtab.parameters import Entry


@runtime_checkable
class Lever(Protocol):
    """An object that acts on gradients or weights just before an optimizer's step.

    `state_dict` holds plain tensors, numbers, strings, lists and dicts only, so that `torch.load(weights_only=True)`
    and JSON + safetensors can carry it.

    More is used where a lever has it:

    * `after_step(parameters)`: called when the optimizer has stepped; not for a step that `GradScaler` skipped.
    * `see(loss)`: called with the loss that the step's gradients belong to, before the step, by who knows it: a run, a closure.
    * `vetoes(parameters)`: asked before any lever acts; where it says True the step is not taken, as `on_nonfinite="skip"` does
      it: weights, moments and counts stay, only levers that observe see it.
    * `end_step()`: called after that, when the step counts; once for all the optimizers of one `attach`.
    * `bind(optimizer, model, parameters)`: called by `attach`, with the optimizer that takes the step, the model given to
      `attach` (or None) and the parameters that `before_step` will get.
    * `unbind()`: called by `Handle.remove`.
    * `value(parameters)`: the term of the objective whose gradient `before_step` adds. `optimizer.step(closure)` gets
      closure's loss plus this value, so that an optimizer which searches along a line sees one objective.
    * `observes` (True): it changes nothing. Where an optimizer calls its closure several times, it is called at the first
      call alone, at the weights before the step; it also sees a step that `on_nonfinite="skip"` skips.
    * `one_optimizer` (a reason): it does not fit several optimizers at once; `attach` refuses with that reason.
    * `transforms`: levers that stand for this one, as in `Chain`.
    * `finish(parameters)`: called once when training has ended, after the last step and before the last validation and the
      saving of the final weights (a last projection, averaged weights put in their place), by `Handle.finish`.
    * `needs_recalibration` (True): `finish` changed the weights so that BatchNorm statistics no longer fit; read after it. A
      run re-estimates them at once, with `trimtab.pruning.recalibrate`.
    * `outlook(remaining)`: one line, said at a run's start, on what to expect of it; `remaining` is the sum of the learning
      rates to come, in initial ones. Empty where nothing is to be said.
    * `describe()`: plain numbers by name, that a run writes into its record after each epoch; called on every rank.
    """

    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Act on the gradients (`entry.parameter.grad`) of the optimizer's parameters, in place."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had not stopped."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state over; raise ValueError when it does not fit."""


def members(levers: Sequence[Lever]) -> Iterator[Lever]:
    """The levers that act, in order: those of a chain instead of the chain."""
    for lever in levers:
        inner = getattr(lever, "transforms", None)
        if isinstance(inner, tuple):
            yield from members(inner)
        else:
            yield lever


def call(lever: Lever, method: str, *arguments: Any) -> None:
    """Call a method that a lever need not have."""
    if callable(found := getattr(lever, method, None)):
        found(*arguments)


def observes(lever: Lever) -> bool:
    """Whether the lever says that it changes nothing."""
    return bool(getattr(lever, "observes", False))
