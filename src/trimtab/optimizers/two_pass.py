"""What SAM, ASAM and CrAM share: a step of two gradients around any `torch.optim` optimizer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.collectives import local_part
from trimtab.levers import any_nonfinite, attached, on_any_rank, show
from trimtab.optimizers.norms import global_norm, gradients_of
from trimtab.optimizers.second_pass import Climbed, EarlierGradients, RandomState, statistics_kept, weights_kept
from trimtab.optimizers.wrapper import OptimizerWrapper
from trimtab.parameters import entries

EXTRA = "two_pass"


def _enabled(scaler: torch.amp.GradScaler | None) -> torch.amp.GradScaler | None:
    return scaler if scaler is not None and scaler.is_enabled() else None


class TwoPassOptimizer(OptimizerWrapper):
    """A wrapper that takes the base optimizer's step with a gradient from perturbed weights.

    Parameter groups, state and defaults are the base optimizer's own objects, so schedulers may act on either of them.
    Subclasses say how to perturb (`_perturb`) and how the final gradient is formed (`_final_gradient`).
    """

    def __init__(self, base: torch.optim.Optimizer, model: nn.Module | None) -> None:
        super().__init__(base, model)
        self.steps = 0
        self.on_nonfinite: Literal["raise", "skip"] = "raise"
        """What to do about inf or NaN without a GradScaler: "raise" (default) or "skip" the step and warn once."""
        self.skipped = self.skipped_in_a_row = 0
        """Steps that `on_nonfinite="skip"` skipped in all, and the last ones without a step in between."""
        self._random: RandomState | None = None
        self._climbed: Climbed | None = None

    def _second_pass(self) -> bool:
        """Whether this step takes a second gradient; else the first one is that of the step."""
        return True

    def _perturb(self, parameters: list[Tensor], norm: float) -> Any:
        """Move the weights in place; what is returned comes back to `_final_gradient`."""
        raise NotImplementedError

    def _final_gradient(self, parameters: list[Tensor], memory: Any) -> None:
        """Turn the perturbed gradient, already unscaled, into the one of the step, in place."""

    def _take_step(self, scaler: torch.amp.GradScaler | None) -> None:
        """The base optimizer's step with the final gradient."""
        if scaler is None:
            self.base_optimizer.step()
        else:
            scaler.step(self.base_optimizer)

    def _touched(self) -> list[Tensor]:
        """Parameters that are trained, each once."""
        held = {id(p): p for group in self.param_groups for p in group["params"] if p.requires_grad}
        for position, parameter in enumerate(held.values()):
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                raise ValueError(
                    f"{type(self).__name__} needs dense gradients, that of {self._name_of(parameter, position)}, of shape "
                    f"{tuple(parameter.shape)}, has layout {parameter.grad.layout}; build its layer with sparse=False, "
                    f"or give it to an optimizer of its own outside {type(self).__name__}"
                )
        return list(held.values())

    def _name_of(self, parameter: Tensor, position: int) -> str:
        listed = entries(self.base_optimizer if self.model is None else self.model)
        names = [entry.name for entry in listed if entry.parameter is parameter and entry.named]
        return names[0] if names else f"parameter {position}"

    def _norm_or_none(self, parameters: list[Tensor]) -> float | None:
        """Norm of all gradients, or None when one of them holds inf or NaN, on any rank."""
        holders = [parameter for parameter in parameters if parameter.grad is not None]
        norm = global_norm(gradients_of(holders), holders)
        bad = not math.isfinite(norm) and any_nonfinite(holders, over_ranks=False)
        return None if on_any_rank(bad, parameters) else norm

    def _without_removed(self) -> None:
        """Set the gradients of weights that masks keep at zero to zero: the perturbation is for the kept ones."""
        for lever in attached(self.base_optimizer):
            for parameter, gone in getattr(lever, "removed", tuple)():
                if parameter.grad is not None:
                    parameter.grad.masked_fill_(gone, 0)

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
        before_step: Callable[[], Any] | None = None,
    ) -> Any:
        """Take one step: gradient, perturbed gradient, weights put back, base optimizer's step.

        Args:
            closure: clears the gradients, computes the loss (in micro-batches if wanted), calls `backward` and returns
                the loss. It runs twice and must see the same data both times. Where no closure can be given, see `ascend`.
            grad_scaler: when given, the closure calls `grad_scaler.scale(loss).backward()`. Both passes are unscaled
                here; the step is skipped when either has inf or NaN. Calling `grad_scaler.update()` stays with you.
            before_step: called once, when the final gradient stands and the weights are back; the place for
                `clip_grad_norm_`. Levers attached to this optimizer act after it.

        Returns:
            What the first call of the closure returned: the loss at the unperturbed weights.

        Raises:
            TypeError: no closure.
            ValueError: a gradient is sparse.
            RuntimeError: the closure adds to gradients of earlier batches, which the second pass would not see.
            FloatingPointError: a gradient has inf or NaN, there is no grad_scaler and `on_nonfinite` is "raise". The weights
                are as before.
        """
        name = type(self).__name__
        if not callable(closure):
            raise TypeError(
                f"{name}.step needs a closure that clears the gradients, computes the loss, calls backward and returns "
                f"the loss, because it takes two gradients; got {closure!r}. Without a closure: backward, ascend(), backward "
                "again on the same data, descend()"
            )
        self.begin()
        earlier = EarlierGradients(p for group in self.param_groups for p in group["params"] if p.requires_grad)
        try:
            with torch.enable_grad():
                loss = closure()
        except BaseException:
            self._random = None
            raise
        if earlier.remain():
            self._random = None
            raise RuntimeError(
                f"the closure adds to gradients that were there before {name}.step (of accumulated batches?), and the second "
                "pass would see its own batch alone. Clear the gradients and go through all batches in the closure, or use "
                f"{name}.ascend() and descend(); in Lightning with accumulate_grad_batches give the Trainer "
                "callbacks=[trimtab.adapters.lightning.TrimtabCallback()], which repeats all batches"
            )
        if self.ascend(grad_scaler):
            try:
                with torch.enable_grad():
                    closure()
            except BaseException:
                self.retreat()
                raise
        self.descend(grad_scaler, before_step)
        return loss

    # The same step in two calls, for loops that give no closure or accumulate

    def begin(self) -> None:
        """Before the first forward pass (optional): both passes then see the same random numbers, such as dropout masks."""
        if self._climbed is None:
            self._random = RandomState(p.device for group in self.param_groups for p in group["params"])

    @torch.no_grad()
    def ascend(self, grad_scaler: torch.amp.GradScaler | None = None) -> bool:
        """Move to the perturbed weights by the gradients that stand, and clear them; then compute those of the same data there.

        The gradients must be those of the whole step: of all accumulated batches, reduced over the ranks. Weights, buffers
        (running statistics) and random numbers come back in `descend`, or in `retreat`.

        Args:
            grad_scaler: the scaler, where the loss was scaled; give it to `descend` too.

        Returns:
            True when the weights moved; False when a gradient is not finite and the step will be skipped, or when this step
            takes no second gradient: the second pass is to be left out, `descend` must still be called.

        Raises:
            RuntimeError: the last `ascend` has not been followed by `descend` or `retreat`.
            ValueError, FloatingPointError: as `step`.

        Example:
            >>> from trimtab.optimizers import SAM
            >>> net = nn.Linear(2, 1)
            >>> optimizer = SAM(torch.optim.SGD(net.parameters(), lr=0.1), model=net)
            >>> batches = [torch.ones(1, 2), torch.zeros(1, 2)]
            >>> for inputs in batches:
            ...     (net(inputs).square().sum() / 2).backward()
            >>> if optimizer.ascend():
            ...     for inputs in batches:
            ...         (net(inputs).square().sum() / 2).backward()
            >>> optimizer.descend()
            True
        """
        if self._climbed is not None:
            raise RuntimeError(
                f"{type(self).__name__}.ascend was called before; descend() takes the step, retreat() puts the weights back"
            )
        scaler = _enabled(grad_scaler)
        random, self._random = self._random, None
        parameters, single = self._touched(), not self._second_pass()
        if scaler is not None and single:
            scaler.unscale_(self.base_optimizer)
        elif scaler is not None and (gradients := gradients_of(parameters)):
            torch._foreach_mul_(gradients, 1.0 / scaler.get_scale())
        self._without_removed()
        norm = self._norm_or_none(parameters)
        if norm is None:
            if scaler is not None and not single:
                scaler.unscale_(self.base_optimizer)  # finds the inf and remembers it for scaler.step and update
            self._refuse_or_warn(scaler, "gradient")
            self._climbed = Climbed(ExitStack(), None, scaled=scaler is not None, finite=False)
            return False
        if single:
            self._climbed = Climbed(ExitStack(), None, scaled=scaler is not None, single=True)
            return False
        back = ExitStack()
        try:
            back.enter_context(weights_kept([local_part(parameter) for parameter in parameters]))
            memory = self._perturb(parameters, norm)
            torch.clear_autocast_cache()  # inside an outer autocast, casts of the unperturbed weights are cached
            back.enter_context(statistics_kept(self.model))
            if random is not None:
                back.enter_context(random.replayed())
        except BaseException:
            back.close()
            raise
        for parameter in parameters:
            parameter.grad = None
        self._climbed = Climbed(back, memory, scaled=scaler is not None)
        return True

    def descend(
        self,
        grad_scaler: torch.amp.GradScaler | None = None,
        before_step: Callable[[], Any] | None = None,
    ) -> bool:
        """Put the weights back and let the base optimizer step with the gradients of the perturbed ones.

        Args:
            grad_scaler, before_step: as in `step`. Calling `grad_scaler.update()` stays with you.

        Returns:
            Whether the step was taken, as far as it is known here (a fused base under a scaler decides itself).

        Raises:
            RuntimeError: there was no `ascend`.
            ValueError: `ascend` had a scaler and this call has none, or the other way round; or a gradient is sparse.
            FloatingPointError: as `step`.
        """
        name, scaler, climbed = type(self).__name__, _enabled(grad_scaler), self._climbed
        if climbed is None:
            raise RuntimeError(f"{name}.descend needs an {name}.ascend before it, between the two backward passes")
        self.retreat()
        if climbed.scaled != (scaler is not None):
            raise ValueError(f"give grad_scaler to both {name}.ascend and {name}.descend, or to neither")
        if not climbed.finite:
            if scaler is not None:
                scaler.step(self.base_optimizer)  # skips: it has found the inf
            return False
        if not climbed.single and not self._finish_gradient(scaler, climbed.memory):
            return False
        if before_step is not None:
            before_step()
        self._take_step(scaler)
        self.steps += 1
        self.skipped_in_a_row = 0
        return True

    @torch.no_grad()
    def _finish_gradient(self, scaler: torch.amp.GradScaler | None, memory: Any) -> bool:
        """Make the gradient of the step of the perturbed one; False where that is not finite and the step is skipped."""
        parameters = self._touched()
        if scaler is not None:
            scaler.unscale_(self.base_optimizer)
        if self._norm_or_none(parameters) is None:
            self._refuse_or_warn(scaler, "gradient at the perturbed weights")
            if scaler is not None:
                scaler.step(self.base_optimizer)
            return False
        self._final_gradient(parameters, memory)
        return True

    def retreat(self) -> None:
        """Put weights, buffers and random numbers back without a step, as after an error between `ascend` and `descend`."""
        climbed, self._climbed = self._climbed, None
        if climbed is not None:
            climbed.back.close()
            torch.clear_autocast_cache()

    def _refuse_or_warn(self, scaler: torch.amp.GradScaler | None, which: str) -> None:
        if scaler is not None:
            return
        found = f"{type(self).__name__}: the {which} holds inf or NaN after {self.steps} steps"
        if self.on_nonfinite == "raise":
            raise FloatingPointError(
                f"{found}; the weights are as before this step. Lower the learning rate or rho, pass grad_scaler= in mixed "
                'precision, or set on_nonfinite="skip"'
            )
        self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        if self.skipped == 1:
            warnings.warn(f"{found}; the step is skipped, as will every such step (this is said once)", stacklevel=3)
        show(self.base_optimizer)

    def own_state(self) -> dict[str, Any]:
        """The method and its counts."""
        return {"method": type(self).__name__, "steps": self.steps, "skipped": self.skipped}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take over what `own_state` gave."""
        self.steps, self.skipped = int(state["steps"]), int(state.get("skipped", self.skipped))

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, and under "two_pass" the step count (and CrAM's generator state).

        Settings of the wrapper, such as rho, are no part of it: they stay as the constructor, or a schedule, has set them.
        """
        return {**self.base_optimizer.state_dict(), EXTRA: self.own_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it comes from another method, or from a bare optimizer (load that into `base_optimizer`).
        """
        name, own = type(self).__name__, state_dict.get(EXTRA)
        if own is None:
            raise ValueError(
                f"this state has no {EXTRA!r} entry, so it is not of {name}; to start {name} from a bare optimizer's "
                "state, load it into .base_optimizer"
            )
        if own["method"] != name:
            raise ValueError(f"this state is of {own['method']}, it cannot be loaded into {name}")
        self.base_optimizer.load_state_dict({key: value for key, value in state_dict.items() if key != EXTRA})
        self.load_own_state(own)

    def __getstate__(self) -> dict[str, Any]:
        if self._climbed is not None:
            raise RuntimeError(f"{type(self).__name__} is between ascend and descend and cannot be copied now")
        return super().__getstate__()

    def _settings(self) -> str:
        return ""

    def __repr__(self) -> str:
        groups = len(self.param_groups)
        return (
            f"{type(self).__name__}({type(self.base_optimizer).__name__} with {groups} group{'s'[: groups != 1]}, "
            f"{self._settings()})"
        )
