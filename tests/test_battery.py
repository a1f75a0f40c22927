"""Every lever that acts in `trimtab train`, one by one through the same checks, on one process."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.battery import LEFT_OUT, RIGHT, ROWS, UNDONE, Row
from tests.battery_loops import (
    Training,
    as_arrays,
    distance,
    kept_weights,
    network,
    penalised,
    strength_of,
    transformed,
    weights,
    written_out,
)
from tests.gradients.samples import as_array, check, from_units, gradients, sample, units
from tests.reference import Memory
from trimtab.parameters import Entry

EVERY = pytest.mark.parametrize("row", ROWS, ids=str)
GRADIENT_ROWS = [row for row in ROWS if row.home in ("penalty", "transform")]
ON_GRADIENTS = pytest.mark.parametrize("row", GRADIENT_ROWS, ids=str)
STEP_ROWS = [row for row in ROWS if row.home in ("wrapper", "optimizer", "after_step")]
ON_STEPS = pytest.mark.parametrize("row", STEP_ROWS, ids=str)
pytestmark = [
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings(r"ignore:step \d+:UserWarning"),  # a guard's word
    pytest.mark.filterwarnings(r"ignore:all weights of:UserWarning"),  # of tiny tensors one may go as a whole
]
FACTORS = (1.0, 0.5, 2.0)


def lever(row: Row) -> Any:
    return row.create(**({"strength": strength_of(row)} if row.home == "penalty" else {}))


def kept(entries: Sequence[Entry], row: Row) -> list[Entry]:
    """Without what a penalty makes NaN by its formula, or is no weight: tensors without entries."""
    return [entry for entry in entries if entry.parameter.numel() > (1 if row.home == "penalty" else 0)]


def step(row: Row, factor: float, dtype: torch.dtype = torch.float64, large: bool = True) -> list[Entry]:
    entries = [entry for entry in sample(int(100 * factor), dtype) if large or not entry.name.startswith("large")]
    for entry in entries:
        assert entry.parameter.grad is not None
        entry.parameter.grad.mul_(factor)
    return kept(entries, row)


# NumPy float64


@EVERY
def test_training_equals_numpy_float64(row: Row) -> None:
    training = Training(row)
    for number, expected in enumerate(written_out(row, range(4))):
        assert distance(training.run([number]), expected) < max(1e-9, row.loose)
    expected = kept_weights(row, range(4))
    assert distance(training.finish(), expected) < max(1e-9, row.loose)
    if row.home != "optimizer":
        plain = list(written_out(None, range(4)))[-1]
        assert distance(plain, expected) > 1e-4, "the lever must have something to do"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@ON_GRADIENTS
def test_gradients_of_every_layout_equal_numpy(row: Row, dtype: torch.dtype) -> None:
    acting = lever(row)
    memory: Memory = {}
    for factor in FACTORS:
        entries = step(row, factor, dtype)
        w, g = ([units(e, x) if e.parameter.ndim > 1 else as_array(x) for e, x in zip(entries, of, strict=True)]
                for of in ([e.parameter for e in entries], [e.parameter.grad for e in entries]))  # fmt: skip
        found = (
            penalised(row, w, g, strength_of(row), memory) if row.home == "penalty" else transformed(row, w, g, memory)
        )
        acting.before_step(entries)
        if hasattr(acting, "after_step"):
            acting.after_step(entries)
        expected = {entry.name: from_units(entry, rows) for entry, rows in zip(entries, found, strict=True)}
        check(entries, expected, 1e-11 if dtype == torch.float64 else 2e-5)


# Dtypes, NaN, memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@ON_GRADIENTS
def test_halves_are_computed_in_float32_and_rounded_once(row: Row, dtype: torch.dtype) -> None:
    one, other = lever(row), lever(row)
    for factor in FACTORS:
        halves, singles = step(row, factor, dtype), step(row, factor, dtype)
        for entry in singles:
            gradient = entry.parameter.grad
            assert gradient is not None
            entry.parameter.grad, entry.parameter.data = None, entry.parameter.data.float()
            entry.parameter.grad = gradient.float()
        one.before_step(halves)
        other.before_step(singles)
        for half, single in zip(halves, singles, strict=True):
            assert half.parameter.grad is not None
            assert half.parameter.grad.dtype == dtype
            # another order of summation may move a value across a rounding boundary: by one unit in the last place
            torch.testing.assert_close(
                half.parameter.grad.float(), single.parameter.grad, rtol=2 * torch.finfo(dtype).eps, atol=1e-6
            )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@ON_STEPS
def test_half_weights_follow_the_float32_step(row: Row, dtype: torch.dtype) -> None:
    halves, singles = network(dtype), network(dtype).float()
    before, row = weights(singles), row.under("half")
    half, single = Training(row, halves).run([0]), Training(row, singles).run([0])
    assert all(tensor.dtype == dtype for tensor in half)
    moved = max(float((a - b).abs().max()) for a, b in zip(single, before, strict=True))
    assert distance([tensor.float() for tensor in half], single) < 0.35 * moved + 0.004


@ON_GRADIENTS
def test_nan_stays_where_it_is(row: Row) -> None:
    entries = step(row, 1.0, torch.float32)
    spoiled = {"small": float("nan"), "medium": float("inf"), "convolution": float("nan"), "large": float("-inf")}
    for entry in entries:
        if entry.name in spoiled:
            assert entry.parameter.grad is not None
            entry.parameter.grad[(0,) * entry.parameter.ndim] = spoiled[entry.name]
    before = gradients(entries)
    lever(row).before_step(entries)
    for name, after in gradients(entries).items():
        assert torch.equal(after.isfinite(), before[name].isfinite()), name
        assert torch.equal(after.isnan(), before[name].isnan()), name


@ON_STEPS
def test_nan_is_refused_or_stays_where_it_is(row: Row) -> None:
    training = Training(row)
    training.run([0])
    before = weights(training.net)
    if row.home == "wrapper":
        with pytest.raises(FloatingPointError, match="inf or NaN"):
            training.step(1, float("nan"))
        assert distance(weights(training.net), before) == 0
        return
    training.backward(1)
    place = divmod(int(before[0].abs().argmax()), before[0].shape[1])  # of a weight that no lever has set to zero
    training.net[0].weight.grad[place] = float("nan")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the gradients hold inf or NaN")  # said where a lever is attached
        with nullcontext() if row.nan in (RIGHT, UNDONE) else pytest.raises(ValueError, match=row.nan):
            training.optimizer.step()
    if row.nan == UNDONE:
        assert distance(weights(training.net), before) == 0
        return
    spoiled = [tensor.isnan() for tensor in weights(training.net)]
    assert int(sum(mask.sum() for mask in spoiled)) == (spoiled[0].numel() if row.joint else 1)
    assert bool(spoiled[0][place])


@EVERY
def test_all_happens_in_place(row: Row) -> None:
    training = Training(row)
    places = [parameter.data_ptr() for parameter in training.net.parameters()]
    training.backward(0)
    gradients_at = [parameter.grad.data_ptr() for parameter in training.net.parameters()]  # type: ignore[union-attr]
    before = weights(training.net)
    if training.lever is not None and hasattr(training.lever, "before_step"):
        training.lever.before_step([Entry(n, p, 0 if p.ndim > 1 else None) for n, p in training.net.named_parameters()])
        if not getattr(
            training.lever, "behind", False
        ):  # where weights are trained behind others, these take their place
            assert distance(weights(training.net), before) == 0
        assert [p.grad.data_ptr() for p in training.net.parameters()] == gradients_at  # type: ignore[union-attr]
    training.run([0])
    assert [parameter.data_ptr() for parameter in training.net.parameters()] == places


# Layouts


def _layouts(shape: tuple[int, ...]) -> list[Callable[[Tensor], Tensor]]:
    if len(shape) == 4:
        return [Tensor.clone, lambda x: x.to(memory_format=torch.channels_last)]
    turned = [lambda x: x.transpose(0, 1).contiguous().transpose(0, 1), lambda x: torch.stack([x, x], -1)[..., 0]]
    return [Tensor.clone, *(turned if len(shape) > 1 else turned[1:])]


@pytest.mark.parametrize("shape", [(7,), (5, 8), (40, 500), (6, 4, 3, 3), (64, 32, 3, 3)], ids=str)
@ON_GRADIENTS
def test_memory_formats_of_weight_and_gradient_change_nothing(row: Row, shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    weight, gradient, rest = torch.randn(shape), torch.randn(shape), torch.randn(5, 4)
    found = []
    for of_weight in _layouts(shape):
        for of_gradient in _layouts(shape):
            entries = [
                Entry("w", nn.Parameter(of_weight(weight)), 0 if len(shape) > 1 else None),
                Entry("r", nn.Parameter(rest), 0),
            ]
            entries[0].parameter.grad = of_gradient(gradient)
            entries[1].parameter.grad = torch.ones_like(rest)
            stride = entries[0].parameter.grad.stride()
            acting = lever(row)
            for _ in range(2):
                acting.before_step(entries)
            assert entries[0].parameter.grad.stride() == stride
            found.append(entries[0].parameter.grad.contiguous())
    assert row.tensors == "matrices" or not torch.equal(found[0], gradient)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


class _Pictures(nn.Sequential):
    """A convolution whose weights and inputs may be channels-last."""

    def __init__(self) -> None:
        torch.manual_seed(2)
        super().__init__(nn.Unflatten(1, (3, 2, 1)), nn.Conv2d(3, 5, (2, 1), padding=1), nn.Flatten(), nn.Linear(45, 4))
        self.double()


@ON_STEPS
def test_channels_last_weights_step_as_contiguous_ones(row: Row) -> None:
    plain, turned = _Pictures(), _Pictures().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert not turned[1].weight.is_contiguous()
    row = row.under("pictures")
    expected = Training(row, plain).run(range(3))
    assert distance(Training(row, turned).run(range(3)), expected) < max(1e-10, row.loose)
    assert turned[1].weight.is_contiguous(memory_format=torch.channels_last)


# Sparse and complex: right, left out or refused by name


class _Table(nn.Module):
    """Few rows of a table are used; its gradient may be sparse."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.table = nn.Embedding(6, 4, sparse=sparse, dtype=torch.float64)

    def loss(self) -> Tensor:
        found: Tensor = self.table(torch.tensor([1, 3, 3]))
        return (found.sin() * torch.arange(1, 5)).sum()


def _steps(row: Row, net: nn.Module, loss: Callable[[], Tensor], steps: int = 2) -> list[Tensor]:
    """The gradients that stand after each step, and the weights at the end."""
    training = Training(row, net)

    def closure() -> Tensor:
        training.optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    seen = []
    for _ in range(steps):
        if row.home == "wrapper":
            training.optimizer.step(closure)
        else:
            closure()
            training.optimizer.step()
        seen += [parameter.grad.to_dense() for parameter in net.parameters() if parameter.grad is not None]
    return [*seen, *weights(net)]


@EVERY
def test_sparse_gradients_are_right_or_refused_by_name(row: Row) -> None:
    sparse, dense = _Table(True), _Table(False)
    if row.sparse != RIGHT:
        with pytest.raises((TypeError, ValueError, RuntimeError), match=row.sparse):
            _steps(row, sparse, sparse.loss)
        return
    used = torch.tensor([False, True, False, True, False, False])
    row = row.under("sparse")
    found, expected = _steps(row, sparse, sparse.loss), _steps(row, dense, dense.loss)
    for one, other in zip(found, expected, strict=True):  # rows that no example used are left alone
        torch.testing.assert_close(one[used], other[used], rtol=1e-12, atol=1e-12)
    assert sparse.table.weight.grad is not None
    assert sparse.table.weight.grad.layout is torch.sparse_coo
    assert torch.equal(found[-1][~used], _Table(True).table.weight[~used])


class _Wave(nn.Module):
    """A complex weight, or its two real parts, beside a real one."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.odd, self.plain = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False, dtype=torch.float64)
        odd, self.whole = torch.randn(3, 4, dtype=torch.complex128), whole
        self.odd.weight = nn.Parameter(odd if whole else torch.view_as_real(odd).clone())

    def loss(self) -> Tensor:
        parts = torch.view_as_real(self.odd.weight) if self.whole else self.odd.weight
        return (parts.sin() * torch.tensor([1.0, 2.0])).sum() + (self.plain.weight**2).sum()


@EVERY
def test_complex_parameters_are_right_left_out_or_refused_by_name(row: Row) -> None:
    whole, parts = _Wave(True), _Wave(False)
    if row.complex not in (RIGHT, LEFT_OUT):
        with pytest.raises(TypeError, match=row.complex):
            _steps(row, whole, whole.loss)
        return
    if row.complex == LEFT_OUT:
        training = Training(row, whole)
        whole.loss().backward()
        before = whole.odd.weight.grad.clone()  # type: ignore[union-attr]
        training.optimizer.step()
        assert torch.equal(whole.odd.weight.grad, before)  # type: ignore[arg-type]
        ((entry, reason),) = (training.lever or training.optimizer).left_out
        assert entry.name == "odd.weight"
        assert "dtype torch.complex128" in reason
        return
    found, expected = _steps(row, whole, whole.loss), _steps(row, parts, parts.loss)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.view_as_real(one) if one.is_complex() else one, other, rtol=1e-12, atol=1e-12)


# Loops


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("scaled", ["", "scaler", "unscaled"])
@pytest.mark.parametrize("accumulate", [1, 2], ids=["", "accumulated"])
@EVERY
def test_accumulation_scaler_and_fused_change_nothing(row: Row, accumulate: int, scaled: str, fused: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    training = Training(row, fused=fused, accumulate=accumulate, scaler=scaler, unscale=scaled == "unscaled")
    assert distance(training.run(range(3)), list(written_out(row, range(3)))[-1]) < max(1e-8, row.loose)


@pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])
@EVERY
def test_a_step_that_the_scaler_skips_never_was(row: Row, fused: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    training = Training(row, fused=fused, scaler=scaler)
    training.step(0)  # not the very first: torch's fused SGD then begins with the momentum that lay in memory
    training.step(7, float("inf"))
    assert scaler.get_scale() == 512.0
    assert distance(training.run([1, 2]), list(written_out(row, range(3)))[-1]) < max(1e-8, row.loose)


# State


@EVERY
def test_a_saved_and_resumed_run_goes_on_bit_for_bit(row: Row) -> None:
    uninterrupted = Training(row)
    whole = uninterrupted.run(range(5))
    first = Training(row)
    first.run(range(3))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    resumed = Training(row)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    again = resumed.state_dict()
    assert str(again) == str(first.state_dict())
    assert distance(resumed.run([3, 4]), whole) == 0
    assert distance(resumed.finish(), uninterrupted.finish()) == 0


@EVERY
def test_repr_names_the_lever_and_its_settings(row: Row) -> None:
    training = Training(row)
    text = repr(training.optimizer if training.lever is None else training.lever)
    expected = type(training.optimizer if training.lever is None else training.lever).__name__
    assert text.startswith(expected)
    for name, value in row.settings.items():
        words = [repr(value), str(value), *([f"{value:g}"] if isinstance(value, float) else [])]
        assert any(f"{name}{joint}{word}" in text for joint in ("=", ": ") for word in words), (name, text)


def test_the_formulas_gradient_is_the_networks() -> None:
    training = Training(None)
    found = training.run(range(3))
    assert distance(found, list(written_out(None, range(3)))[-1]) < 1e-12
    assert np.isfinite(as_arrays(found)[0]).all()
