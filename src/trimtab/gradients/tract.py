"""TrAct: the first layer trained as if its activations took the step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trimtab.checks import positive
from trimtab.parameters import entries
from trimtab.parameters.arguments import layer_input

Layer = nn.Linear | nn.Conv1d | nn.Conv2d


class TrAct:
    """TrAct: the gradient of a first layer's weight is solved against the second moment of its inputs.

    With inputs a (rows of the batch; of a convolution its unfolded patches) and G the plain gradient of the weight, seen as a
    matrix of outputs: `G <- G (a^T a / rows + strength I)^-1`. The outputs then change by a step of gradient descent on
    themselves. Parameters, names and class of the module stay; its bias and the gradient of its inputs too.

    Args:
        module: a `Linear`, `Conv1d` or `Conv2d` without groups. Of a whole network: `TrAct(first_layer(model))`.
        strength: lambda; above 0. Default 0.1, for inputs of mean 0 and deviation 1 (paper).

    Raises:
        TypeError: another kind of module.
        ValueError: `strength` is out of range; groups; a module that TrAct changes already.
        RuntimeError: (in the backward pass) a second derivative is asked for.

    Each forward pass has a moment of its own: micro-batches, and ranks, are solved against theirs and then summed. With fewer
    rows than inputs the same is computed through the rows (Woodbury) [ours: by Cholesky factors, in float32 at least].
    `remove()` ends it, and so does a `with` block.

    Reference: Petersen et al., TrAct, arXiv 2410.23970.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> with TrAct(layer, strength=1.0):
        ...     layer(torch.tensor([[1.0, 0.0]])).sum().backward()
        >>> layer.weight.grad  # 1 / (1 + 1)
        tensor([[0.5000, 0.0000]])
    """

    def __init__(self, module: Layer, strength: float = 0.1) -> None:
        if not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            raise TypeError(f"TrAct takes a Linear, Conv1d or Conv2d, got {type(module).__name__}")
        if getattr(module, "groups", 1) != 1:
            raise ValueError(f"TrAct takes no convolution of several groups, got groups={module.groups}")
        if any(isinstance(getattr(hook, "__self__", None), TrAct) for hook in module._forward_pre_hooks.values()):
            raise ValueError(f"TrAct acts on this {type(module).__name__} already")
        self.strength = positive("strength", strength)
        self._hooks = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, always_call=True),
        ]

    def _before(self, module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        inputs = layer_input(args, given)
        if torch.is_grad_enabled() and module.weight.requires_grad and inputs is not None:
            # an attribute of the object itself comes before the parameter of the same name, which stays where it is
            module.__dict__["weight"] = _Solved.apply(  # type: ignore[no-untyped-call]
                module.weight, _rows(module, inputs), self.strength
            )

    def _after(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        module.__dict__.pop("weight", None)

    def remove(self) -> None:
        """Plain gradients again."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> TrAct:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"TrAct(strength={self.strength:g})"


@torch.no_grad()
def _rows(module: Layer, inputs: Tensor) -> Tensor:
    """What each row of the weight is multiplied with: shape (rows, inputs of one output), float32 at least."""
    a = inputs.detach().to(torch.promote_types(inputs.dtype, torch.float32))
    if isinstance(module, nn.Linear):
        return a.reshape(-1, a.shape[-1])
    flat = isinstance(module, nn.Conv1d)
    if a.ndim == (2 if flat else 3):
        a = a.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    a = nn.functional.pad(a, module._reversed_padding_repeated_twice, mode=mode)  # noqa: SLF001  (as its own forward does)
    sizes = [tuple(of) for of in (module.kernel_size, module.dilation, module.stride)]
    if flat:
        a, sizes = a.unsqueeze(2), [(1, *size) for size in sizes]
    kernel, dilation, stride = sizes
    found: Tensor = nn.functional.unfold(a, kernel, dilation=dilation, stride=stride)
    return found.transpose(1, 2).reshape(-1, found.shape[1])


class _Solved(torch.autograd.Function):
    """The weight itself; its gradient is solved on the way back."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor, strength: float) -> Tensor:
        count, size = rows.shape
        wide = count >= size
        with torch.autocast(rows.device.type, enabled=False):
            moment = rows.mT @ rows if wide else rows @ rows.mT
        share = max(count, 1) * strength
        moment.diagonal().add_(share)
        ctx.save_for_backward(moment / max(count, 1) if wide else moment, *([] if wide else [rows]))
        ctx.strength = strength
        return weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        moment, *rows = ctx.saved_tensors
        g = gradient.to(moment.dtype).flatten(1)
        with torch.autocast(gradient.device.type, enabled=False):
            if rows:  # (a'a / n + s I)^-1 = (I - a' (n s I + a a')^-1 a) / s
                found = (g - _solve(moment, (g @ rows[0].mT).mT).mT @ rows[0]) / ctx.strength
            else:
                found = _solve(moment, g.mT).mT
        return found.reshape(gradient.shape).to(gradient.dtype), None, None


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    factor, _ = torch.linalg.cholesky_ex(matrix)  # of what is not finite the factor is not either
    return torch.cholesky_solve(right, factor)


def first_layer(model: nn.Module) -> Layer:
    """The first layer of a network, that its inputs meet, by the order in which it holds its parameters.

    Raises:
        ValueError: the first weight is of no Linear, Conv1d or Conv2d, so that the first layer cannot be told.

    Example:
        >>> first_layer(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 1)))
        Linear(in_features=4, out_features=2, bias=True)
    """
    for entry in entries(model):
        if entry.role in ("bias", "scale", "position") or entry.parameter.ndim < 2:
            continue
        if isinstance(entry.owner, nn.Linear | nn.Conv1d | nn.Conv2d):
            return entry.owner
        raise ValueError(
            f"the first weight of {type(model).__name__}, {entry.name}, is of a {type(entry.owner).__name__}; give TrAct the "
            "layer itself"
        )
    raise ValueError(f"{type(model).__name__} has no weight of two or more dimensions")
