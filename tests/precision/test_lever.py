"""LowPrecision: in effect wherever it was asked to act, exact, and the same after a resume."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import trimtab
from tests.distributed import on_two_ranks
from trimtab.parameters import Rule
from trimtab.precision import LowPrecision, PerTensor, ShrinkageMeter, quantize

ALL = Rule(min_ndim=0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def batch(number: int) -> Tensor:
    return torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(number))


def backward(net: nn.Module, number: int = 0) -> Tensor:
    loss = net(batch(number)).square().sum()
    loss.backward()
    return loss


def e4m3(x: Tensor) -> Tensor:
    """By another library; equal to ours below 464."""
    return torch.from_numpy(x.detach().numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


def matrices(net: nn.Module) -> list[Tensor]:
    return [parameter for parameter in net.parameters() if parameter.ndim > 1]


def in_format(x: Tensor, format: str = "e4m3") -> bool:
    return torch.equal(x, quantize(x, format))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_step_uses_the_rounded_gradients(kind):
    """The trap of a public reproduction: gradients rounded, thrown away, and the step taken with the original ones."""
    net, reference, plain = network(), network(), network()
    optimizers = [OPTIMIZERS[kind](each.parameters()) for each in (net, reference, plain)]
    trimtab.attach(optimizers[0], LowPrecision("e4m3"), model=net)
    for number in range(3):
        for each, optimizer in zip((net, reference, plain), optimizers, strict=True):
            optimizer.zero_grad()
            backward(each, number)
            if each is reference:
                for matrix in matrices(reference):
                    matrix.grad.copy_(e4m3(matrix.grad))
            optimizer.step()
    for one, other, third in zip(net.parameters(), reference.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(one, third)


def test_step_and_shrinkage_act_as_their_product():
    """SGD with (mu, q) is SGD with (mu q), exactly where q is a power of two, to rounding elsewhere."""

    class Shrink:
        def __init__(self, q: float) -> None:
            self.q = q

        def before_step(self, parameters):
            for entry in parameters:
                entry.parameter.grad.mul_(self.q)

        def state_dict(self):
            return {}

        def load_state_dict(self, state): ...

    for q, exact in ((0.25, True), (0.7, False)):
        nets = network().double(), network().double()
        for net, rate, shrinkage in zip(nets, (0.08, 0.08 * q), (q, 1.0), strict=True):
            optimizer = torch.optim.SGD(net.parameters(), lr=rate)
            trimtab.attach(optimizer, Shrink(shrinkage))
            for number in range(20):
                optimizer.zero_grad()
                (net(batch(number).double()).square().mean()).backward()
                optimizer.step()
        for one, other in zip(*(net.parameters() for net in nets), strict=True):
            assert torch.equal(one, other) if exact else torch.allclose(one, other, rtol=1e-9, atol=1e-12)


def test_master_weights_collect_steps_that_rounded_weights_lose():
    """Steps of 1/16 of a format's gap: with a master sixteen of them cross it, without one the weight never moves."""
    found = {}
    for master in (True, False):
        weight = nn.Parameter(torch.ones(2, 2))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        lever = LowPrecision(weights="e4m3", master=master)
        handle = trimtab.attach(optimizer, lever)
        seen = []
        for _ in range(16):
            weight.grad = torch.full((2, 2), -1 / 128)  # the gap above 1 is 1/8
            optimizer.step()
            assert in_format(weight)
            seen.append(weight[0, 0].item())
        found[master] = seen
        if master:
            with lever.full_precision():
                assert weight[0, 0].item() == 1.125
                weight.data.add_(0.01)
            assert weight[0, 0].item() == 1.125
        handle.remove()
        assert weight[0, 0].item() == pytest.approx(1.135 if master else 1.0)
    assert found[True] == [1.0] * 8 + [1.125] * 8  # the tie at 1.0625 goes to even
    assert found[False] == [1.0] * 16


def test_forward_and_backward_see_rounded_weights_and_the_optimizer_the_master():
    net, master = network(), network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    handle = trimtab.attach(optimizer, LowPrecision(weights="e3m2"), model=net)
    reference = torch.optim.SGD(master.parameters(), lr=0.05, momentum=0.9)
    for number in range(3):
        rounded = copy.deepcopy(master)
        for matrix in matrices(rounded):
            matrix.data.copy_(quantize(matrix, "e3m2"))
        assert all(torch.equal(*pair) for pair in zip(net.parameters(), rounded.parameters(), strict=True))
        optimizer.zero_grad()
        backward(net, number)
        optimizer.step()
        rounded.zero_grad()
        backward(rounded, number)
        for one, other in zip(master.parameters(), rounded.parameters(), strict=True):
            one.grad = other.grad
        reference.step()
        master[1].load_state_dict(rounded[1].state_dict() | dict(master[1].named_parameters()))
    handle.remove()
    assert all(torch.equal(*pair) for pair in zip(net.parameters(), master.parameters(), strict=True))


def test_levers_around_see_rounded_weights_before_and_masters_after():
    seen: list[bool] = []

    class Look:
        def before_step(self, parameters):
            seen.append(in_format(parameters[0].parameter))

        def state_dict(self):
            return {}

        def load_state_dict(self, state): ...

    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trimtab.attach(optimizer, Look(), LowPrecision(weights="e4m3"), Look())
    backward(net)
    optimizer.step()
    assert seen == [True, False]


@pytest.mark.parametrize(
    ("kind", "key"), [("sgd", "momentum_buffer"), ("adam", "exp_avg"), ("rmsprop", "momentum_buffer")]
)
def test_momentum_is_rounded_after_each_step(kind, key):
    net, reference = network(), network()
    optimizer, other = (OPTIMIZERS[kind](each.parameters()) for each in (net, reference))
    trimtab.attach(optimizer, LowPrecision(momentum="e5m2"), model=net)
    for number in range(3):
        for each, using in ((net, optimizer), (reference, other)):
            using.zero_grad()
            backward(each, number)
            using.step()
        for matrix in matrices(reference):
            other.state[matrix][key].copy_(quantize(other.state[matrix][key], "e5m2"))
    for one, two in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(one, two)
        assert in_format(optimizer.state[one][key], "e5m2") == (one.ndim > 1)
        if kind == "adam":
            assert not in_format(optimizer.state[one]["exp_avg_sq"], "e5m2")


def test_momentum_that_is_not_there_is_an_error():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trimtab.attach(optimizer, LowPrecision(momentum="e4m3"))
    backward(net)
    with pytest.raises(ValueError, match=r"state of SGD has none of .* only no buffers"):
        optimizer.step()


def test_activations_forward_and_backward_have_formats_of_their_own():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    lever = LowPrecision(activations=("e3m2", "e5m2"))
    handle = trimtab.attach(optimizer, lever, model=net)
    outputs: list[Tensor] = []
    coming: list[Tensor] = []
    for layer in (net[0], net[4]):
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output.detach()))
    x = batch(0)
    convolved = net[0](x)
    convolved.backward(torch.randn_like(convolved))
    # the weight's gradient is that of the rounded incoming gradient
    generator = torch.Generator().manual_seed(3)
    incoming = torch.randn(convolved.shape, generator=generator)
    net.zero_grad()
    net[0](x).backward(incoming)
    plain = network()[0]
    plain(x).backward(quantize(incoming, "e5m2"))
    assert torch.equal(net[0].weight.grad, plain.weight.grad)
    coming.append(incoming)
    net(x)
    assert all(in_format(output, "e3m2") for output in outputs)
    with lever.full_precision():
        net(x)
    assert not in_format(outputs[-1], "e3m2")
    handle.remove()
    net(x)
    assert not in_format(outputs[-1], "e3m2")


def test_activations_need_a_model_with_layers():
    net = network()
    with pytest.raises(ValueError, match=r"give attach\(..., model=model\)"):
        trimtab.attach(torch.optim.SGD(net.parameters()), LowPrecision(activations="e4m3"))
    embedding = nn.Embedding(3, 2)
    with pytest.raises(ValueError, match="the rule picks the weight of none in Embedding"):
        trimtab.attach(torch.optim.SGD(embedding.parameters()), LowPrecision(activations="e4m3"), model=embedding)


def everything(meter: ShrinkageMeter | None = None, **settings: Any) -> LowPrecision:
    return LowPrecision(
        "e4m3", "e4m3", "e5m2", ("e4m3", "e5m2"), rounding="stochastic", meter=meter, **{"seed": 5, **settings}
    )


Built = tuple[nn.Module, torch.optim.Optimizer, trimtab.Handle]


def built(**settings: Any) -> Built:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    return net, optimizer, trimtab.attach(optimizer, everything(ShrinkageMeter(every=2), **settings), model=net)


def steps(run: Built, numbers: range, evaluate: bool = False) -> None:
    net, optimizer, _ = run
    for number in numbers:
        optimizer.zero_grad()
        backward(net, number)
        optimizer.step()
        if evaluate:
            with torch.no_grad():
                net.eval()(batch(100))
            net.train()


@pytest.mark.parametrize("settings", [{}, {"master": False}, {"master": False, "scaling": PerTensor()}])
@pytest.mark.parametrize("split", [3, 4])
def test_a_resumed_run_is_the_same_run(settings, split):
    whole = built(**settings)
    steps(whole, range(6))
    first = built(**settings)
    steps(first, range(split), evaluate=True)
    file = io.BytesIO()
    torch.save({"net": first[0].state_dict(), "opt": first[1].state_dict(), "levers": first[2].state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    torch.rand(17)  # other random numbers are none of its business
    net = network()
    net.load_state_dict(state["net"])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    optimizer.load_state_dict(state["opt"])
    lever = everything(ShrinkageMeter(every=2), **settings)
    resumed = (net, optimizer, trimtab.attach(optimizer, lever, model=net))
    resumed[2].load_state_dict(state["levers"])
    steps(resumed, range(split, 6))
    for one, other in zip(whole[0].state_dict().values(), net.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert lever.meter.table().equals(whole[2].levers[0].meter.table())
    assert len(set(lever.meter.table()["kind"].to_pylist())) == 3


def test_seeds_differ_and_steps_draw_anew():
    runs = [built(), built(seed=6)]
    for run in runs:
        steps(run, range(1))
    assert not torch.equal(*(run[0][4].weight for run in runs))
    lever, weight = LowPrecision("e2m1", rounding="stochastic"), nn.Parameter(torch.zeros(40, 40))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    trimtab.attach(optimizer, lever)
    found = []
    for _ in range(400):
        weight.grad = torch.full((40, 40), 0.2)
        optimizer.step()
        found.append(weight.grad.clone())
    assert not torch.equal(found[0], found[1])
    # unbiased over steps, in each entry: mean 0.2, standard error 0.5 sqrt(0.4 0.6) / 20
    assert (torch.stack(found).mean(0) - 0.2).abs().max() < 6 * 0.5 * 0.24**0.5 / 20


def test_state_of_other_settings_is_refused():
    state = built()[2].state_dict()
    with pytest.raises(ValueError, match="saved settings"):
        built(seed=1)[2].load_state_dict(state)
    other = nn.Linear(2, 2)
    handle = trimtab.attach(torch.optim.SGD(other.parameters()), everything(), model=other)
    with pytest.raises(ValueError, match="saved master weights have the shapes"):
        handle.load_state_dict(state)


@pytest.mark.parametrize("fused", [True, False])
def test_under_a_grad_scaler_true_gradients_are_rounded_and_skipped_steps_are_none(fused):
    net, plain = network(), network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused)
    lever = LowPrecision("e4m3", "fp16")
    trimtab.attach(optimizer, lever, model=net)
    scaler = torch.amp.GradScaler("cpu", init_scale=3.0)
    for matrix in matrices(plain):
        matrix.data.copy_(quantize(matrix, "fp16"))
    backward(plain)
    (scaler.scale(net(batch(0)).square().sum())).backward()
    scaler.step(optimizer)
    scaler.update()
    for one, other in zip(matrices(net), matrices(plain), strict=True):
        torch.testing.assert_close(one.grad, quantize(other.grad, "e4m3"), rtol=0.13, atol=1e-3)
        assert in_format(one.grad)
        assert in_format(one, "fp16")
    before = [parameter.detach().clone() for parameter in net.parameters()]
    optimizer.zero_grad()
    scaler.scale(net(batch(0)).square().sum() * float("inf")).backward()
    scaler.step(optimizer)
    assert lever.step == 1
    assert all(torch.equal(*pair) for pair in zip(before, net.parameters(), strict=True))


def test_inside_sam_the_base_optimizer_gets_the_rounded_gradient():
    net = network()
    base = torch.optim.SGD(net.parameters(), lr=0.05)
    optimizer = trimtab.optimizers.SAM(base, rho=0.05)
    lever = LowPrecision("e4m3", weights="e4m3")
    trimtab.attach(optimizer, lever, model=net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        return backward(net)

    optimizer.step(closure)
    assert lever.step == 1
    assert all(in_format(matrix.grad) and in_format(matrix) for matrix in matrices(net))


def test_parameters_added_later_and_frozen_ones():
    net, late = network(), nn.Linear(3, 3)
    net[4].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net[4].weight.clone()
    handle = trimtab.attach(optimizer, LowPrecision("e4m3", weights="e4m3"))
    assert torch.equal(net[4].weight, before)
    backward(net)
    optimizer.step()
    optimizer.add_param_group({"params": list(late.parameters())})
    full = late.weight.detach().clone()
    optimizer.zero_grad()
    late(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert in_format(late.weight)
    handle.remove()
    assert torch.equal(late.weight, full - 0.1)


def test_bad_input():
    with pytest.raises(ValueError, match="rounds nothing"):
        LowPrecision()
    with pytest.raises(ValueError, match="e4mm"):
        LowPrecision("e4mm")
    with pytest.raises(ValueError, match="rounding must be one of"):
        LowPrecision("e4m3", rounding="odd")
    with pytest.raises(ValueError, match="has no infinity"):
        LowPrecision("e2m1", overflow="inf")
    with pytest.raises(ValueError, match="gradients is None"):
        LowPrecision(weights="e4m3", before_reduce=True)
    for settings in ({"rule": 3}, {"momentum_keys": "exp_avg"}, {"seed": 0.5}, {"meter": 10}, {"scaling": "mx"}):
        with pytest.raises(TypeError, match=next(iter(settings))):
            LowPrecision("e4m3", **settings)
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="finds nothing to round among 2 parameter"):
        trimtab.attach(optimizer, LowPrecision("e4m3", rule=Rule(min_ndim=3)))
    half = nn.Linear(2, 2).half()
    with pytest.raises(ValueError, match=r"gradients='bf16' does not fit into torch.float16 of weight"):
        trimtab.attach(torch.optim.SGD(half.parameters()), LowPrecision("bf16"), model=half)
    with pytest.raises(ValueError, match="LBFGS"):
        trimtab.attach(torch.optim.LBFGS(net.parameters()), LowPrecision(weights="e4m3"))
    lever = LowPrecision("e4m3", overflow="raise")
    trimtab.attach(optimizer, lever, model=net)
    with pytest.raises(ValueError, match="is attached already"):
        trimtab.attach(optimizer, lever)
    net.weight.grad = torch.full((2, 2), 1e6)
    with pytest.raises(ValueError, match=r"gradients of weight in step 0: x has magnitudes up to 1e\+06"):
        optimizer.step()
    embedding = nn.Embedding(4, 2, sparse=True)
    sparse = torch.optim.SGD(embedding.parameters(), lr=0.1)
    trimtab.attach(sparse, LowPrecision("e4m3"), model=embedding)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match=r"that of weight has layout torch.sparse_coo"):
        sparse.step()


def test_weights_that_cannot_be_rounded_are_put_back():
    net = nn.Linear(2, 2)
    nn.init.constant_(net.weight, 1e6)
    with pytest.raises(ValueError, match="weights of weight in step 0"):
        trimtab.attach(torch.optim.SGD(net.parameters()), LowPrecision(weights="e4m3", overflow="raise"), model=net)
    assert torch.equal(net.weight, torch.full((2, 2), 1e6))


def test_repr():
    lever = LowPrecision("e4m3", "fp16", scaling=PerTensor(), master=False)
    assert repr(lever) == (
        "LowPrecision(gradients=e4m3, weights=fp16, rounding=nearest, scaling=PerTensor(rule='absmax'), master=False, "
        "min_ndim=2)"
    )


def test_before_reduce_in_one_process_is_the_same_as_after():
    nets = network(), network()
    for net, early in zip(nets, (True, False), strict=True):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        trimtab.attach(optimizer, LowPrecision("e2m1", before_reduce=early), model=net)
        backward(net)
        optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(*(net.parameters() for net in nets), strict=True))


def _reduced(rank: int, world: int, early: bool) -> dict[str, Any]:
    def gradient_of(number: int) -> Tensor:
        net = network()
        backward(net, number)
        return net[4].weight.grad

    own = [gradient_of(number) for number in range(world)]
    net = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    meter = ShrinkageMeter(every=1)
    lever = LowPrecision("e2m1", rounding="stochastic", before_reduce=early, meter=meter)
    handle = trimtab.attach(optimizer, lever, model=net)
    if early:
        with pytest.raises(ValueError, match="another LowPrecision"):
            trimtab.attach(optimizer, LowPrecision("e2m1", before_reduce=True), model=net)
    backward(net, rank)
    optimizer.step()
    reduced = net.module[4].weight.grad.clone()
    row = next(row for row in meter.table().to_pylist() if row["layer"] == "4.weight")
    handle.remove()
    optimizer.zero_grad()
    net.module.load_state_dict(network().state_dict())
    backward(net, rank)  # after removal the plain mean again
    assert torch.allclose(net.module[4].weight.grad, sum(own) / world, atol=1e-6)
    return {"own": own, "reduced": reduced, "n": row["n"], "weight": net.module[4].weight.detach()}


@pytest.mark.parametrize("early", [True, False])
def test_on_two_ranks(early):
    one, other = on_two_ranks(_reduced, early)
    assert torch.equal(one["reduced"], other["reduced"])
    mean = (one["own"][0] + one["own"][1]) / 2
    if early:
        # the mean of two numbers of the format, each within its gap of the rank's own gradient
        doubled = 2 * one["reduced"]
        assert in_format(doubled, "e3m3")
        assert not in_format(one["reduced"], "e2m1")
        low = sum(quantize(g, "e2m1", "toward_zero") for g in one["own"]) / 2
        assert ((one["reduced"] - low).abs() <= 2).all()
        assert one["n"] == 2 * mean.numel()
    else:
        assert in_format(one["reduced"], "e2m1")
        assert one["n"] == mean.numel()
