"""NLMCosine: how much of a step only scales the weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trimtab.collectives import local_part
from trimtab.observe.meters.meter import EachTensor
from trimtab.parameters import Entry
from trimtab.tensors.norms import each_norm, each_product


class NLMCosine(EachTensor):
    """Naive loss minimisation: `cos(-g, w)` of the gradient with the weights, of all tensors together and of each.

    Near 1 a step of gradient descent does nothing but make the weights longer, which lowers the loss of a network that fits its
    data without it learning anything (`trimtab.gradients.PerpendicularGradient` forbids that part).

    Signals: `nlm_cosine`, and `nlm_cosine_max`, the largest of a tensor; `layers()` has each.

    Args:
        every: as of `Meter`.
        rule: which tensors count. Default `Rule(role="any")`: trainable, at least two dimensions [ours].

    Reference: Prieto et al., arXiv 2501.04697.

    Example:
        >>> import torch, trimtab
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> net.weight.data, net.weight.grad = torch.tensor([[3.0, 4.0]]), torch.tensor([[-3.0, 0.0]])
        >>> optimizer, meter = torch.optim.SGD(net.parameters(), lr=0.1), NLMCosine()
        >>> handle = trimtab.attach(optimizer, meter, model=net)
        >>> optimizer.step()
        >>> meter.layers()
        {'weight': 0.6}
    """

    def measure(self, parameters: Sequence[Entry]) -> dict[str, Tensor]:
        """The cosines."""
        picked = self._picked(parameters)
        if not picked:
            return {}
        owners = [one.parameter for one in picked]
        weights = [local_part(owner).detach() for owner in owners]
        gradients = [local_part(owner.grad) for owner in owners if owner.grad is not None]
        products = each_product(gradients, weights, owners)
        lengths = [each_norm(of, owners) for of in (gradients, weights)]
        self._names, self._each = [one.name for one in picked], -products / (lengths[0] * lengths[1])
        whole = (lengths[0].square().sum() * lengths[1].square().sum()).sqrt()
        # a tensor of zeros points nowhere
        return {"nlm_cosine": -products.sum() / whole, "nlm_cosine_max": self._each.nan_to_num(-1.0).amax()}
