"""Exact selection against a stable sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import trimtab.tensors.selection as selection
from trimtab.tensors.selection import kth_threshold, smallest_in_groups, smallest_masks

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def by_sorting(scores: list[Tensor], count: int, *, absolute: bool = True) -> Tensor:
    flat = torch.cat([score.double().flatten() for score in scores])
    flat = flat.abs() if absolute else flat
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    mask[flat.argsort(stable=True)[:count]] = True
    return mask


def joined(masks: list[Tensor]) -> Tensor:
    return torch.cat([mask.flatten() for mask in masks])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["continuous", "few values", "all equal", "tiny and huge"])
def test_equals_a_stable_sort(dtype: torch.dtype, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "PIECE", 256)  # so that tensors are cut and joined
    generator = torch.Generator().manual_seed(1)
    scores = [torch.randn(shape, generator=generator) for shape in ((30, 40), (1,), (0,), (7, 5, 3), (100,))]
    if kind == "few values":
        scores = [(score * 2).round() for score in scores]
    if kind == "all equal":
        scores = [torch.full_like(score, -0.5) for score in scores]
    if kind == "tiny and huge":
        scores = [torch.exp(8 * score) * score.sign() * 1e-3 for score in scores]
    scores = [score.to(dtype) for score in scores]
    total = sum(score.numel() for score in scores)
    counts = [0, 1, total // 3, total // 2, total - 1, total, total // 3]
    for count, threshold in zip(counts, kth_threshold(scores, counts, absolute=True), strict=True):
        assert threshold.count == count
        masks = smallest_masks(scores, threshold, absolute=True)
        assert [mask.shape for mask in masks] == [score.shape for score in scores]
        assert torch.equal(joined(masks), by_sorting(scores, count))


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.lists(st.floats(allow_nan=False, width=32), max_size=12), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    data=st.data(),
)
def test_any_floats_of_either_sign(values: list[list[float]], dtype: torch.dtype, data: st.DataObject) -> None:
    scores = [torch.tensor(row, dtype=dtype) for row in values]
    count = data.draw(st.integers(0, sum(map(len, values))))
    (threshold,) = kth_threshold(scores, [count])
    assert torch.equal(joined(smallest_masks(scores, threshold)), by_sorting(scores, count, absolute=False))


def test_mixed_dtypes_and_strides() -> None:
    generator = torch.Generator().manual_seed(2)
    scores = [
        torch.randn(4, 6, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        torch.randn(50, generator=generator).bfloat16(),
        torch.randn(9, 8, generator=generator).double().T,
    ]
    for threshold in kth_threshold(scores, [10, 200], absolute=True):
        assert torch.equal(
            joined(smallest_masks(scores, threshold, absolute=True)), by_sorting(scores, threshold.count)
        )


def test_infinity_is_the_largest() -> None:
    scores = [torch.tensor([torch.inf, 1.0, torch.inf, 2.0])]
    (threshold,) = kth_threshold(scores, [3])
    assert threshold.value == float("inf")
    assert smallest_masks(scores, threshold)[0].tolist() == [True, True, False, True]


def test_bad_input_is_named() -> None:
    good = torch.rand(3)
    with pytest.raises(ValueError, match=r"score 1 .*NaN"):
        kth_threshold([good, torch.tensor([0.0, torch.nan])], [1])
    with pytest.raises(ValueError, match=r"score 1 .*NaN"):
        kth_threshold([good, torch.tensor([0.0, -torch.nan])], [1], absolute=True)
    with pytest.raises(ValueError, match=r"score 0 .*NaN"):
        kth_threshold([torch.tensor([-1.0, -torch.nan])], [1])
    with pytest.raises(ValueError, match="between 0 and 3"):
        kth_threshold([good], [4])
    with pytest.raises(TypeError, match=r"score 0 has dtype torch\.int64"):
        kth_threshold([torch.arange(3)], [1])
    (threshold,) = kth_threshold([good], [2])
    with pytest.raises(ValueError, match="other scores"):
        smallest_masks([good + 1], threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_signed_scores_have_exact_counts(dtype: torch.dtype) -> None:
    scores = [
        score.to(dtype) for score in (torch.randn(40, 30).mul_(3), -torch.rand(77), torch.randn(5, 6, 7).round_())
    ]
    total = sum(score.numel() for score in scores)
    for threshold in kth_threshold(scores, [0, 1, total // 5, total // 2, total - 3, total]):
        assert torch.equal(
            joined(smallest_masks(scores, threshold)), by_sorting(scores, threshold.count, absolute=False)
        )


def test_minus_infinity_is_the_smallest_and_none_means_none() -> None:
    scores = [torch.tensor([1.0, -torch.inf, -2.0])]
    none, one = kth_threshold(scores, [0, 1])
    assert one.value == -torch.inf
    assert smallest_masks(scores, one)[0].tolist() == [False, True, False]
    assert smallest_masks(scores, none)[0].tolist() == [False] * 3


def test_negative_zero_is_zero() -> None:
    scores = [torch.tensor([1.0, -0.0, 0.0])]
    (threshold,) = kth_threshold(scores, [1])
    assert smallest_masks(scores, threshold)[0].tolist() == [False, True, False]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999), sizes=st.sampled_from([(2, 4), (4, 8), (1, 4), (0, 2), (3, 3)]), axis=st.integers(0, 2)
)
def test_groups_equal_a_stable_sort(seed: int, sizes: tuple[int, int], axis: int) -> None:
    keep, group = sizes
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(4, (24, 24, 24), generator=generator).float()
    mask = smallest_in_groups(scores, keep, group, axis)
    rows = scores.movedim(axis, -1).reshape(-1, group)
    expected = torch.zeros_like(rows, dtype=torch.bool)
    expected.scatter_(1, rows.argsort(dim=1, stable=True)[:, : group - keep], True)
    assert torch.equal(mask.movedim(axis, -1).reshape(-1, group), expected)


def test_groups_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="not a multiple of 4"):
        smallest_in_groups(torch.rand(3, 6), 2, 4, 1)
    with pytest.raises(ValueError, match="5:4"):
        smallest_in_groups(torch.rand(4), 5, 4, 0)


@settings(max_examples=60, deadline=None)
@given(dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), data=st.data())
def test_any_bit_pattern_by_magnitude(dtype: torch.dtype, data: st.DataObject) -> None:
    """Subnormals, both zeros, infinities and signs, drawn as raw bits."""
    integers = torch.int32 if dtype == torch.float32 else torch.int16
    limit = torch.iinfo(integers)
    edges = [0, 1, limit.min, limit.min + 1, limit.max]
    patterns = st.lists(st.one_of(st.sampled_from(edges), st.integers(limit.min, limit.max)), max_size=12)
    rows = data.draw(st.lists(patterns, min_size=1, max_size=3))
    scores = [torch.tensor(row, dtype=integers).view(dtype) for row in rows]
    scores = [score[~score.isnan()] for score in scores]
    total = sum(score.numel() for score in scores)
    counts = data.draw(st.lists(st.integers(0, total), min_size=1, max_size=4))
    for count, threshold in zip(counts, kth_threshold(scores, counts, absolute=True), strict=True):
        assert threshold.count == count
        assert torch.equal(joined(smallest_masks(scores, threshold, absolute=True)), by_sorting(scores, count))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("keep", "group"), [(1, 32), (16, 64), (0, 32), (32, 32)])
def test_large_groups_equal_a_stable_sort(keep: int, group: int, dtype: torch.dtype) -> None:
    scores = torch.randint(9, (6, 64, 5), generator=torch.Generator().manual_seed(group)).to(dtype)
    scores[0, 3] = torch.inf
    mask = smallest_in_groups(scores, keep, group, 1)
    rows = scores.movedim(1, -1).reshape(-1, group)
    expected = torch.zeros_like(rows, dtype=torch.bool)
    expected.scatter_(1, rows.argsort(dim=1, stable=True)[:, : group - keep], True)
    assert torch.equal(mask.movedim(1, -1).reshape(-1, group), expected)


def test_patterns_over_large_groups_are_exact() -> None:
    scores = torch.rand(2, 600)
    for group in (300, 600):
        gone = smallest_in_groups(scores, 1, group, axis=1)
        assert (~gone).sum().item() == 2 * 600 // group
