"""A layer that a global comparison would take whole: named, refused, or kept with the total exact."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import trimtab
from tests.pruning.nets import bits
from trimtab.parameters import entries
from trimtab.penalties import SAFE
from trimtab.pruning import ACDC, GradualPruning, MovementPruning, one_shot, sweep
from trimtab.runs.recipe import Recipe
from trimtab.tensors.collapse import guarded, least_kept


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


def collapsing(kind: str, on_collapse: str, steps: int = 8) -> nn.Module:
    """A network whose middle layer has the smallest weights by far, after a training that prunes it over the whole network."""
    net = narrow()
    given: dict[str, Any] = {"on_collapse": on_collapse, "total_steps": steps}
    if kind in ("gradual", "reversible"):
        lever: Any = GradualPruning(0.8, end=0.5, every=1, scope="global", reversible=kind == "reversible", **given)
    elif kind == "movement":
        lever = MovementPruning(0.8, begin=0.0, end=0.5, every=1, scope="global", **given)
    elif kind == "ac_dc":
        lever = ACDC(0.8, warm_up=0.125, phase=0.125, last_dense=0.125, last_sparse=0.375, **given)
    else:
        lever = SAFE(sparsity=0.8, every=2, **given)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-7)
    with trimtab.attach(optimizer, lever, model=net) as handle:
        for _ in range(steps):
            net(torch.ones(1, 20)).sum().backward()
            optimizer.step()
        handle.finish()
    return net


@pytest.mark.parametrize("kind", ["gradual", "reversible", "ac_dc", "safe"])
def test_along_training_too_others_go_instead_and_the_total_is_exact(kind: str) -> None:
    with pytest.warns(UserWarning, match=r"all weights of 1\.weight, or nearly.*others go instead"):
        net = collapsing(kind, "keep")
    assert int(net[1].weight.count_nonzero()) == 3
    assert sum(int((layer.weight == 0).sum()) for layer in net) == int(0.8 * 5150 + 0.5)
    with pytest.warns(UserWarning, match=r"all weights of 1\.weight go, while other layers keep some"):
        net = collapsing(kind, "warn")
    assert not net[1].weight.any()
    with pytest.raises(ValueError, match=r"would take all weights of 1\.weight"):
        collapsing(kind, "raise")
    with pytest.raises(ValueError, match="on_collapse must be one of"):
        collapsing(kind, "ignore")


def test_movements_scores_are_guarded_as_they_are() -> None:
    """All scores of the middle layer are the smallest: its weights move towards zero."""
    net = narrow()
    lever = MovementPruning(0.6, begin=0.0, end=0.25, every=1, scope="global", on_collapse="keep", total_steps=8)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-14)
    with trimtab.attach(optimizer, lever, model=net):
        for layer, sign in zip(net, (-1, 1e6, -1), strict=True):
            layer.weight.grad = sign * layer.weight.detach().sign()
        optimizer.step()
        with pytest.warns(UserWarning, match="others go instead"):
            optimizer.step()
        assert int(lever.masks["1.weight"].sum()) == 3
        assert lever.sparsity_now == pytest.approx(0.6, abs=1e-4)


def test_what_is_gone_already_counts_and_a_layer_that_fell_short_before_is_no_endless_search() -> None:
    named = entries(narrow())[::2]
    scores = [entry.parameter.detach() for entry in named]
    gone = [torch.zeros_like(score, dtype=torch.bool) for score in scores]
    gone[1][:-1] = True
    gone[1][-1, 1:] = True  # one weight of 3000 left, where three should be
    masks = [torch.zeros_like(score, dtype=torch.bool) for score in scores]
    masks[1][-1, 0] = True
    with pytest.warns(UserWarning, match="others go instead"):
        found = guarded(named, scores, masks, 1, "keep", absolute=True, gone=gone)
    assert not found[1][-1, 0]
    assert sum(int(mask.sum()) for mask in found) == 3000
    assert torch.equal(found[1] & gone[1], gone[1])


def test_a_default_guard_does_not_show_in_what_is_saved() -> None:
    assert "on_collapse" not in GradualPruning(total_steps=10).settings()
    assert SAFE(on_collapse="keep", total_steps=10).settings()["on_collapse"] == "keep"
    assert Recipe().with_settings({"pruning.on_collapse": "keep"}).pruning.on_collapse == "keep"
    used = Recipe().with_settings({"levers": ["progressive"], "progressive.on_collapse": "keep"}).used
    assert "progressive" in used
