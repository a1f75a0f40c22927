"""What `attach` returns: the hooks on the optimizers, and what happens in them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.frames import Tabular
from trimtab.levers.listed import Listed, unscale_fused, without_gradients
from trimtab.levers.nonfinite import NonFinite
from trimtab.levers.protocol import Lever, call, members, observes
from trimtab.parameters import Entry

Optimizer = torch.optim.Optimizer

live: weakref.WeakSet[Handle] = weakref.WeakSet()
"""Every handle that is at work; its optimizers' hooks keep it alive."""


def handles_on(optimizer: Optimizer) -> list[Handle]:
    """The handles at work on this very optimizer, in the order attached."""
    hooks = getattr(optimizer, "_optimizer_step_pre_hooks", {}).values()
    return [owner for hook in hooks if isinstance(owner := getattr(hook, "handle", None), Handle)]


def _hook(handle: Handle, method: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that stays out of the graph of a compiled `optimizer.step`: levers look at numbers and count."""
    eager = torch.compiler.disable(method)  # type: ignore[no-untyped-call]
    eager.handle = handle
    return eager  # type: ignore[no-any-return]


class Handle(Tabular):
    """What `attach` returns: removes the levers again and carries their state.

    Works as a context manager that removes the levers at its end.

    Attributes:
        levers: what was attached, in order.
        optimizers: those that take the steps.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        levers: tuple[Lever, ...],
        model: nn.Module | None,
        on_nonfinite: str = "pass",
    ) -> None:
        self.levers = levers
        self._acting = list(members(levers))
        self._policy = NonFinite(on_nonfinite)
        # with observers alone nothing is handed on, and a tracker counts what is not finite itself
        self._judges = on_nonfinite != "pass" or not all(map(observes, self._acting))
        self.optimizers = tuple(optimizers)
        self._listed = Listed(self.optimizers, model)
        self._applied, self._skipping = False, False
        self._finished = False
        self._calls = 0
        self.kept_back: list[tuple[Tensor, Tensor]] = []
        self._stepped: set[int] = set()
        parameters = self._listed.current()
        self._bound: list[Lever] = []
        try:
            for lever in self._acting:
                call(lever, "bind", self.optimizers[0], model, parameters)
                self._bound.append(lever)
        except BaseException:
            self._unbind()
            raise
        self._hooks = []
        for optimizer in self.optimizers:
            self._hooks += [
                optimizer.register_step_pre_hook(_hook(self, self._before_step)),
                optimizer.register_step_post_hook(_hook(self, self._after_step)),
            ]
        live.add(self)

    @property
    def skipped(self) -> int:
        """Steps that `on_nonfinite="skip"` skipped so far."""
        return self._policy.skipped

    @property
    def skipped_in_a_row(self) -> int:
        """Of these, the last ones without a step in between."""
        return self._policy.in_a_row

    def _place(self, optimizer: Optimizer) -> int:
        return next(place for place, own in enumerate(self.optimizers) if own is optimizer)

    def _apply(self, place: int) -> None:
        optimizer = self.optimizers[place]
        if not unscale_fused(optimizer):
            return
        parameters = self._listed.current()
        first, self._calls = self._calls == 0, self._calls + 1
        # an earlier handle may have taken the gradients off already
        withheld = any(handle.kept_back for handle in handles_on(optimizer) if handle is not self)
        with without_gradients(self._listed.of_others(place)):
            vetoed = self._vetoed(parameters) if first else self._skipping
            self._skipping = withheld or vetoed or (self._judges and self._policy.skips(self._listed.lists[place]))
            for lever in self._acting:
                if first if observes(lever) else not self._skipping:
                    lever.before_step(parameters)
        if self._skipping:  # optimizers pass over parameters without a gradient: no moment, no decay, no count moves
            held = [entry.parameter for entry in self._listed.lists[place] if entry.parameter.grad is not None]
            self.kept_back = [(parameter, parameter.grad) for parameter in held if parameter.grad is not None]
            for parameter in held:
                parameter.grad = None
        self._applied = True

    def _vetoed(self, parameters: list[Entry]) -> bool:
        """Whether a lever says that this step must not be taken; all that can say so are asked."""
        asked = [judge for lever in self._acting if callable(judge := getattr(lever, "vetoes", None))]
        answers = [judge(parameters) for judge in asked]
        return any(answers)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._applied, self._skipping, self._calls = False, False, 0
        self.kept_back = []
        place = self._place(optimizer)
        if place in self._stepped:  # it steps again before all others have: a step of its own
            self._end_step()
        # args[0] is the optimizer itself: torch hands the hook the arguments of the unbound `step`.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._apply(place)
            return None
        # The step computes its gradients by this closure, so the levers act after each of its calls.
        wrapped = self._after(closure, place)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    def _after(self, closure: Callable[[], Any], place: int) -> Callable[[], Any]:
        def closure_and_levers() -> Any:
            loss = closure()
            with torch.no_grad():
                if self._calls == 0 and loss is not None:
                    for lever in self._acting:
                        call(lever, "see", loss)
                self._apply(place)
                return loss if self._skipping else self._objective(loss, place)

        return closure_and_levers

    def _objective(self, loss: Any, place: int) -> Any:
        """The loss plus the value of every lever that has one: what the gradients that the levers left belong to."""
        if not self._applied or not isinstance(loss, Tensor | float | int):
            return loss
        for lever in self._acting:
            if callable(value := getattr(lever, "value", None)):
                term = value(self._listed.lists[place])
                loss = loss + (term.to(loss.device) if isinstance(loss, Tensor) else float(term))
        return loss

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for parameter, gradient in self.kept_back:
            parameter.grad = gradient
        self.kept_back = []
        if not self._applied:
            return
        self._finished = False
        place = self._place(optimizer)
        with without_gradients(self._listed.of_others(place)):
            for lever in self._acting:
                if observes(lever) or not self._skipping:
                    call(lever, "after_step", self._listed.entries)
        self._stepped.add(place)
        if len(self._stepped) == len(self.optimizers):
            self._end_step()

    @torch.no_grad()
    def show(self, optimizer: Optimizer) -> None:
        """Let the levers that observe see the gradients that stand, of a step that a wrapper will not take."""
        self._applied, self._skipping, self.kept_back = True, True, []
        place = self._place(optimizer)
        if place in self._stepped:
            self._end_step()
        parameters = self._listed.current()
        with without_gradients(self._listed.of_others(place)):
            for lever in filter(observes, self._acting):
                lever.before_step(parameters)
        self._after_step(optimizer, (), {})

    def _end_step(self) -> None:
        """Count the step of all optimizers."""
        if self._stepped:
            self._stepped.clear()
            for lever in self._acting:
                if observes(lever) or not self._skipping:
                    call(lever, "end_step")

    @torch.no_grad()
    def finish(self) -> bool:
        """Training has ended: let the levers do what they do last, such as a final projection; before the last validation.

        Called by whoever owns the loop, once; again without a step in between it does nothing, also in a resumed run whose
        state was saved after it.

        Returns:
            Whether BatchNorm statistics should be re-estimated now, because a lever changed the weights
            (`trimtab.pruning.recalibrate`).

        Example:
            >>> import trimtab
            >>> net = nn.Linear(2, 1)
            >>> handle = trimtab.attach(torch.optim.SGD(net.parameters(), lr=0.1), trimtab.penalties.L1(0.5))
            >>> handle.finish()
            False
        """
        if self._finished:
            return False
        self._end_step()
        parameters = self._listed.current()
        for lever in self._acting:
            call(lever, "finish", parameters)
        self._finished = True
        return any(getattr(lever, "needs_recalibration", False) for lever in self._acting)

    def _unbind(self) -> None:
        while self._bound:
            call(self._bound.pop(), "unbind")

    def remove(self) -> None:
        """Detach the levers; calling it again does nothing."""
        for hook in self._hooks:
            hook.remove()
        live.discard(self)
        self._end_step()
        self._policy.read()
        self._unbind()

    def state_dict(self) -> dict[str, Any]:
        """State of every lever, in order. With several optimizers it ends a step that only some of them have taken."""
        self._end_step()
        self._policy.read()
        return {
            "levers": [{"type": type(lever).__name__, "state": lever.state_dict()} for lever in self.levers],
            "skipped": self.skipped,
            "finished": self._finished,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; ValueError when the levers differ in number or type."""
        saved = [item["type"] for item in state["levers"]]
        present = [type(lever).__name__ for lever in self.levers]
        if saved != present:
            raise ValueError(
                f"the saved levers are {saved}, the attached ones {present}; attach the same levers in the same order"
            )
        for lever, item in zip(self.levers, state["levers"], strict=True):
            lever.load_state_dict(item["state"])
        self._policy.skipped = int(state.get("skipped", 0))
        self._finished = bool(state.get("finished", False))

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def records(self) -> list[dict[str, Any]]:
        """One per lever, in the order they act: `place`, `lever`, `optimizers`."""
        names = ", ".join(type(optimizer).__name__ for optimizer in self.optimizers)
        return [{"place": at, "lever": repr(lever), "optimizers": names} for at, lever in enumerate(self.levers, 1)]

    def _title(self) -> str:
        return f"{len(self.levers)} levers in the order they act"

    def __repr__(self) -> str:
        names = ", ".join(type(optimizer).__name__ for optimizer in self.optimizers)
        return f"Handle({names}: {' -> '.join(map(repr, self.levers)) or 'no lever'})"
