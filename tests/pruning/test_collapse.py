"""A layer that a global comparison would take whole: named, refused, or kept with the total exact."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from tests.pruning.nets import bits
from trimtab.pruning import one_shot, sweep
from trimtab.pruning.collapse import least_kept


def narrow() -> nn.Sequential:
    """The middle layer's weights are the smallest by far."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 100), nn.Linear(100, 30), nn.Linear(30, 5))
    nn.init.uniform_(net[1].weight, 1e-6, 1e-5)
    return net


@pytest.mark.parametrize("score", ["magnitude", lambda entry: entry.parameter.detach().double().abs() - 1])
def test_others_go_instead_and_the_total_is_exact(score: object) -> None:
    net = narrow()
    largest = net[1].weight.detach().flatten().topk(3).indices.sort().values
    with pytest.warns(UserWarning, match=r"all weights of 1\.weight, or nearly.*others go instead"):
        pruned = one_shot(net, 0.8, score=score, on_collapse="keep")  # type: ignore[arg-type]
    assert pruned.count == int(0.8 * (2000 + 3000 + 150) + 0.5)
    assert least_kept(3000) == 3
    assert torch.equal(pruned.masks["1.weight"].flatten().nonzero()[:, 0], largest)
    others = [narrow()[at].weight.detach().abs().flatten() for at in (0, 2)]
    kept = torch.cat([pruned.masks[f"{at}.weight"].flatten() for at in (0, 2)])
    assert torch.cat(others)[kept].min() >= torch.cat(others)[~kept].max(), "among the others the smallest go"


def test_it_is_named_or_refused_and_the_model_stays() -> None:
    net = narrow()
    with pytest.warns(UserWarning, match=r"all weights of 1\.weight go, while other layers keep some"):
        pruned = one_shot(net, 0.8)
    assert not bool(pruned.masks["1.weight"].any())
    net = narrow()
    before = bits(net)
    with pytest.raises(ValueError, match=r"would take all weights of 1\.weight"):
        one_shot(net, 0.8, on_collapse="raise")
    with pytest.raises(ValueError, match="on_collapse must be one of"):
        one_shot(net, 0.8, on_collapse="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"cannot go while each of 3 tensors keeps 0\.1%"):
        one_shot(net, 0.9999, on_collapse="keep")
    assert bits(net) == before


def test_nothing_is_said_where_nothing_collapses() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one_shot(narrow(), 0.5)
        one_shot(narrow(), 0.9, scope="layer")
        one_shot(nn.Linear(4, 4), 0.99)
    with pytest.warns(UserWarning, match="go, while other layers"):
        assert [pruned.count for pruned in sweep(narrow(), (0.3, 0.8))] == [1545, 4120]
