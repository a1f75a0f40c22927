"""StableMax and z-loss: the sheet's numbers, finite differences, corners, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from trimtab.losses import (
    StableMaxCrossEntropy,
    ZLossCrossEntropy,
    stable_log_softmax,
    stable_max_cross_entropy,
    z_loss,
)


def wave(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return scale * ((1.3 * k + 0.7 * seed).sin() + 0.5 * (0.37 * k * k + seed).cos()).reshape(shape)


LOGITS, TARGETS = wave(3, 5, seed=3, scale=3.0), torch.tensor([0, 4, 2])


def test_stable_max_equals_the_sheets_numbers_and_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    each = StableMaxCrossEntropy("none")(logits, TARGETS)
    assert each.tolist() == pytest.approx([1.13426627, 0.9353054806, 2.955653808], rel=1e-8)
    loss = StableMaxCrossEntropy()(logits, TARGETS)
    loss.backward()
    assert loss.item() == pytest.approx(1.675075186, rel=1e-9)
    assert logits.grad is not None
    expected = [-0.1074359768, 0.004890107288, 0.002698181128, 0.05094428558, 0.05094428558]
    assert logits.grad[0].tolist() == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    "loss", [StableMaxCrossEntropy(), ZLossCrossEntropy(0.3)], ids=lambda loss: type(loss).__name__
)
def test_gradients_equal_finite_differences(loss: nn.Module) -> None:
    assert torch.autograd.gradcheck(lambda x: loss(x, TARGETS), (LOGITS.clone().requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_zero_and_one_the_gradient_is_finite_and_right(dtype: torch.dtype) -> None:
    """`1 / (1 - x)` of the masked branch is infinite at 1 and would make it NaN."""
    logits = torch.tensor([[1.0, 0.0, -1.0]], dtype=dtype, requires_grad=True)
    stable_max_cross_entropy(logits, torch.tensor([0]), dtype=dtype).backward()
    total = 2 + 1 + 0.5
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([1 / total - 1 / 2, 1 / total, 0.25 / total], rel=1e-6)


def test_a_confident_example_still_has_a_gradient_and_a_shift_is_seen() -> None:
    logits = torch.tensor([[200.0, 0.0]], requires_grad=True)
    nn.functional.cross_entropy(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert not logits.grad.any()
    logits.grad = None
    StableMaxCrossEntropy(dtype="float32")(logits, torch.tensor([0])).backward()
    assert logits.grad.all()  # type: ignore[union-attr]
    assert not torch.allclose(stable_log_softmax(LOGITS), stable_log_softmax(LOGITS + 1))


def test_z_loss_is_cross_entropy_and_the_square_of_the_denominators_logarithm() -> None:
    plain = nn.functional.cross_entropy(LOGITS, TARGETS)
    term = torch.logsumexp(LOGITS, 1).square().mean()
    torch.testing.assert_close(ZLossCrossEntropy(0.3)(LOGITS, TARGETS), plain + 0.3 * term)
    torch.testing.assert_close(ZLossCrossEntropy(0.0)(LOGITS, TARGETS), plain)
    assert z_loss(LOGITS.half()).dtype == torch.float32


@pytest.mark.parametrize("loss", [StableMaxCrossEntropy, ZLossCrossEntropy])
def test_pictures_and_ignored_targets_count_as_in_torch(loss: type[nn.Module]) -> None:
    logits, targets = wave(2, 3, 4, 5, seed=1), torch.arange(40).reshape(2, 4, 5) % 3
    flat = logits.movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(loss()(logits, targets), loss()(flat, targets.reshape(-1)))
    targets[0] = -100
    torch.testing.assert_close(loss()(logits, targets), loss()(logits[1:], targets[1:]))
    assert not loss("none" if loss is StableMaxCrossEntropy else 1e-4, **({} if loss is StableMaxCrossEntropy else
               {"reduction": "none"}))(logits, targets)[0].any()  # fmt: skip
    torch.testing.assert_close(loss(reduction="sum")(logits, targets), 20 * loss()(logits, targets))


@pytest.mark.parametrize("loss", [StableMaxCrossEntropy(), ZLossCrossEntropy()], ids=lambda loss: type(loss).__name__)
def test_bad_input_is_refused(loss: nn.Module) -> None:
    with pytest.raises(TypeError, match="targets must be classes"):
        loss(LOGITS, LOGITS)
    with pytest.raises(ValueError, match=r"\(3, 5\) and \(2,\)"):
        loss(LOGITS, TARGETS[:2])
    with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', 'none', got 'max'"):
        type(loss)(reduction="max")
    with pytest.raises(ValueError, match="strength must be finite and 0 or more, got -1"):
        ZLossCrossEntropy(-1)
