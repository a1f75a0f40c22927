"""PixelClip: the sheet's numbers in every mode, direction, zeros and NaN, scaled losses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from trimtab.gradients import ActivationClip, clip_vectors_
from trimtab.gradients.vector_clip import MODES


def wave(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return scale * ((1.3 * k + 0.7 * seed).sin() + 0.5 * (0.37 * k * k + seed).cos()).reshape(shape)


GRADIENT = wave(1, 3, 2, 2, seed=5, scale=0.5)
FIRST = {  # of each mode the first channel's four numbers
    "vector": [-0.033420682, -0.1, 0.0338004108, 0.1],
    "element": [-0.1, -0.1, 0.1, 0.1],
    "soft": [-0.05109452112, -0.07754198597, 0.06064423108, 0.0770005544],
    "soft_vector": [-0.02532083926, -0.07754198597, 0.02771998633, 0.0770005544],
    "sigmoid": [-0.002609528481, -0.008547139603, 0.003844704345, 0.008292515017],
}


@pytest.mark.parametrize("mode", FIRST)
def test_every_mode_equals_the_sheets_numbers(mode: str) -> None:
    found = clip_vectors_(GRADIENT.clone(), 0.1, mode=mode)  # type: ignore[arg-type]
    assert found[0, 0].flatten().tolist() == pytest.approx(FIRST[mode], rel=1e-8)


def test_the_bound_holds_and_the_direction_stays() -> None:
    found = clip_vectors_(GRADIENT.clone(), 0.1)
    assert float(found.abs().max()) <= 0.1 + 1e-12
    ratio = found / GRADIENT
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert float(clip_vectors_(GRADIENT.clone(), 0.1, mode="global").abs().max()) == pytest.approx(0.1)


@pytest.mark.parametrize("mode", MODES)
def test_zeros_stay_and_a_nan_does_not_spread(mode: str) -> None:
    gradient = GRADIENT.clone()
    gradient[0, :, 0, 0], gradient[0, 1, 1, 1] = 0, math.nan
    found = clip_vectors_(gradient, 0.1, mode=mode)  # type: ignore[arg-type]
    assert not found[0, :, 0, 0].any()
    assert found.isnan().sum() == 1


def test_a_modules_output_is_clipped_under_a_scaled_and_divided_loss() -> None:
    found = []
    for scale, divisor in ((1.0, 1), (256.0, 4)):
        torch.manual_seed(0)
        net = nn.Conv2d(1, 3, 1).double()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        with ActivationClip(net, 0.01, scaler=scaler, divisor=divisor):
            for part in range(divisor):
                loss = (net(wave(1, 1, 2, 2, seed=0 * part)) * GRADIENT).sum() / divisor
                scaler.scale(loss).backward()
        found.append([one.grad / scale for one in net.parameters()])  # type: ignore[operator]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(TypeError, match="LSTM gives"), ActivationClip(lstm := nn.LSTM(2, 2)):
        lstm(torch.ones(1, 1, 2))
    with pytest.raises(ValueError, match="max_value must be finite and above 0, got 0"):
        clip_vectors_(GRADIENT, 0)
