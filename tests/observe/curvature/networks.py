"""Small networks and batches that the curvature tests share, and dense matrices to hold the operators against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from trimtab.observe.curvature import SymmetricOperator

CROSS_ENTROPY = nn.functional.cross_entropy


class Attention(nn.Module):
    """Embeds, attends with the fused call, averages, classifies."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.into = nn.Linear(3, 3 * width)
        self.out = nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.into(tokens).chunk(3, -1)
        return self.out(nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0].mean(1))


class Tied(nn.Module):
    """One matrix used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(inputs)))


def network(kind: str) -> tuple[nn.Module, Tensor]:
    """A float64 network of that kind, in training mode, and inputs for it; three classes."""
    torch.manual_seed(3)
    if kind == "relu":
        net, inputs = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(12, 5)
    elif kind == "tanh":
        net, inputs = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(12, 5)
    elif kind == "batch norm":
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(12, 3),
            nn.Dropout(),
        )
        inputs = torch.randn(12, 1, 6, 6)
        net(inputs)  # running statistics that are not the initial ones
    elif kind == "attention":
        net, inputs = Attention(), torch.randn(12, 4, 3)
    elif kind == "tied":
        net, inputs = Tied(), torch.randn(12, 3)
    else:
        raise ValueError(kind)
    return net.double(), inputs.double()


KINDS = ("relu", "tanh", "batch norm", "attention", "tied")


def labels(number: int = 12) -> Tensor:
    return torch.arange(number) % 3


def dense(operator: SymmetricOperator) -> Tensor:
    return operator @ torch.eye(operator.size, dtype=operator.dtype)


def _function(net: nn.Module, inputs: Tensor, target: Any, loss: Any) -> tuple[Any, Tensor]:
    named = {name: parameter.detach() for name, parameter in net.named_parameters()}
    flat = torch.cat([p.reshape(-1) for p in named.values()])

    def value(vector: Tensor) -> Tensor:
        parts = vector.split([p.numel() for p in named.values()])
        shaped = {name: part.view(p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}
        outputs = functional_call(net, shaped, (inputs,))
        return outputs if loss is None else loss(outputs, target)

    return value, flat


def dense_hessian(net: nn.Module, inputs: Tensor, target: Any, loss: Any = CROSS_ENTROPY) -> Tensor:
    """By `torch.func.hessian`, with the MATH attention, in the modes the network is in."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        value, flat = _function(net, inputs, target, loss)
        return hessian(value)(flat)


def dense_gauss_newton(net: nn.Module, inputs: Tensor, target: Any, loss: Any = CROSS_ENTROPY) -> Tensor:
    """`J^T H J` from explicit Jacobian and output Hessian."""
    value, flat = _function(net, inputs, target, None)
    outputs = value(flat)
    jacobian = jacrev(value)(flat).reshape(outputs.numel(), -1)
    bent = hessian(lambda flat_outputs: loss(flat_outputs.view_as(outputs), target))(outputs.reshape(-1))
    return jacobian.T @ bent @ jacobian
