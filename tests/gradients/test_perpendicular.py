"""PerpendicularGradient against closed forms, NumPy float64, numbers worked out apart, and pytorch_optimizer's OrthoGrad."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pytorch_optimizer import OrthoGrad
from torch import Tensor, nn

import trimtab
from tests.distributed import on_two_ranks
from tests.gradients.samples import Array, check, from_units, gradients, sample, units
from trimtab.gradients import Centralize, ClipNorm, GradientTransform, PerpendicularGradient
from trimtab.parameters import Entry
from trimtab.parameters import entries as entries_of

CHOICES = [(rescale, granularity) for rescale in (True, False) for granularity in ("tensor", "channel")]


def projected(weight: Array, gradient: Array, rescale: bool) -> Array:
    """One unit, flat, in float64."""
    dot, square = float(weight @ gradient), float(weight @ weight)
    if not square > 0:
        return gradient
    left = gradient - dot / square * weight
    before, after = np.linalg.norm(gradient), np.linalg.norm(left)
    if after <= 4 * np.finfo(np.float32).eps * before:
        return np.zeros_like(gradient)
    return left * (before / after) if rescale else left


def reference(entry: Entry, rescale: bool, granularity: str) -> Array:
    weight, gradient = units(entry, entry.parameter), units(entry, entry.parameter.grad)
    if granularity == "tensor":
        weight, gradient = weight.reshape(1, -1), gradient.reshape(1, -1)
    rows = (
        np.stack([projected(*pair, rescale) for pair in zip(weight, gradient, strict=True)])
        if len(weight)
        else gradient
    )
    return from_units(entry, rows.reshape(units(entry, entry.parameter).shape))


def wave(shape: tuple[int, ...], seed: int) -> Tensor:
    k = np.arange(math.prod(shape))
    return torch.tensor((np.sin(1.3 * k + 0.7 * seed) + 0.5 * np.cos(0.37 * k * k + seed)).reshape(shape))


def one(weight: Tensor, gradient: Tensor) -> list[Entry]:
    parameter = nn.Parameter(weight.clone())
    parameter.grad = gradient.clone()
    return [Entry("w", parameter, 0 if weight.ndim > 1 else None)]


@pytest.mark.parametrize(
    ("rescale", "granularity", "expected"),
    [
        (
            False, "tensor",
            [[0.2380022828, -0.5262294881, -0.9026780483, 0.1534968246],
             [0.26196836, 0.8566997991, -0.657342303, -0.8037904097],
             [0.05489711266, 0.7654420496, 0.2828759523, -0.7811742129]],
        ),
        (
            True, "tensor",
            [[0.2964118525, -0.6553746275, -1.12420969, 0.1911674023], [0.3262595886, 1.066947642, -0.8186646257, -1.001053442],
             [0.06836974281, 0.9532937804, 0.3522982388, -0.9728868685]],
        ),
        (
            False, "channel",
            [[0.2369764666, -0.5273614945, -0.9020584842, 0.1548209399],
             [0.2682099202, 0.9575738087, -0.5002886189, -0.7784899053],
             [0.08776669088, 0.7482208123, 0.1994247878, -0.8139084413]],
        ),
    ],
)  # fmt: skip
def test_numbers_of_the_formula(rescale, granularity, expected):
    entries = one(wave((3, 4), 1), wave((3, 4), 2))
    PerpendicularGradient(rescale=rescale, granularity=granularity).before_step(entries)
    torch.testing.assert_close(
        entries[0].parameter.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(("rescale", "granularity"), CHOICES)
def test_equals_numpy_in_every_layout(rescale, granularity):
    entries = sample()
    expected = {entry.name: reference(entry, rescale, granularity) for entry in entries}
    PerpendicularGradient(rescale=rescale, granularity=granularity).before_step(entries)
    check(entries, expected)


def test_equals_orthograd_to_twelve_digits():
    entries = sample(dtype=torch.float64)
    several = [entry for entry in entries if entry.parameter.numel() > 1]
    peers = [nn.Parameter(entry.parameter.detach().clone()) for entry in several]
    for peer, entry in zip(peers, several, strict=True):
        peer.grad = entry.parameter.grad.clone().contiguous()
    OrthoGrad(torch.optim.SGD(peers, lr=1.0)).step()
    PerpendicularGradient().before_step(several)
    for peer, entry in zip(peers, several, strict=True):
        stepped = entry.parameter.detach() - entry.parameter.grad
        torch.testing.assert_close(stepped, peer.detach(), rtol=1e-12, atol=1e-12, msg=entry.name)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.8, 1 - 1e-4, 1 - 1e-8])
def test_nothing_is_left_along_the_weights_and_the_norm_is_kept(granularity, cosine):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(6, 5000, generator=generator, dtype=torch.float64)
    other = torch.randn(6, 5000, generator=generator, dtype=torch.float64)
    other -= (other * weight).sum(1, keepdim=True) / weight.square().sum(1, keepdim=True) * weight
    other *= weight.norm(dim=1, keepdim=True) / other.norm(dim=1, keepdim=True)
    for dtype, exactness in ((torch.float64, 1e-11), (torch.float32, 2e-6)):
        gradient = cosine * weight + math.sqrt(1 - cosine**2) * other
        entries = one(weight.to(dtype), gradient.to(dtype))
        PerpendicularGradient(granularity=granularity).before_step(entries)
        found, held = entries[0].parameter.grad.double(), weight.to(dtype).double()
        sine = max(math.sqrt(1 - cosine**2), 1e-3)  # what rounding the gradient itself to its dtype costs
        dims = (0, 1) if granularity == "tensor" else 1
        along = (found * held).sum(dims) / held.square().sum(dims).sqrt() / found.square().sum(dims).sqrt()
        assert float(along.abs().max()) < exactness / sine
        norms = found.square().sum(dims).sqrt()
        torch.testing.assert_close(norms, gradient.square().sum(dims).sqrt(), rtol=exactness, atol=0)


@pytest.mark.parametrize("size", [1, 2, 40, 100_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rescale", "granularity"), CHOICES)
def test_a_gradient_along_the_weights_becomes_zero(rescale, granularity, dtype, size):
    weight = torch.randn(2, size, generator=torch.Generator().manual_seed(1)).to(dtype)
    entries = one(weight, weight * -0.37)
    PerpendicularGradient(rescale=rescale, granularity=granularity).before_step(entries)
    assert not entries[0].parameter.grad.any()


@pytest.mark.parametrize(("rescale", "granularity"), CHOICES)
def test_what_has_no_direction_or_is_not_finite_stays_as_it_is(rescale, granularity):
    gradient = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    weight = torch.randn(3, 7, generator=torch.Generator().manual_seed(2))
    spoiled = gradient.clone()
    spoiled[1, 2] = math.nan
    infinite = weight.clone()
    infinite[1, 2] = math.inf
    for w, g in ((weight * 0, gradient), (weight, gradient * 0), (weight, spoiled), (infinite, gradient)):
        entries = one(w, g)
        PerpendicularGradient(rescale=rescale, granularity=granularity).before_step(entries)
        found = entries[0].parameter.grad
        alike = slice(1, 2) if granularity == "channel" else slice(None)
        torch.testing.assert_close(found[alike], g[alike], rtol=0, atol=0, equal_nan=True)
        if granularity == "channel" and (w is infinite or g is spoiled):
            clean = one(weight, gradient)
            PerpendicularGradient(rescale=rescale, granularity=granularity).before_step(clean)
            torch.testing.assert_close(found[::2], clean[0].parameter.grad[::2])


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
def test_the_size_of_the_gradient_is_no_matter(granularity, scale):
    weight, gradient = wave((5, 9), 1).float(), wave((5, 9), 2).float()
    found = []
    for factor in (1.0, scale):
        entries = one(weight, gradient * factor)
        PerpendicularGradient(granularity=granularity).before_step(entries)
        found.append(entries[0].parameter.grad.double() / factor)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


def test_a_weight_in_another_memory_layout_than_its_gradient():
    weight, gradient = wave((6, 4, 3, 3), 1).float(), wave((6, 4, 3, 3), 2).float()
    for granularity in ("tensor", "channel"):
        plain, mixed = one(weight, gradient), one(weight, gradient)
        mixed[0].parameter.grad = gradient.to(memory_format=torch.channels_last)
        for entries in (plain, mixed):
            PerpendicularGradient(granularity=granularity).before_step(entries)
        torch.testing.assert_close(mixed[0].parameter.grad.contiguous(), plain[0].parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rescale", "granularity"), CHOICES)
def test_fifty_steps_equal_fifty_of_the_reference(rescale, granularity):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    twin = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    twin.load_state_dict(net.state_dict())
    inputs, labels = torch.randn(20, 6, dtype=torch.float64), torch.arange(20) % 3
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (net, twin)]
    trimtab.attach(optimizers[0], PerpendicularGradient(rescale=rescale, granularity=granularity), model=net)
    known = entries_of(twin)
    for _ in range(50):
        for each, optimizer in zip((net, twin), optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(each(inputs), labels).backward()
        for entry in known:
            entry.parameter.grad = torch.from_numpy(reference(entry, rescale, granularity))
        for optimizer in optimizers:
            optimizer.step()
    for one_of, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one_of, other, rtol=1e-9, atol=1e-10)


def test_last_before_the_clip():
    """Centring after the projection moves the gradient along the weights again; clipping does not."""

    def along(*levers: GradientTransform) -> float:
        torch.manual_seed(1)
        net = nn.Linear(7, 5, bias=False)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        trimtab.attach(optimizer, *levers, model=net)
        net.weight.grad = torch.randn_like(net.weight) + 0.5
        optimizer.step()
        weight, gradient = net.weight.detach(), net.weight.grad
        return abs(float((weight * gradient).sum() / weight.norm() / gradient.norm()))

    assert along(Centralize(), PerpendicularGradient(), ClipNorm(0.1)) < 1e-6
    assert along(PerpendicularGradient(), Centralize()) > 1e-3


def test_it_says_how_much_it_took():
    entries = one(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
    transform = PerpendicularGradient()
    assert transform.signals() == {}
    transform.before_step(entries)
    assert float(transform.signals()["removed"]) == pytest.approx(0.6)
    torch.testing.assert_close(entries[0].parameter.grad, torch.tensor([[0.0, 5.0]]))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="granularity must be one of 'tensor', 'channel', got 'row'"):
        PerpendicularGradient(granularity="row")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="rescale must be True or False, got 1"):
        PerpendicularGradient(rescale=1)  # type: ignore[arg-type]
    assert repr(PerpendicularGradient()) == "PerpendicularGradient(rescale=True, granularity='tensor', min_ndim=0)"
    with pytest.raises(ValueError, match="does not fit"):
        PerpendicularGradient(rescale=False).load_state_dict(PerpendicularGradient().state_dict())


def _parts() -> list[Entry]:
    return [entry for entry in sample() if entry.parameter.numel() and not entry.name.startswith("large")]


def _on_rank(rank: int, world: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    results: dict[str, Any] = {}
    for dimension in (0, 1):
        for rescale, granularity in CHOICES:
            entries = []
            for entry in _parts():
                place = [Shard(dimension) if entry.parameter.ndim > dimension else Replicate()]
                parameter = nn.Parameter(distribute_tensor(entry.parameter.detach(), mesh, place))
                parameter.grad = distribute_tensor(entry.parameter.grad, mesh, place)
                entries.append(Entry(entry.name, parameter, entry.output_axis))
            calls, whole = [], dist.all_reduce
            dist.all_reduce = lambda *a, calls=calls, whole=whole, **k: (calls.append(a[0].numel()), whole(*a, **k))[1]
            PerpendicularGradient(rescale=rescale, granularity=granularity).before_step(entries)
            dist.all_reduce = whole
            assert len(calls) == 2, calls
            for entry in entries:
                results[f"{dimension} {rescale} {granularity} {entry.name}"] = entry.parameter.grad.full_tensor()
    return results


def test_two_ranks_equal_one_however_the_weights_are_sharded():
    for found in on_two_ranks(_on_rank):
        for dimension in (0, 1):
            for rescale, granularity in CHOICES:
                entries = _parts()
                PerpendicularGradient(rescale=rescale, granularity=granularity).before_step(entries)
                for name, expected in gradients(entries).items():
                    actual = found[f"{dimension} {rescale} {granularity} {name}"]
                    tolerance = 2e-5 * float(expected.abs().max())
                    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance, msg=f"{name} {dimension}")
