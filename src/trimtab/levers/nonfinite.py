"""What to do about gradients that hold inf or NaN."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from trimtab.checks import one_of
from trimtab.collectives import is_distributed, local_part, max_over_ranks
from trimtab.parameters import Entry

Policy = Literal["pass", "skip", "raise"]
POLICIES = ("pass", "skip", "raise")
SMALL = 4096  # entries of tensors that are looked at together [ours]
READ_EVERY = 128  # steps between two looks at a flag that lies on a device, where the policy is "pass" [ours]


def numbers_of(gradient: Tensor) -> Tensor:
    """The entries of a gradient on this rank, real and dense."""
    gradient = local_part(gradient)
    if gradient.layout is not torch.strided:
        gradient = gradient.coalesce().values() if gradient.layout is torch.sparse_coo else gradient.values()
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient


def gradients_stand(parameters: Iterable[Tensor]) -> bool:
    """Whether one of them has a gradient with an entry that is not zero, to which a backward pass would add."""
    gradients = (parameter.grad for parameter in parameters)
    return any(bool(numbers_of(gradient).any()) for gradient in gradients if gradient is not None)


@torch.no_grad()
def flag_nonfinite(gradients: Sequence[Tensor]) -> Tensor | None:
    """True where an entry on this rank is inf or NaN, shape (), on the first one's device; None for no entries.

    A norm per tensor is read first, since it is fast and not finite where an entry is not; entries are only looked at one by
    one where a norm is not finite (it may have overflowed).
    """
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        plain = type(gradient) is Tensor and gradient.layout is torch.strided and gradient.is_floating_point()
        numbers = gradient if plain else numbers_of(gradient)
        if numbers.numel():
            kinds.setdefault((numbers.device, numbers.dtype), []).append(numbers)
    found: Tensor | None = None
    for (device, dtype), block in kinds.items():
        small = [tensor.reshape(-1) for tensor in block if tensor.numel() <= SMALL]
        if len(small) > 1:  # one look at many small ones together
            block = [torch.cat(small), *(tensor for tensor in block if tensor.numel() > SMALL)]
        norms = torch.stack(torch._foreach_norm(block, dtype=torch.promote_types(dtype, torch.float32)))
        suspect = ~norms.isfinite()
        if device.type == "cpu" and bool(suspect.any()):
            suspect = torch.stack([~block[at].isfinite().all() for at in suspect.nonzero().flatten().tolist()])
        elif device.type != "cpu":  # entry by entry there, too, but without waiting for the device
            suspect = torch.stack([~tensor.isfinite().all() for tensor in block])
        flag = suspect.any()
        found = flag if found is None else found | flag.to(found.device)
    return found


def any_nonfinite(parameters: Sequence[Tensor], *, over_ranks: bool = True) -> bool:
    """Whether a gradient of `parameters` holds inf or NaN, on any rank; the same answer on every rank.

    One synchronisation with the device and, with several ranks, one collective of one number: every rank must call it.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> weight.grad = torch.tensor([1.0, float("nan")])
        >>> any_nonfinite([weight])
        True
    """
    flag = flag_nonfinite([parameter.grad for parameter in parameters if parameter.grad is not None])
    found = flag is not None and bool(flag)
    return on_any_rank(found, parameters) if over_ranks else found


def on_any_rank(found: bool, parameters: Sequence[Tensor]) -> bool:  # noqa: FBT001  (a value, not a switch)
    """Whether `found` is true on any rank; one collective on the device of `parameters`."""
    if not is_distributed():
        return found
    number = torch.tensor(float(found), device=local_part(parameters[0]).device if parameters else torch.device("cpu"))
    return bool(max_over_ranks(number) > 0)


def bad_ones(entries: Sequence[Entry]) -> str:
    """Names and counts of the gradients that hold inf or NaN, for messages."""
    found = []
    for entry in entries:
        if entry.parameter.grad is not None:
            numbers = numbers_of(entry.parameter.grad)
            if bad := int((~numbers.isfinite()).sum()):
                found.append(f"{entry.name} ({bad} of {numbers.numel()} entries)")
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more if found else "a parameter of another rank"


class NonFinite:
    """A policy for gradients that hold inf or NaN, and what it met so far.

    "pass": hand them on, warn once. "skip": the optimizer does not step. "raise": FloatingPointError before the step.
    """

    def __init__(self, policy: str) -> None:
        one_of("on_nonfinite", policy, POLICIES)
        self.policy = policy
        self.skipped = self.in_a_row = 0
        self._warned = False
        self._waiting: Tensor | None = None
        self._seen = 0

    def skips(self, entries: Sequence[Entry]) -> bool:
        """Look at the gradients; True when the step must be skipped, on every rank alike."""
        if self.policy == "pass":
            self._watch(entries)
            return False
        if not any_nonfinite([entry.parameter for entry in entries]):
            self.in_a_row = 0
            return False
        if self.policy == "raise":
            raise FloatingPointError(
                f"the gradients hold inf or NaN before the step: {bad_ones(entries)}; the weights are as they were. Lower the "
                'learning rate, or give attach(..., on_nonfinite="skip")'
            )
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"the gradients hold inf or NaN: {bad_ones(entries)}; the optimizer skips this step, as it will every such "
                "step (this is said once; Handle.skipped counts them)",
                stacklevel=2,
            )
        return True

    def _watch(self, entries: Sequence[Entry]) -> None:
        if self._warned:
            return
        flag = flag_nonfinite([entry.parameter.grad for entry in entries if entry.parameter.grad is not None])
        if flag is None:
            return
        if flag.device.type == "cpu":
            if bool(flag):
                self._warn(bad_ones(entries))
            return
        self._waiting = flag if self._waiting is None else self._waiting | flag.to(self._waiting.device)
        self._seen += 1
        if self._seen % READ_EVERY == 0:
            self.read()

    def read(self) -> None:
        """Look at the flag that waits on a device, and warn when it is set."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not self._warned and bool(waiting):
            self._warn(f"those of one of the last {READ_EVERY} steps")

    def _warn(self, which: str) -> None:
        self._warned = True
        warnings.warn(
            f"the gradients hold inf or NaN: {which}; levers pass them on and the optimizer takes them into the weights. Give "
            'attach(..., on_nonfinite="skip") or "raise" (this is said once)',
            stacklevel=2,
        )
