"""Levers that pull weights towards zero after the step: Concentrate and ProximalL1."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.penalties import L1, Concentrate, DecoupledPenalty, HoyerSquare, ProximalL1

SHAPES = ((9, 40), (5, 3, 3, 3), (7, 11))


def weights(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    scales = (0.1, 1.0, 3.0)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    return [nn.Parameter((scale * one).to(dtype)) for scale, one in zip(scales, drawn, strict=True)]


def stepped(lever: DecoupledPenalty, tensors: list[nn.Parameter], lr: float = 1.0, steps: int = 1) -> list[Tensor]:
    """The weights after steps without a task's gradient."""
    with trimtab.attach(optimizer := torch.optim.SGD(tensors, lr=lr), lever):
        for _ in range(steps):
            for one in tensors:
                one.grad = torch.zeros_like(one)
            optimizer.step()
    return [one.detach().clone() for one in tensors]


def direction(w: Tensor, scope: Tensor) -> Tensor:
    m = scope.abs().mean()
    return w * m**2 / scope.square().mean() - m * w.sign()


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_small_step_of_concentrate_is_the_formulas_direction(scope: Any) -> None:
    before, rate = [one.detach().clone() for one in weights()], 1e-7
    after = stepped(Concentrate(rate=rate, scope=scope), weights())
    together = torch.cat([one.flatten() for one in before])
    for old, new in zip(before, after, strict=True):
        expected = direction(old, together if scope == "global" else old)
        torch.testing.assert_close((new - old) / rate, expected, rtol=1e-5, atol=1e-6)


def test_the_direction_of_a_layer_is_hoyer_squares() -> None:
    before, rate = weights(), 1e-7
    after = stepped(Concentrate(rate=rate, scope="layer"), weights())
    for old, new in zip(before, after, strict=True):
        HoyerSquare(strength=1.0).value([old]).backward()
        assert old.grad is not None
        expected = -old.grad * old.detach().square().mean() / 2
        torch.testing.assert_close((new - old.detach()) / rate, expected, rtol=1e-5, atol=1e-6)


def test_the_global_pull_is_the_same_for_all_weights_and_that_of_a_layer_is_not() -> None:
    def pulls(scope: Any) -> list[float]:
        before = [one.detach().clone() for one in weights()]
        after = stepped(Concentrate(0.01, scope, preserve_norm=False), weights())
        moved = [(old - new).abs()[old.abs() > 0.1] for old, new in zip(before, after, strict=True)]
        assert all(float(one.max() - one.min()) < 1e-12 for one in moved)
        return [float(one[0]) for one in moved]

    together = torch.cat([one.detach().flatten() for one in weights()]).abs().mean()
    assert pulls("global") == pytest.approx(3 * [0.01 * float(together)])
    assert pulls("layer") == pytest.approx([0.01 * float(one.detach().abs().mean()) for one in weights()])


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_concentrate_keeps_the_norm_and_no_weight_oversteps_zero(scope: Any) -> None:
    before = [one.detach().clone() for one in weights()]
    after = stepped(Concentrate(rate=0.5, scope=scope), weights(), lr=0.1, steps=200)
    norms = [torch.stack([one.norm() for one in of]) for of in (before, after)]
    if scope == "layer":
        torch.testing.assert_close(norms[1], norms[0], rtol=1e-12, atol=0)
    assert float(norms[1].norm()) == pytest.approx(float(norms[0].norm()), rel=1e-12)
    for old, new in zip(before, after, strict=True):
        assert bool((old * new >= 0).all())
    assert sum(int((new == 0).sum()) for new in after) > 300  # a long run leaves few


@pytest.mark.parametrize("preserve_norm", [True, False])
def test_the_coefficient_of_variation_grows_as_e_to_the_clock(preserve_norm: bool) -> None:
    """Until weights arrive at zero: mean' = -mean and variance' = 0 per unit of T, in either form up to scale."""
    start = 1 + 0.2 * torch.linspace(-1, 1, 200, dtype=torch.float64).reshape(10, 20)
    tensor = nn.Parameter(start.clone())
    (after,) = stepped(Concentrate(0.1, "layer", preserve_norm=preserve_norm), [tensor], lr=0.001, steps=5000)
    grown = (after.std() / after.mean()) / (start.std() / start.mean())
    assert float(grown) == pytest.approx(math.exp(0.1 * 0.001 * 5000), rel=1e-3)


def test_each_tensor_moves_by_its_own_learning_rate_and_only_if_it_is_stepped() -> None:
    tensors = [nn.Parameter(torch.full((2, 2), 4.0)) for _ in range(4)]
    optimizer = torch.optim.SGD(
        [{"params": tensors[:1], "lr": 0.1}, {"params": tensors[1:3]}, {"params": tensors[3:], "lr": 0.0}], lr=0.2
    )
    trimtab.attach(optimizer, Concentrate(rate=0.5, scope="layer", preserve_norm=False))
    for at in (0, 1, 3):
        tensors[at].grad = torch.zeros(2, 2)
    optimizer.step()
    assert [one[0, 0].item() for one in tensors] == pytest.approx([3.8, 3.6, 4.0, 4.0])
    optimizer.load_state_dict(optimizer.state_dict())  # which replaces the groups
    optimizer.param_groups[0]["lr"] = 0.2
    optimizer.step()
    assert tensors[0][0, 0].item() == pytest.approx(3.8 * 0.9)


def test_a_rate_that_takes_all_at_once_is_refused_before_anything_moves() -> None:
    (tensor,) = (nn.Parameter(torch.tensor([[1.0, 2.0]])),)
    optimizer = torch.optim.SGD([tensor], lr=0.5)
    trimtab.attach(optimizer, Concentrate(rate=2.0))
    tensor.grad = torch.ones(1, 2)
    with pytest.raises(ValueError, match=r"rate must be below 1 / lr.*learning rate of 0\.5 would take off 1 of"):
        optimizer.step()
    assert tensor.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize(("settings", "words"), [
    ({"rate": -1.0}, r"rate must be finite and 0 or more, got -1"), ({"rate": float("nan")}, "rate must be finite"),
    ({"scope": "tensor"}, r"scope must be one of 'global', 'layer', got 'tensor'"),
])  # fmt: skip
def test_bad_settings_of_concentrate(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Concentrate(**settings)


def test_bad_strength_of_proximal_l1() -> None:
    with pytest.raises(ValueError, match=r"strength must be finite and 0 or more, got -0\.1"):
        ProximalL1(-0.1)


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf")])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_a_weight_that_is_not_finite_does_not_spread(scope: Any, spoiled: float) -> None:
    tensors = weights()
    tensors[0].data[0, 0] = spoiled
    before = [one.detach().clone() for one in tensors]
    after = stepped(Concentrate(0.1, scope), tensors)
    assert torch.equal(after[0].nan_to_num(), before[0].nan_to_num())
    assert torch.equal(after[1], before[1]) == (scope == "global")
    assert all(bool(one.isfinite().all()) for one in after[1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lever", [Concentrate(0.1), ProximalL1(0.02)], ids=repr)
def test_halves_are_rounded_once(lever: DecoupledPenalty, dtype: torch.dtype) -> None:
    halves = weights(dtype)
    singles = [nn.Parameter(one.detach().float()) for one in halves]
    for half, single in zip(stepped(lever, halves), stepped(lever, singles), strict=True):
        torch.testing.assert_close(half.float(), single, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_layouts_with_gaps_and_channels_last_change_nothing() -> None:
    torch.manual_seed(2)
    plain = torch.randn(6, 4, 3, 3)
    forms = (plain.clone(), plain.to(memory_format=torch.channels_last), torch.stack([plain, plain], -1)[..., 0])
    found = [stepped(Concentrate(0.2), [nn.Parameter(form)])[0] for form in forms]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-7)
    assert not torch.equal(found[0], plain)


def test_what_is_left_out_is_said() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    lever = Concentrate()
    trimtab.attach(torch.optim.SGD(net.parameters(), lr=0.1), lever, model=net)
    reasons = {entry.name: reason for entry, reason in lever.left_out}
    assert reasons.keys() == {name for name, _ in net.named_parameters()} - {"1.weight"}
    assert reasons["1.bias"] == "1 dimension(s), fewer than 2"
    assert "acts after the step" in reasons["0.parametrizations.weight.original1"]
    with pytest.raises(ValueError, match=r"Concentrate\(.*finds nothing to act on among 1 parameter"):
        trimtab.attach(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), Concentrate())


def test_several_optimizers_are_refused() -> None:
    both = [torch.optim.SGD([nn.Parameter(torch.ones(2, 2))], lr=0.1) for _ in range(2)]
    with pytest.raises(ValueError, match="learning rates of one optimizer; make one for each"):
        trimtab.attach(both, ProximalL1())


def test_proximal_l1_solves_the_lasso_with_exact_zeros() -> None:
    """argmin (w - a)^2 / 2 + strength |w| is a soft threshold of a."""
    a = torch.tensor([[2.0, -0.5, 0.05, -0.2, 0.0]], dtype=torch.float64)
    tensor = nn.Parameter(torch.ones_like(a))
    optimizer = torch.optim.SGD([tensor], lr=0.3)
    trimtab.attach(optimizer, ProximalL1(0.3))
    for _ in range(200):
        tensor.grad = tensor.detach() - a
        optimizer.step()
    torch.testing.assert_close(
        tensor.detach(), torch.tensor([[1.7, -0.2, 0, 0, 0]], dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert tensor[0, 2:].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("momentum", "times"), [(0.0, 1.0), (0.9, 10.0)])
def test_momentum_multiplies_the_pull_of_l1_and_not_this_one(momentum: float, times: float) -> None:
    moved = []
    for lever in (L1(1e-3), ProximalL1(1e-3)):
        tensor = nn.Parameter(torch.full((1, 2), 100.0, dtype=torch.float64))
        optimizer = torch.optim.SGD([tensor], lr=0.1, momentum=momentum)
        trimtab.attach(optimizer, lever)
        for step in range(300):
            if step == 200:
                at = tensor[0, 0].item()
            tensor.grad = torch.zeros(1, 2, dtype=torch.float64)
            optimizer.step()
        moved.append(at - tensor[0, 0].item())
    assert moved[0] == pytest.approx(times * moved[1], rel=1e-6)


def test_adam_does_not_divide_the_pull_of_proximal_l1() -> None:
    tensor = nn.Parameter(torch.tensor([[1.0, 2.0]]))
    optimizer = torch.optim.AdamW([tensor], lr=0.1, weight_decay=0.0)
    trimtab.attach(optimizer, ProximalL1(0.5))
    for _ in range(3):
        tensor.grad = torch.zeros(1, 2)
        optimizer.step()
    assert tensor.tolist()[0] == pytest.approx([0.85, 1.85])


def test_a_saved_state_of_other_settings_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"does not fit Concentrate\(rate=0.3, scope='layer'"):
        Concentrate(scope="layer").load_state_dict(Concentrate().state_dict())
