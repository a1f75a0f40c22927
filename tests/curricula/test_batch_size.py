"""AdaptiveBatchSize: the sheet's numbers, parts of several examples, samplers, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from trimtab.curricula import AdaptiveBatchSize, noise_test


def wave(*shape: int, seed: int = 0) -> Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((1.3 * k + 0.7 * seed).sin() + 0.5 * (0.37 * k * k + seed).cos()).reshape(shape)


GRADIENTS = wave(8, 5, seed=4) + 0.3


def test_the_sheets_numbers_for_every_test() -> None:
    found = noise_test(GRADIENTS)
    assert [found.norm, found.inner, found.across, found.signal] == pytest.approx(
        [1.24981667, 0.3528447768, 1.087786072, 2.177642872], rel=1e-8
    )
    sizes = [
        AdaptiveBatchSize(1, 60_000, test=test).update(GRADIENTS) for test in ("norm", "inner_product", "augmented")
    ]  # type: ignore[arg-type]
    assert sizes == [58, 8, 50]


def test_micro_batches_estimate_the_same_variance_as_single_examples() -> None:
    generator = torch.Generator().manual_seed(0)
    single = torch.randn(40_000, 6, dtype=torch.float64, generator=generator) * torch.arange(1, 7) + 2
    micro = single.reshape(2_000, 20, 6).mean(1)
    one, other = noise_test(single), noise_test(micro, examples=20)
    assert other.norm == pytest.approx(one.norm, rel=0.05)
    assert other.norm == pytest.approx(sum(k * k for k in range(1, 7)), rel=0.05)
    assert other.inner == pytest.approx(one.inner, rel=0.1)


def test_it_never_shrinks_is_capped_and_goes_on_after_a_stop() -> None:
    sampler = BatchSampler(SequentialSampler(range(100)), 1, drop_last=False)
    schedule = AdaptiveBatchSize(2, 40, every=2).follow(sampler)
    assert schedule.update(GRADIENTS) == 40
    assert schedule.update(torch.zeros(2, 5) + 1) == 40
    assert sampler.batch_size == 40
    other = AdaptiveBatchSize(2, 40, every=2)
    other.load_state_dict(schedule.state_dict())
    assert (other.size, other.calls, other.accumulate(16)) == (40, 2, 3)
    assert AdaptiveBatchSize(2, 9).update(torch.tensor([[math.nan], [1.0]])) == 2
    assert AdaptiveBatchSize(2, 9).update(torch.tensor([[-1.0], [1.0]])) == 9  # no signal at all


def test_what_cannot_follow_is_refused() -> None:
    with pytest.raises(TypeError, match="needs a batch sampler with a batch_size that may be set, got DataLoader"):
        AdaptiveBatchSize(2, 4).follow(DataLoader(range(4), batch_size=2))  # type: ignore[arg-type]

    class Fixed:
        """Its batch size may be read alone."""

        batch_size = property(lambda self: 2)

    with pytest.raises(TypeError, match="with a batch_size that may be set, got Fixed; give DataLoader"):
        AdaptiveBatchSize(2, 4).follow(Fixed())
    with pytest.raises(ValueError, match=r"two parts or more, got \(1, 5\)"):
        noise_test(GRADIENTS[:1])
    with pytest.raises(ValueError, match="maximum must be a whole number of 8 or more, got 4"):
        AdaptiveBatchSize(8, 4)
