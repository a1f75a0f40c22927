"""CKA: whether two sets of features of the same examples span the same directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import whole
from trimtab.observe.untouched import untouched


def _centred(features: Tensor) -> Tensor:
    flat = features.detach().double().flatten(0, -2)
    return flat - flat.mean(0)


def linear_cka(x: Tensor, y: Tensor) -> float:
    """`||Y^T X||^2 / (||X^T X|| ||Y^T Y||)` of centred features, Frobenius norms; in [0, 1].

    1 for features that differ by a rotation and a scale. NaN where one of them is constant.

    Args:
        x, y: shape (examples, features); features may differ in number.

    Raises:
        ValueError: numbers of examples differ.

    Reference: Kornblith et al., arXiv 1905.00414.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
        >>> round(linear_cka(features, 5 * features @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]])), 6)  # turned and longer
        1.0
    """
    x, y = _centred(x), _centred(y)
    if len(x) != len(y):
        raise ValueError(f"x and y must hold the same examples, got {len(x)} and {len(y)}")
    if len(x) < max(x.shape[1], y.shape[1]):  # by the products of examples, which are fewer
        a, b = x @ x.T, y @ y.T
        return float((a * b).sum() / (a.norm() * b.norm()))
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def delta_cka(
    before: nn.Module, after: nn.Module, inputs: Any, layers: Sequence[str], components: int = 50
) -> dict[str, float]:
    """`1 - CKA` of each layer's output before and after training, on the same inputs and in one basis.

    The basis is that of the greatest components of both features stacked [ours: the paper says "shared PCA basis"]. Both
    networks are in evaluation mode meanwhile and as they were afterwards.

    Args:
        before, after: two networks with the same layers.
        inputs: given to both as they are.
        layers: names of the layers.
        components: of the basis, 1 or more. Default 50 (paper).

    Raises:
        ValueError: a layer that is not there or did not run.

    Reference: arXiv 2511.00797.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 3))
        >>> delta_cka(net, net, torch.randn(8, 3), ["0"])["0"] < 1e-12
        True
    """
    whole("components", components, 1)
    one, other = (_features(net, inputs, layers) for net in (before, after))
    found = {}
    for name in layers:
        x, y = _centred(one[name]), _centred(other[name])
        basis = torch.linalg.svd(torch.cat([x, y]), full_matrices=False).Vh[:components].T
        found[name] = 1 - linear_cka(x @ basis, y @ basis)
    return found


@torch.no_grad()
def _features(net: nn.Module, inputs: Any, layers: Sequence[str]) -> dict[str, Tensor]:
    known, found = dict(net.named_modules()), {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, given: Any, output: Any) -> None:
            found[name] = output if isinstance(output, Tensor) else output[0]

        return hook

    if missing := [name for name in layers if name not in known]:
        raise ValueError(f"the network has no layer {missing[0]!r}")
    hooks = [known[name].register_forward_hook(keep(name)) for name in layers]
    try:
        with untouched(net):
            net(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if missing := [name for name in layers if name not in found]:
        raise ValueError(f"the layer {missing[0]!r} did not run")
    return found
