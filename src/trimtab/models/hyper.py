"""A network that gives the weights of another, without the size of its input in theirs (MIP, arXiv 2304.07645)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from trimtab.checks import flag, whole


def encode(x: Tensor) -> Tensor:
    """`(cos(pi x / 2), sin(pi x / 2))` along the last dimension: twice as long, of the norm sqrt(d) whatever x in [0, 1] is.

    Raises:
        ValueError: a number outside [0, 1], or NaN.

    Source: arXiv 2304.07645.

    Example:
        >>> encode(torch.tensor([0.5]))
        tensor([0.7071, 0.7071])
    """
    if not bool(((x >= 0) & (x <= 1)).all()):
        raise ValueError(
            f"inputs of a magnitude-invariant network must lie in [0, 1], got {float(x.min()):g} to {float(x.max()):g}; scale "
            "them first (a rate by its logarithm)"
        )
    return torch.cat([(x * (math.pi / 2)).cos(), (x * (math.pi / 2)).sin()], dim=-1)


class MagnitudeInvariant(nn.Module):
    """Predicts the parameters of a network from a few numbers, such as the strength of a penalty: one training for all of them.

    Formula: `theta(x) = theta0 + h(E(x))`, E the encoding `(cos(pi x / 2), sin(pi x / 2))` of constant norm, h a perceptron
    with LeakyReLU, theta0 learned. Without E the predicted parameters grow in proportion to x at the start of training
    (`magnitude_slope` about 1), which is slow and unsteady; with it they do not (about 0).

    Args:
        inputs: how many numbers.
        hidden: widths of h.
        targets: the network whose parameters are predicted, or per name a start. theta0 begins as a copy of it.
        encoded: False gives the plain network, `theta0 + h(x)`, to compare. Default True.

    Initial weights of h: Kaiming normal by fan-out (paper), biases 0.

    Raises:
        ValueError: no inputs, a width below 1, targets without floating-point parameters; at the call inputs outside [0, 1]
            or of another number.

    Source: arXiv 2304.07645.

    Example:
        >>> target = nn.Linear(3, 1)
        >>> hyper = MagnitudeInvariant(1, (8,), target)
        >>> parameters = hyper(torch.tensor([0.5]))
        >>> torch.func.functional_call(target, parameters, torch.ones(4, 3)).shape
        torch.Size([4, 1])
    """

    def __init__(
        self, inputs: int, hidden: Sequence[int], targets: nn.Module | Mapping[str, Tensor], *, encoded: bool = True
    ) -> None:
        super().__init__()
        self.inputs, self.encoded = whole("inputs", inputs, 1), flag("encoded", encoded)
        held = dict(targets.named_parameters()) if isinstance(targets, nn.Module) else dict(targets)
        start = {name: value.detach() for name, value in held.items() if value.is_floating_point()}
        if not start:
            raise ValueError(f"targets have no floating-point parameters: {list(held) or 'none at all'}")
        self.shapes = {name: tuple(value.shape) for name, value in start.items()}
        self.start = nn.Parameter(torch.cat([value.reshape(-1) for value in start.values()]).clone())
        widths = [inputs * (1 + encoded), *(whole("hidden", width, 1) for width in hidden), self.start.numel()]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layer = nn.Linear(before, after, dtype=self.start.dtype, device=self.start.device)
            nn.init.kaiming_normal_(layer.weight, 0.01, mode="fan_out", nonlinearity="leaky_relu")
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.LeakyReLU()]
        self.h = nn.Sequential(*layers[:-1])

    def change(self, x: Tensor) -> Tensor:
        """h(E(x)): what is added to theta0, flat; x of shape (.., inputs)."""
        if x.ndim < 1 or x.shape[-1] != self.inputs:
            raise ValueError(
                f"inputs must have {self.inputs} numbers in the last dimension, got shape {tuple(x.shape)}"
            )
        x = x.to(self.start.dtype)
        found: Tensor = self.h(encode(x) if self.encoded else x)
        return found

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The parameters by name, for `torch.func.functional_call`.

        x of shape (inputs,); or (N, inputs) for N networks at once, with N in front of every shape (`torch.func.vmap`).
        """
        flat = self.start + self.change(x)
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        parts = torch.split(flat, sizes, dim=-1)
        return {
            name: part.view(*x.shape[:-1], *shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


@torch.no_grad()
def magnitude_slope(network: Callable[[Tensor], Tensor], inputs: int, directions: int = 16, seed: int = 0) -> float:
    """How the size of a network's output follows that of its input: the slope of `log ||h(s x)||` on `log s`.

    By least squares over 16 scales s from 0.05 to 1, of directions x uniform in [0, 1]; 1 where the output grows in proportion,
    0 where it does not know the input's size.

    Args:
        network: takes (N, inputs), gives (N, outputs): `hyper.change`.
        inputs: how many numbers.
        directions: so many, their mean is given.
        seed: of the directions.

    Example:
        >>> round(magnitude_slope(lambda x: 3 * x, 2), 6)
        1.0
    """
    whole("inputs", inputs, 1)
    whole("directions", directions, 1)
    generator = torch.Generator().manual_seed(seed)
    scales = torch.logspace(math.log10(0.05), 0, 16)
    logs = (scales.log() - scales.log().mean()).double()
    slopes = []
    for _ in range(directions):
        x = torch.rand(inputs, generator=generator)
        sizes = network(scales[:, None] * x).double().norm(dim=-1).log()
        slopes.append(float((logs * (sizes - sizes.mean())).sum() / logs.square().sum()))
    return sum(slopes) / len(slopes)
