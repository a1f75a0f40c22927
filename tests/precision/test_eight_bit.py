"""Code books, 8-bit state as a lever, AdamW8bit."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

import trimtab
from tests.distributed import on_two_ranks
from tests.reference import block_codes
from trimtab.optimizers import Fira
from trimtab.parameters import Rule
from trimtab.precision import AdamW8bit, EightBitState, ShrinkageMeter
from trimtab.precision.code_book import Coder, code_book, decode, encode


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_dynamic_map_is_that_of_bitsandbytes():
    """First, last and sum of bitsandbytes 0.50.2's map."""
    signed, unsigned = code_book(), code_book(signed=False)
    assert len(signed) == len(unsigned) == 256
    first = [-0.9929687381, -0.978906244, -0.96484375, -0.950781256, -0.9367187619]
    np.testing.assert_allclose(signed[:5], first, rtol=1e-7)
    np.testing.assert_allclose(signed[-3:], [0.978906244, 0.9929687381, 1.0], rtol=1e-7)
    np.testing.assert_allclose(unsigned[:4], [0.0, 3.250000067e-07, 7.75000006e-07, 2.124999948e-06], rtol=1e-7)
    assert float(signed.double().sum()) == pytest.approx(1.0, abs=1e-6)
    assert float(unsigned.double().sum()) == pytest.approx(75.10526309, abs=1e-6)
    for bits in range(4, 9):
        for name in ("dynamic", "linear"):
            for sign in (True, False):
                assert len(code_book(name, bits, signed=sign)) == 2**bits
                assert bool((code_book(name, bits, signed=sign).diff() >= 0).all())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["dynamic", "linear"])
@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_the_nearest_entries(name, bits, signed):
    x = torch.randn(4097, generator=seeded(1)) * torch.exp2(torch.randint(-25, 3, (4097,), generator=seeded(2)).float())
    x = x if signed else x.abs()
    got = encode(x, name, bits, 64, signed=signed)
    book = code_book(name, bits, signed=signed).double().numpy()
    codes, absmax = block_codes(x.numpy(), book, 64)
    np.testing.assert_array_equal(got.absmax, absmax)
    found, wanted = book[got.codes.numpy()], book[codes]
    np.testing.assert_array_equal(found, wanted)
    back = decode(got, x.shape, name, bits, 64, signed=signed)
    np.testing.assert_allclose(back, wanted * np.repeat(absmax, 64)[:4097], rtol=1e-6, atol=0)


def test_the_vector_of_the_sheet():
    """Twelve numbers in blocks of 8: codes, magnitudes and what they stand for."""
    k = np.arange(12)
    x = torch.from_numpy(np.sin(1.3 * k + 0.7 * 4) + 0.5 * np.cos(0.37 * k * k + 4)).float()
    coder = Coder(block=8)
    codes = coder.encoded(x)
    assert codes.codes.tolist() == [154, 8, 43, 225, 218, 216, 13, 0, 197, 222, 27, 0]
    np.testing.assert_allclose(codes.absmax, [1.113324922, 0.9464436598], rtol=1e-6)
    back = [
        0.008315145376, -0.9802478087, -0.4322831823, 0.6514690494, 0.5418761241, 0.5105638408, -0.9019671502, -1.105496842,
        0.1811552318, 0.5138893309, -0.5804361507, -0.9397889665,
    ]  # fmt: skip
    np.testing.assert_allclose(coder.decoded(codes), back, rtol=1e-6)


def test_ties_zeros_and_what_is_no_number():
    book = code_book()
    tie = (book[200] + book[201]) / 2
    assert encode(torch.tensor([1.0, tie])).codes[1] == 200
    zeros = encode(torch.zeros(300))
    assert zeros.absmax.tolist() == [0.0, 0.0]
    assert bool((decode(zeros, (300,)) == 0).all())
    x = torch.ones(600)
    x[5], x[300] = torch.nan, torch.inf
    back = decode(encode(x), (600,))
    assert bool(back[:512].isnan().all())
    assert bool((back[512:] == 1).all())


def test_a_small_second_moment_is_not_lost():
    """Beside 1.0 the published map stores 1e-8 as 0, and Adam's step would be 10,001 times too long."""
    v = torch.full((256,), 1e-8)
    v[0] = 1.0
    plain = decode(encode(v, signed=False), (256,), signed=False)
    kept = decode(encode(v, signed=False, floor=True), (256,), signed=False)
    assert plain[1] == 0
    assert kept[1] == pytest.approx(3.25e-7)
    assert decode(encode(torch.tensor([1.0, 0.0]), signed=False, floor=True), (2,), signed=False)[1] == 0
    assert (1e-4 / (plain[1].sqrt() + 1e-8)) / (1e-4 / (v[1].sqrt() + 1e-8)) == pytest.approx(10_001, rel=1e-3)


def test_stochastic_codes_have_the_number_as_their_mean():
    x = torch.tensor([1.0, 0.3, -0.004, 2e-6, 0.0]).repeat(20_000, 1)
    back = decode(encode(x.reshape(-1), block=1024, rounding="stochastic", generator=seeded(3)), x.shape, block=1024)
    error = back.double().std(0) / 20_000**0.5
    assert bool(((back.double().mean(0) - x[0].double()).abs() <= 4 * error + 1e-9).all())


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Embedding(70, 64), nn.Flatten(), nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 3))


def gradients(net: nn.Module, step: int) -> None:
    inputs = torch.randint(0, 70, (16, 2), generator=seeded(step))
    net.zero_grad()
    nn.functional.cross_entropy(net(inputs), inputs.sum(1) % 3).backward()


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "adamw, one by one": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=False, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-2, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_has_its_state_in_bytes_and_resumes_bit_for_bit(name):
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters())
    lever = EightBitState(min_size=1000)
    handle = trimtab.attach(optimizer, lever, model=net)
    for step in range(3):
        gradients(net, step)
        optimizer.step()
        kept = optimizer.state[net[2].weight]
        assert not [key for key, value in kept.items() if value is not None and torch.is_tensor(value) and value.ndim]
    assert {entry for entry, _ in lever.left_out} == {"0.weight", "2.bias", "4.weight", "4.bias"}
    assert "table of embeddings" in dict(lever.left_out)["0.weight"]
    assert "fewer than min_size=1000" in dict(lever.left_out)["2.bias"]
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict(), "handle": handle.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = network()
    second = OPTIMIZERS[name](other.parameters())
    again = trimtab.attach(second, EightBitState(min_size=1000), model=other)
    other.load_state_dict(saved["net"])
    second.load_state_dict(saved["optimizer"])
    again.load_state_dict(saved["handle"])
    for step in range(3, 6):
        for one, stepper in ((net, optimizer), (other, second)):
            gradients(one, step)
            stepper.step()
        for one, two in zip(net.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)


def test_the_step_sees_what_the_codes_say():
    """One step from a decoded state equals the plain optimizer's from the same numbers: nothing else is changed."""
    net = network()
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    handle = trimtab.attach(optimizer, EightBitState(min_size=1), model=net)
    for step in range(3):
        gradients(net, step)
        optimizer.step()
    twin = copy.deepcopy(net)
    plain = OPTIMIZERS["adamw"](twin.parameters())
    lever = handle.levers[0]
    codes = {name: dict(states) for name, states in lever._codes.items()}
    handle.remove()  # the float state is back
    for (name, own), other in zip(net.named_parameters(), twin.parameters(), strict=True):
        state = optimizer.state[own]
        plain.state[other] = {key: value.clone() for key, value in state.items()}
        if name != "0.weight":
            kept = codes[name]["exp_avg"][0]
            assert torch.equal(state["exp_avg"], decode(kept, own.shape))
    again = trimtab.attach(optimizer, EightBitState(min_size=1), model=net)
    for one, stepper in ((net, optimizer), (twin, plain)):
        gradients(one, 3)
        stepper.step()
    for one, two in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)
    again.remove()


def test_bytes_are_saved_and_training_goes_the_same_way():
    found = {}
    for kind in ("plain", "dynamic", "linear"):
        net = network()
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        if kind != "plain":
            lever = EightBitState(kind, min_size=1000, floor=False)
            trimtab.attach(optimizer, lever, model=net)
        for step in range(60):
            gradients(net, step % 8)
            optimizer.step()
        found[kind] = torch.cat([p.detach().reshape(-1) for p in net.parameters()])
        if kind == "dynamic":
            here, full = lever.bytes
            parameter = 128 * 64
            assert full - here == 2 * parameter * 3 - 2 * parameter // 256 * 4
            assert lever.describe()["state_bytes"] == here
    distance = {kind: float((found[kind] - found["plain"]).norm()) for kind in ("dynamic", "linear")}
    assert distance["dynamic"] < 0.5 * distance["linear"]


def test_adamw_8bit_is_adamw_under_the_lever():
    one, two = network(), network()
    lever = EightBitState(min_size=1000, rule=Rule(min_ndim=0, role="any"))
    first = torch.optim.AdamW(one.parameters(), lr=1e-2, weight_decay=0.1)
    trimtab.attach(first, lever, model=one)
    second = AdamW8bit(two.parameters(), lr=1e-2, weight_decay=0.1, min_size=1000)
    for step in range(6):
        for net, optimizer in ((one, first), (two, second)):
            gradients(net, step)
            optimizer.step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-4)  # a code on an edge may fall to the other side
    here, full = second.state_bytes()
    assert here < 0.30 * full


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_8bit_resumes_and_goes_to_32_bits_and_back(dtype):
    net = network().to(dtype)
    optimizer = AdamW8bit(net.parameters(), lr=1e-2, min_size=1000)
    for step in range(3):
        gradients(net, step)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(net)
    resumed = AdamW8bit(twin.parameters(), lr=1e-2, min_size=1000)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    wide = copy.deepcopy(net)
    plain = torch.optim.AdamW(wide.parameters(), lr=1e-2)
    plain.load_state_dict(optimizer.to_float())
    back = copy.deepcopy(net)
    again = AdamW8bit(back.parameters(), lr=1e-2, min_size=1000)
    if dtype == torch.float32:
        again.load_state_dict(plain.state_dict())
    for model, stepper in ((net, optimizer), (twin, resumed), (wide, plain), (back, again)):
        gradients(model, 3)
        stepper.step()
    for own, exact, close, returned in zip(*(m.parameters() for m in (net, twin, wide, back)), strict=True):
        assert torch.equal(own, exact)
        torch.testing.assert_close(own, close, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=2e-4)
        if dtype == torch.float32:  # -1 is no entry: a block whose largest is negative is encoded anew a little smaller
            torch.testing.assert_close(own, returned, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EightBitState(block=8), ValueError, "block must be a power of two of 16 or more, got 8"),
        (lambda: EightBitState(block=100), ValueError, "got 100"),
        (lambda: EightBitState(bits=3), ValueError, r"bits of a code must be a whole number in 4\.\.8, got 3"),
        (lambda: EightBitState(bits=9), ValueError, "got 9"),
        (lambda: EightBitState("log"), ValueError, "map must be one of 'dynamic', 'linear', got 'log'"),
        (lambda: EightBitState(min_size=0), ValueError, "min_size must be a whole number of 1 or more, got 0"),
        (lambda: EightBitState(rounding="up"), ValueError, "rounding must be one of 'nearest', 'stochastic', got 'up'"),
        (lambda: EightBitState(unsigned="exp_avg_sq"), TypeError, "several names, got the string 'exp_avg_sq'"),
        (lambda: encode(-torch.ones(2), signed=False), ValueError, "numbers from 0 on, got -1"),
        (lambda: AdamW8bit([nn.Parameter(torch.ones(2))], betas=(0.9, 1.0)), ValueError, r"got \(0\.9, 1\.0\)"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_input_at_the_step():
    net = network()
    optimizer = OPTIMIZERS["adamw"](net.parameters())
    with trimtab.attach(optimizer, EightBitState(min_size=1000, unsigned=("exp_avg",)), model=net):
        gradients(net, 0)
        with pytest.raises(
            ValueError, match=r"exp_avg of 2\.weight: unsigned codes are of numbers from 0 on.*see `unsigned`"
        ):
            optimizer.step()
    nameless = OPTIMIZERS["sgd"](network().parameters())
    trimtab.attach(nameless, EightBitState(min_size=1, rule=Rule(exclude=("*embed*",))))
    gradients_of = nameless.param_groups[0]["params"]
    for parameter in gradients_of:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ValueError, match="has no name, so include="):
        nameless.step()
    saved = EightBitState(bits=4).state_dict()
    with pytest.raises(ValueError, match=r"are not those of EightBitState\(map='dynamic', bits=8"):
        EightBitState().load_state_dict(saved)


def test_a_state_that_does_not_fit_changes_nothing():
    held = []
    for inputs in (64, 32):
        net = nn.Linear(inputs, 64)
        optimizer, lever = torch.optim.Adam(net.parameters()), EightBitState(min_size=64)
        trimtab.attach(optimizer, lever, model=net)
        net(torch.ones(1, inputs)).sum().backward()
        optimizer.step()
        held.append((optimizer, lever))
    before = held[1][1].state_dict()
    with pytest.raises(ValueError, match="saved codes of exp_avg of weight are 4096, the parameter here has 2048"):
        held[1][1].load_state_dict(held[0][1].state_dict())
    assert torch.equal(
        held[1][1].state_dict()["codes"]["weight"]["exp_avg"]["codes"], before["codes"]["weight"]["exp_avg"]["codes"]
    )
    held[1][0].step()


def test_what_of_the_state_stays_as_it_is_is_said():
    net = network()
    lever = EightBitState(min_size=1000)
    wide = max(net.parameters(), key=torch.Tensor.numel)
    groups = [
        {"params": [wide], "rank": 4},
        {"params": [one for one in net.parameters() if one is not wide], "rank": None},
    ]
    optimizer = Fira(groups)
    trimtab.attach(optimizer, lever, model=net)
    name = next(name for name, one in net.named_parameters() if one is wide)
    assert name not in dict(lever.left_out)
    gradients(net, 0)
    optimizer.step()
    reason = dict(lever.left_out)[name]
    assert "exp_avg (" in reason
    assert "projection (" in reason
    assert f"no floats of the parameter's shape {tuple(wide.shape)}" in reason


def test_state_of_groups_added_later_comes_back():
    net = nn.ModuleDict({"one": nn.Linear(64, 64, bias=False), "two": nn.Linear(64, 64, bias=False)})
    optimizer = torch.optim.SGD(net["one"].parameters(), lr=0.1, momentum=0.9)
    handle = trimtab.attach(optimizer, EightBitState(min_size=64), model=net)
    optimizer.add_param_group({"params": list(net["two"].parameters())})
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert "momentum_buffer" not in optimizer.state[net["two"].weight]
    handle.remove()
    for parameter in net.parameters():
        assert torch.equal(optimizer.state[parameter]["momentum_buffer"], torch.ones_like(parameter))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"block": 100}, "power of two of 16 or more, got 100"),
        ({"min_size": 0}, "min_size must be"),
        ({"betas": (0.9, 1.0)}, "betas must be"),
        ({"eps": 0.0}, "eps must be"),
        ({"lr": -1.0}, "lr must be"),
    ],
)
def test_a_group_of_adamw_8bit_is_checked_like_all(setting, message):
    groups = [{"params": [nn.Parameter(torch.ones(4))]}, {"params": [nn.Parameter(torch.ones(4))], **setting}]
    with pytest.raises(ValueError, match=message):
        AdamW8bit(groups)
    optimizer = AdamW8bit(groups[:1])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group(groups[1])
    assert len(optimizer.param_groups) == 1


def test_adamw_8bit_refuses_before_anything_moves():
    plain, table = nn.Parameter(torch.ones(4)), nn.Embedding(4, 2, sparse=True)
    optimizer = AdamW8bit([plain, table.weight], lr=0.1)
    plain.grad = torch.ones(4)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="takes dense gradients"):
        optimizer.step()
    assert torch.equal(plain.detach(), torch.ones(4))
    assert not optimizer.state


def test_a_copy_of_adamw_8bit_goes_on():
    weight = nn.Parameter(torch.ones(64, 64))
    optimizer = AdamW8bit([weight])
    weight.grad = torch.ones(64, 64)
    optimizer.step()
    other = copy.deepcopy(optimizer)
    (copied,) = other.param_groups[0]["params"]
    copied.grad = torch.ones(64, 64)
    for each in (optimizer, other):
        each.step()
    assert torch.equal(copied, weight)


def test_adamw_8bit_takes_every_layout():
    plain = nn.Conv2d(4, 8, 3)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    for net in (plain, last):
        optimizer = AdamW8bit(net.parameters(), lr=0.1)
        for parameter in net.parameters():
            parameter.grad = torch.arange(parameter.numel()).float().view(parameter.shape).sin()
        optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        optimizer.step()
    torch.testing.assert_close(last.weight, plain.weight)


@pytest.mark.parametrize("setting", ["amsgrad", "maximize"])
def test_adamw_8bit_refuses_a_state_that_goes_another_way(setting):
    weight = nn.Parameter(torch.ones(4))
    weight.grad = torch.ones(4)
    saved = torch.optim.AdamW([weight], **{setting: True})
    saved.step()
    with pytest.raises(ValueError, match=f"the saved optimizer has {setting}=True"):
        AdamW8bit([weight]).load_state_dict(saved.state_dict())


def _sharded_on_rank(rank: int, world: int) -> dict[str, list[torch.Tensor]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    found = {}
    for name in ("lever", "adamw"):
        net = network()
        fully_shard(net, mesh=init_device_mesh("cpu", (world,)))
        if name == "lever":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
            handle = trimtab.attach(optimizer, EightBitState(min_size=1000), model=net)
        else:
            optimizer = AdamW8bit(net.parameters(), lr=1e-2, min_size=1000)
        for step in range(3):
            gradients(net, step)
            optimizer.step()
        found[name] = [parameter.full_tensor().detach() for parameter in net.parameters()]  # type: ignore[attr-defined]
        if name == "lever":
            here, full = handle.levers[0].bytes
            assert here < 0.6 * full  # the table and the small tensors stay in 32 bits
    return found


def test_sharded_weights_follow_one_process_but_for_rounding():
    """Blocks lie within a rank's part."""
    found = on_two_ranks(_sharded_on_rank)
    for name in ("lever", "adamw"):
        net = network()
        if name == "lever":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
            trimtab.attach(optimizer, EightBitState(min_size=1000), model=net)
        else:
            optimizer = AdamW8bit(net.parameters(), lr=1e-2, min_size=1000)
        start = [parameter.detach().clone() for parameter in net.parameters()]
        for step in range(3):
            gradients(net, step)
            optimizer.step()
        for rank in found:
            for own, other, before in zip(net.parameters(), rank[name], start, strict=True):
                assert float((own.detach() - other).norm()) <= 0.05 * float((own.detach() - before).norm()) + 1e-5


@pytest.mark.parametrize("floor", [True, False])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize(("name", "bits"), [("dynamic", 8), ("dynamic", 4), ("linear", 8)])
def test_codes_change_exactly_at_the_bounds(name, bits, signed, floor):
    """The numbers at, just below and just above every bound, zeros of both signs and what is hardly a number."""
    book = code_book(name, bits, signed=signed)
    bounds = ((book[1:].double() + book[:-1].double()) / 2).float()
    if floor:
        bounds[int((book == 0).nonzero()[-1])] = 0.0
    beside = [torch.nextafter(bounds, torch.tensor(side)) for side in (-torch.inf, torch.inf)]
    x = torch.cat([bounds, *beside, torch.tensor([0.0, -0.0, 1e-45, 1e-38])])
    x = x if signed else x.abs()
    lines = torch.cat([x[:, None], torch.ones(len(x), 15)], 1)  # the largest of each block is 1
    found = encode(lines, name, bits, block=16, signed=signed, floor=floor).codes.view(-1, 16)[:, 0]
    assert found.tolist() == np.searchsorted(bounds.numpy(), x.numpy(), side="left").tolist()


def test_a_meter_tells_what_codes_do_to_the_state():
    """Rows by name and layer against the state itself, kept beside by an optimizer without the lever."""
    nets = [nn.Linear(64, 8), nn.Linear(64, 8)]
    nets[1].load_state_dict(nets[0].state_dict())
    plain, coded = (torch.optim.AdamW(net.parameters(), lr=0.1) for net in nets)
    meter = ShrinkageMeter(every=1)
    lever = EightBitState(min_size=16, meter=meter)
    handle = trimtab.attach(coded, lever, model=nets[1])
    for net, optimizer in zip(nets, (plain, coded), strict=True):
        for parameter in net.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=seeded(3))
        optimizer.step()
    rows = {(row["kind"], row["layer"]): row for row in meter.table().to_pylist()}
    assert {kind for kind, _ in rows} == {"state exp_avg", "state exp_avg_sq"}
    for name in ("exp_avg", "exp_avg_sq"):
        exact = plain.state[nets[0].weight][name].double().flatten()
        found = decode(lever._codes["weight"][name][0], (512,), signed=name == "exp_avg").double()
        row = rows[f"state {name}", "weight"]
        assert row["n"] == 512
        assert row["projection"] == pytest.approx(float(found @ exact / exact.square().sum()), rel=1e-9)
        assert 0.98 < row["projection"] < 1.02
        assert row["noise_to_signal"] > 0
    saved = lever.state_dict()
    again = EightBitState(min_size=16, meter=ShrinkageMeter(every=1))
    again.load_state_dict(saved)
    assert again._meter.meter is not None
    assert again._meter.meter.table().to_pylist() == meter.table().to_pylist()
    handle.remove()
    with pytest.raises(TypeError, match="must be a ShrinkageMeter or None, got 3"):
        EightBitState(meter=3)  # type: ignore[arg-type]


def test_floats_of_a_step_lie_together_and_those_given_back_by_themselves():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 16, 3).to(memory_format=torch.channels_last), nn.Conv2d(16, 9, 1), nn.Linear(5, 7).double()
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    lever = EightBitState(min_size=16)
    handle = trimtab.attach(optimizer, lever, model=net)
    for _ in range(2):
        for parameter in net.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    known = lever._codes["1.weight"]["exp_avg"][0].codes
    state = {name: kept["codes"].clone() for name, kept in lever.state_dict()["codes"]["1.weight"].items()}
    lever.before_step(lever._entries)
    parts = [optimizer.state[parameter]["exp_avg"] for parameter in net.parameters() if parameter.numel() >= 16]
    assert [part.dtype for part in parts] == [torch.float32] * 3 + [torch.float64]
    assert parts[0].is_contiguous(memory_format=torch.channels_last)
    seen = [optimizer.state[net[1].weight][name] for name in ("exp_avg", "exp_avg_sq")]
    assert seen[0].untyped_storage().data_ptr() == seen[1].untyped_storage().data_ptr()
    assert seen[1].data_ptr() % 64 == seen[0].data_ptr() % 64
    lever.after_step(lever._entries)
    assert lever._codes["1.weight"]["exp_avg"][0].codes is known  # written where they were
    assert all(
        torch.equal(kept["codes"], state[name]) for name, kept in lever.state_dict()["codes"]["1.weight"].items()
    )
    handle.remove()
    for own in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            assert own[name].untyped_storage().nbytes() == own[name].numel() * own[name].element_size()
