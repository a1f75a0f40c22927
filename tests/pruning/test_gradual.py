"""Gradual pruning: the schedule to the number, exact counts, what holds behind and under the masks, resume, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import trimtab
from tests.pruning.along import attached, batch, resumed, same, scaled_steps_with_one_skipped, sgd, steps, zeros
from tests.pruning.nets import Small, Tied
from tests.warned import TOY_IS_CUT
from trimtab import pruning
from trimtab.optimizers import SAM
from trimtab.pruning import GradualPruning, one_shot

pytestmark = TOY_IS_CUT

WEIGHTS = ("conv.weight", "up.weight", "head.weight")
SIZES = (288, 192, 30)


def lever(**settings: Any) -> GradualPruning:
    return GradualPruning(**{"final": 0.9, "total_steps": 20, "every": 5, "end": 0.75, **settings})


def test_the_schedule_is_the_papers() -> None:
    cubic = lever(final=0.8, initial=0.2, begin=0.1, end=0.9, total_steps=100)
    # s_f + (s_i - s_f) (1 - (t - t0)/(n dt))^3 worked out by hand: t0 = 10, n dt = 80
    expected = {10: 0.2, 30: 0.546875, 50: 0.725, 70: 0.790625, 90: 0.8}
    assert {t: cubic.scheduled(t) for t in expected} == pytest.approx(expected)
    assert (cubic.scheduled(9), cubic.scheduled(10), cubic.scheduled(90), cubic.scheduled(100)) == (0, 0.2, 0.8, 0.8)
    found = [cubic.scheduled(t) for t in range(101)]
    assert found == sorted(found)
    linear = lever(final=0.8, power=1.0, begin=0.0, end=0.8, total_steps=100)
    assert linear.scheduled(20) == pytest.approx(0.2)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_exact_counts_after_each_pruning_and_none_comes_back(scope: Any) -> None:
    net = Small()
    pruning = lever(scope=scope)
    optimizer, _ = attached(net, pruning)
    found = []
    steps(net, optimizer, range(20), lambda: found.append(zeros(net, *WEIGHTS)))
    shares = {0: 0.0, 5: 0.9 - 0.9 * (2 / 3) ** 3, 10: 0.9 - 0.9 / 27, 15: 0.9}
    for step, count in enumerate(found, 1):
        share = shares[min(step // 5 * 5, 15)]
        sizes = SIZES if scope == "layer" else (sum(SIZES),)
        assert count == sum(int(share * size + 0.5) for size in sizes), step
    assert pruning.sparsity_now == pytest.approx(0.9, abs=2e-3)
    assert {name: int((~mask).sum()) for name, mask in pruning.masks.items()} == {n: zeros(net, n) for n in WEIGHTS}
    assert all(entry.parameter.ndim == 1 for entry, _ in pruning.left_out)
    assert pruning.describe() == {"sparsity": pruning.sparsity_now}


def test_the_last_pruning_is_at_the_end_of_the_ramp_also_where_every_does_not_divide_it() -> None:
    net = Small()
    pruning = lever(every=4, end=0.5)
    optimizer, _ = attached(net, pruning)
    found = []
    steps(net, optimizer, range(12), lambda: found.append(pruning.sparsity_now))
    assert [step + 1 for step in range(1, 12) if found[step] != found[step - 1]] == [4, 8, 10]
    assert found[-1] == pytest.approx(0.9, abs=2e-3)


def test_the_smallest_go_and_ties_go_by_position() -> None:
    net = nn.Linear(5, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[3.0, -1.0, 1.0, 5.0, 1.0], [4.0, 1.0, -2.0, 6.0, 7.0]]))
    pruning = GradualPruning(0.3, initial=0.3, total_steps=10)  # due before the first step
    attached(net, pruning)
    assert pruning.masks["weight"].tolist() == [[True, False, False, True, False], [True] * 5]
    assert int((net.weight == 0).sum()) == 3


def test_a_weight_that_is_zero_by_itself_is_not_taken_for_a_masked_one() -> None:
    net = nn.Linear(4, 1, bias=False)
    pruning = GradualPruning(0.75, initial=0.25, begin=0.0, end=0.2, every=1, total_steps=10, power=1.0)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[5.0, 0.5, 3.0, 4.0]]))
    optimizer, _ = attached(net, pruning, torch.optim.SGD(net.parameters(), lr=0.0))
    with torch.no_grad():
        net.weight[0, 0] = 0.0  # before the masked one by position
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert pruning.masks["weight"].tolist() == [[False, False, True, True]]


def test_masked_weights_get_no_gradient_and_what_the_optimizer_remembers_of_them_is_zero() -> None:
    for reset in (True, False):
        net = Small()
        pruning = lever(every=1, end=0.2, final=0.5, reset_state=reset)
        optimizer, _ = attached(net, pruning, torch.optim.Adam(net.parameters(), lr=0.01))
        steps(net, optimizer, range(4))
        gone = ~pruning.masks["conv.weight"]
        moments = [optimizer.state[net.conv.weight][name] for name in ("exp_avg", "exp_avg_sq")]
        assert all(bool((moment[gone] == 0).all()) == reset for moment in moments)
        steps(net, optimizer, range(4, 5))
        assert net.conv.weight.grad is not None
        assert bool((net.conv.weight.grad[gone] == 0).all())
        assert bool((net.conv.weight.grad[~gone] != 0).any())


def test_training_behind_the_mask_is_written_out() -> None:
    """DPF: the gradient at the masked weights, the step at the dense ones, masks from the dense ones."""
    net, twin = Small(), Small()
    net.drop.p = twin.drop.p = 0.0
    twin.load_state_dict(net.state_dict())
    pruning = lever(reversible=True, every=2, end=0.3, final=0.6, scope="global")
    optimizer, _ = attached(net, pruning, sgd(net, weight_decay=0.0))
    plain = sgd(twin, weight_decay=0.0)
    chosen = [twin.get_parameter(name) for name in WEIGHTS]
    dense = [weight.detach().clone() for weight in chosen]
    masks = [torch.ones_like(weight) for weight in dense]
    back = 0
    for step in range(10):
        plain.zero_grad()
        twin(batch(step)).pow(2).mean().backward()  # at the masked weights
        with torch.no_grad():
            for weight, behind in zip(chosen, dense, strict=True):
                weight.copy_(behind)
        plain.step()
        dense = [weight.detach().clone() for weight in chosen]
        if (step + 1) % 2 == 0:
            share = 0.6 - 0.6 * max(0.0, 1 - (step + 1) / 6) ** 3
            flat = torch.cat([weight.abs().flatten() for weight in dense])
            order = flat.argsort(stable=True)[: int(share * flat.numel() + 0.5)]
            keep = torch.ones_like(flat).index_fill(0, order, 0.0)
            new = [part.view_as(w) for part, w in zip(keep.split([w.numel() for w in dense]), dense, strict=True)]
            back += sum(int(((one == 0) & (other == 1)).sum()) for one, other in zip(masks, new, strict=True))
            masks = new
        with torch.no_grad():
            for weight, mask in zip(chosen, masks, strict=True):
                weight.mul_(mask)
        steps(net, optimizer, range(step, step + 1))
        for name, weight in zip(WEIGHTS, chosen, strict=True):
            torch.testing.assert_close(net.get_parameter(name), weight, rtol=1e-5, atol=1e-6)
    assert back > 0, "no weight came back: nothing was tested"
    assert int((net.conv.weight == 0).sum()) > 0
    with pytest.raises(ValueError, match="inside a step of LBFGS"):
        attached(net, lever(reversible=True), torch.optim.LBFGS(net.parameters()))


@pytest.mark.parametrize("settings", [{}, {"reversible": True}, {"scope": "global"}])
def test_resumed_in_the_middle_of_the_ramp_goes_on_bit_for_bit(settings: dict[str, Any]) -> None:
    (whole, _), (second, _) = resumed(Small, lambda: lever(**settings), 8, 18)
    assert same(whole, second)


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    net = Small()
    optimizer, handle = attached(net, lever())
    steps(net, optimizer, range(6))
    state = handle.levers[0].state_dict()
    other = lever(final=0.8)
    attached(Small(), other)
    with pytest.raises(ValueError, match=r"'final': 0\.9.*does not fit GradualPruning\(final=0\.8"):
        other.load_state_dict(state)
    wide = lever()
    attached(nn.Sequential(nn.Linear(3, 3)), wide)
    with pytest.raises(ValueError, match=r"masks are of \['conv\.weight', .* weights are \['0\.weight'\]"):
        wide.load_state_dict(state)
    assert (wide.steps, wide.masks) == (0, {})
    smaller = Small()
    smaller.head = nn.Linear(6, 4)
    shaped = lever()
    attached(smaller, shaped)
    with pytest.raises(ValueError, match=r"mask of head\.weight has the shape \(5, 6\), its weight \(4, 6\)"):
        shaped.load_state_dict(state)


def test_steps_that_a_scaler_skips_do_not_count_and_accumulated_ones_are_one() -> None:
    net = Small()
    pruning = lever(every=1)
    optimizer, _ = attached(net, pruning)
    scaled_steps_with_one_skipped(net, optimizer)
    assert pruning.steps == 2


def test_finish_prunes_where_training_ended_before_its_time() -> None:
    net = Small()
    pruning = lever()
    optimizer, handle = attached(net, pruning)
    steps(net, optimizer, range(7))
    assert pruning.sparsity_now < 0.8
    assert handle.finish() is True
    assert zeros(net, *WEIGHTS) == sum(int(0.9 * size + 0.5) for size in SIZES)
    done = Small()
    optimizer, handle = attached(done, lever())
    steps(done, optimizer, range(20))
    before = {name: tensor.clone() for name, tensor in done.state_dict().items()}
    assert handle.finish() is False
    assert all(torch.equal(tensor, before[name]) for name, tensor in done.state_dict().items())


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_network_that_is_sparse_already_loses_nothing_when_it_is_pruned(sparsity: float) -> None:
    for scope in ("global", "layer"):
        net = Small()
        optimizer, _ = attached(net, lever(scope=scope))
        steps(net, optimizer, range(20))
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        pruned = one_shot(net, sparsity, scope=scope)
        assert pruned.count == round(sparsity * sum(SIZES)) or scope == "layer"
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_weights_that_are_tied_computed_or_frozen() -> None:
    tied = Tied()
    optimizer, _ = attached(tied, pruning := GradualPruning(0.5, initial=0.5, total_steps=4))
    assert int((tied.head.weight == 0).sum()) == 16
    assert list(pruning.masks) == ["embedding.weight"]
    net = Small()
    torch.nn.utils.parametrizations.weight_norm(net.conv)
    torch.nn.utils.parametrizations.spectral_norm(net.up)
    net.head.weight.requires_grad_(False)
    keys = list(net.state_dict())
    pruning = lever(every=1, end=0.2, final=0.5)
    optimizer, _ = attached(net, pruning)
    for _ in range(3):
        steps(net, optimizer, range(4))
    assert list(net.state_dict()) == keys
    assert int((net.conv.weight == 0).sum()) == 144
    assert bool(net.conv.weight.isfinite().all())
    reasons = {entry.name: reason for entry, reason in pruning.left_out}
    assert "under SpectralNorm, which cannot hold zeros" in reasons["up.weight"]
    assert "frozen" in reasons["head.weight"]


def test_sharpness_aware_steps_perturb_the_kept_weights_only() -> None:
    net = Small()
    pruning = lever(every=1, end=0.1, final=0.5)
    optimizer, _ = attached(net, pruning, SAM(sgd(net), rho=0.5, model=net))
    steps(net, optimizer, range(3))
    seen = []
    net.conv.register_forward_pre_hook(lambda *_: seen.append(net.conv.weight.detach().clone()))
    steps(net, optimizer, range(3, 4))
    gone = ~pruning.masks["conv.weight"]
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])
    assert bool((seen[1][gone] == 0).all())


def test_channels_last_masks_lie_as_their_weights() -> None:
    net = Small().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, handle = attached(net, pruning := lever(every=1))
    steps(net, optimizer, range(2))
    other = lever(every=1)
    attached(Small().to(memory_format=torch.channels_last), other)  # type: ignore[call-overload]
    other.load_state_dict(handle.levers[0].state_dict())
    for each in (pruning, other):
        assert each._gone["conv.weight"].stride() == net.conv.weight.stride()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"final": 1.0}, r"final must lie in \(0, 1\), got 1\.0"),
        ({"final": 0.0}, r"final must lie in \(0, 1\)"),
        ({"begin": 0.8}, r"begin must be below end, got begin=0\.8, end=0\.75"),
        ({"initial": 0.95}, r"initial must be at most final=0\.9, got 0\.95"),
        ({"power": 0.0}, r"power must be finite and above 0"),
        ({"every": 0}, r"every must be a whole number of 1 or more"),
        ({"scope": "erk"}, r"scope must be one of 'global', 'layer', got 'erk'"),
        ({"total_steps": 0}, r"total_steps must be a whole number of 1 or more"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lever(**settings)


def test_it_fits_one_optimizer_and_needs_something_to_prune() -> None:
    net = Small()
    parts = [torch.optim.SGD(net.conv.parameters(), 0.1), torch.optim.SGD(net.head.parameters(), 0.1)]
    with pytest.raises(ValueError, match="does not act on 2 optimizers at once: its masks are of one"):
        trimtab.attach(parts, lever(), model=net)
    with pytest.raises(ValueError, match=r"finds nothing to prune \(weight: 1 dimension"):
        attached(nn.LayerNorm(3), GradualPruning(0.5, initial=0.5, total_steps=4))


@pytest.mark.parametrize(
    "own",
    [
        lever(), lever(reversible=True), pruning.DynamicSparse(0.5, total_steps=20), pruning.SoftThreshold(init=-2.0),
        pruning.MovementPruning(0.5, begin=0.0, every=1, total_steps=20),
        pruning.NMDecay(1, 2, begin=0.0, end=0.1, total_steps=20), pruning.ACDC(0.5, total_steps=20),
    ],
)  # fmt: skip
def test_what_a_lever_tells_of_itself_stays_when_it_is_removed(own: Any) -> None:
    net = Small()
    optimizer, handle = attached(net, own)
    steps(net, optimizer, range(6))
    before = own.describe()
    handle.remove()
    assert own.describe() == before
    assert own.describe()["sparsity"] > 0
    assert own.removed() == []
