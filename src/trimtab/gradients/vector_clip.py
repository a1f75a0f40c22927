"""PixelClip: the gradient that flows into a picture or a feature map, bounded pixel by pixel with its direction kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.checks import one_of, positive, whole

Mode = Literal["vector", "element", "global", "sigmoid", "soft", "soft_vector"]
MODES = ("vector", "element", "global", "sigmoid", "soft", "soft_vector")


def clip_vectors_(gradient: Tensor, max_value: float, dim: int = 1, mode: Mode = "vector") -> Tensor:
    """Bound the vectors along `dim`, in place.

    With c = `max_value` and M the greatest magnitude of a vector's components:

    | `mode` | g becomes |
    |---|---|
    | `"vector"` (default) | `g min(1, c / M)`: the direction stays |
    | `"element"` | each component to [-c, c] |
    | `"global"` | `g c / max |g|` over the whole tensor: small gradients grow |
    | `"sigmoid"` | `(sigmoid(g) - 1/2) c` |
    | `"soft"` | `c g / (|g| + c)` |
    | `"soft_vector"` | `c g / (M + c)` |

    Args:
        gradient: real, dense.
        max_value: c, above 0, in the units of the gradient.
        dim: along which the vectors lie: the channels.
        mode: see above.

    Returns:
        The gradient. A vector of zeros stays; NaN stays where it is and reaches its vector's other components in no mode.

    Raises:
        ValueError: a number is out of range, or the mode is unknown.

    Reference: Pan et al., arXiv 2310.12474.

    Example:
        >>> clip_vectors_(torch.tensor([[3.0, 4.0]]), 1.0)
        tensor([[0.7500, 1.0000]])
    """
    limit, mode = positive("max_value", max_value), one_of("mode", mode, MODES)  # type: ignore[assignment]
    if mode == "element":
        return gradient.clamp_(-limit, limit)
    if mode == "sigmoid":
        return gradient.sigmoid_().sub_(0.5).mul_(limit)
    size = gradient.abs()
    if mode == "soft":
        return gradient.mul_(limit).div_(size.add_(limit))
    finite = torch.where(size.isnan(), 0, size)
    if mode == "global":
        largest = finite.amax()
        return gradient.mul_(torch.where(largest > 0, limit / largest, 1.0))
    largest = finite.amax(dim, keepdim=True)
    if mode == "soft_vector":
        return gradient.mul_(limit).div_(largest.add_(limit))
    return gradient.mul_(torch.where(largest > limit, limit / largest, 1.0))


class ActivationClip:
    """Clips the gradient of a module's output vector by vector, on its way back.

    Args:
        module: whose output.
        max_value, dim, mode: see `clip_vectors_`. Default 0.1 (authors, for pictures in [0, 1]), 1, "vector".
        scaler: the GradScaler, where the loss is scaled: gradients come scaled here, and so is the bound.
        divisor: micro-batches by which the loss is divided; the bound is divided by it too. Default 1.

    Raises:
        ValueError: a number is out of range, or the mode is unknown.
        TypeError: (in the forward pass) the output is no tensor.

    An output that takes no gradient is left alone. `remove()` ends it, and so does a `with` block.

    Reference: Pan et al., arXiv 2310.12474.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten())
        >>> with ActivationClip(net[0], max_value=0.5):
        ...     net(torch.ones(1, 1, 1, 1)).sum().backward()
        >>> net[0].weight.grad.flatten()
        tensor([0.5000, 0.5000])
    """

    def __init__(
        self,
        module: nn.Module,
        max_value: float = 0.1,
        dim: int = 1,
        mode: Mode = "vector",
        *,
        scaler: torch.amp.GradScaler | None = None,
        divisor: int = 1,
    ) -> None:
        self.max_value = positive("max_value", max_value)
        self.dim, self.mode = whole("dim", dim), mode
        one_of("mode", mode, MODES)
        self.scaler, self.divisor = scaler, whole("divisor", divisor, least=1)
        self._hook = module.register_forward_hook(self._after)

    def _after(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if not isinstance(outputs, Tensor):
            raise TypeError(
                f"ActivationClip needs a module that gives one tensor, {type(module).__name__} gives {type(outputs)}"
            )
        if outputs.requires_grad:
            outputs.register_hook(self._clipper())  # type: ignore[no-untyped-call]

    def _clipper(self) -> Callable[[Tensor], Tensor]:
        def clip(gradient: Tensor) -> Tensor:
            scale = 1.0 if self.scaler is None else self.scaler.get_scale()
            return clip_vectors_(gradient.clone(), self.max_value * scale / self.divisor, self.dim, self.mode)

        return clip

    def remove(self) -> None:
        """Clip no more."""
        self._hook.remove()

    def __enter__(self) -> ActivationClip:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()
