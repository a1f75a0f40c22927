"""Weights coded by what stands around them, scales where they are worth their bytes, files of version 1."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trimtab.deploy import load_compact, one_file_reader, rans, save_compact
from trimtab.deploy.compact_context import by_context, nothing_learned
from trimtab.deploy.compact_quantise import quantise, rounded


def bfloat16_bits(scales: np.ndarray) -> np.ndarray:
    return (scales.astype(np.float32).view(np.uint32) >> 16).astype("<u2")


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=5),
    levels=st.integers(1, 15),
    zeros=st.floats(0, 1),
    axis=st.sampled_from([None, 0, 1]),
    lanes=st.integers(1, 9),
    seed=st.integers(0, 999),
)
def test_numbers_come_back_from_their_context(
    shape: list[int], levels: int, zeros: float, axis: int | None, lanes: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    scales = np.exp(draw.normal(size=1 if axis is None else shape[axis])) * (draw.random() < 0.5 or axis is None)
    numbers = draw.integers(-levels, levels + 1, shape).astype(np.int16)
    numbers[draw.random(shape) < zeros] = 0
    if axis is not None:
        scales[0] = 0  # a channel of zeros: nothing of it is coded
        np.moveaxis(numbers, axis, 0)[scales == 0] = 0
    before = draw.integers(-60, 60, nothing_learned().shape).astype(np.int8)
    found = by_context(numbers.reshape(-1), tuple(shape), axis, bfloat16_bits(scales), before)
    if not numbers.any():
        assert found is None
        return
    assert found is not None
    decoder = one_file_reader._Rans(rans.encode(found.answers, lanes), lanes)
    sizes = one_file_reader.questions(found.levels)
    coefficients = [found.coefficients[kind, :size] for kind, size in enumerate(sizes)]
    row = ["w", "float32", shape, axis, 4, found.levels]
    back = one_file_reader._by_context(row, bfloat16_bits(scales), decoder, coefficients)
    assert np.array_equal(back, numbers.reshape(-1))
    assert not any(decoder.rest())


def test_the_odds_are_those_of_the_logistic_function() -> None:
    logits = np.arange(-one_file_reader.REACH, one_file_reader.REACH + 1) / one_file_reader.ONE
    wanted = np.clip(np.rint(65536 / (1 + np.exp(-logits))), 1, 65535)
    assert np.abs(one_file_reader.CHANCES - wanted).max() <= 1
    assert (np.diff(one_file_reader.CHANCES) >= 0).all()


def field(places: int, seed: int = 0) -> tuple[np.ndarray, float]:
    """Numbers whose rows and columns have odds of their own to be zero, and what they hold, in bits."""
    draw = np.random.default_rng(seed)
    logit = -2.5 + draw.normal(size=(120, 1, 1)) * 1.2 + draw.normal(size=(1, 100, 1)) * 1.2 + np.zeros((1, 1, places))
    odds = 1 / (1 + np.exp(-logit))
    numbers = (draw.random(odds.shape) < odds) * draw.choice([-1, 1], odds.shape)
    ideal = -(odds * np.log2(odds) + (1 - odds) * np.log2(1 - odds)).sum() + np.count_nonzero(numbers)
    return numbers.astype(np.int16), float(ideal)


def order_0(numbers: np.ndarray) -> float:
    _, counts = np.unique(numbers, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


@pytest.mark.parametrize("places", [1, 9])
def test_rows_and_columns_tell_of_zeros(places: int) -> None:
    numbers, ideal = field(places)
    found = by_context(numbers.reshape(-1), numbers.shape, None, bfloat16_bits(np.ones(1)), nothing_learned())
    assert found is not None
    gained, most = order_0(numbers) - 8 * found.size, order_0(numbers) - ideal
    assert (0.7 if places == 9 else 0.55) * most < gained < most * 1.02
    shuffled = np.random.default_rng(1).permutation(numbers.reshape(-1))  # the same numbers, of no rows and columns
    found = by_context(shuffled, numbers.shape, None, bfloat16_bits(np.ones(1)), nothing_learned())
    assert found is not None
    assert found.bits > 0.995 * order_0(shuffled)


def test_neighbours_in_a_kernel_tell_of_zeros_and_signs_and_the_scale_of_sizes() -> None:
    draw = np.random.default_rng(0)
    smooth = np.cumsum(draw.normal(size=(60, 50, 25)), 2) ** 3
    loudness = np.exp(draw.normal(size=60))
    flat = torch.from_numpy(smooth * loudness[:, None, None]).reshape(60, 50, 5, 5).float()
    one = quantise("w", flat, 4, 0.8, 0)
    bits = bfloat16_bits(one.scales)
    found = by_context(one.numbers, (60, 50, 5, 5), 0, bits, nothing_learned())
    assert found is not None
    assert found.bits < 0.75 * order_0(one.numbers)
    apart = np.random.default_rng(1).permuted(one.numbers.reshape(60, -1), axis=1).reshape(-1)
    mixed = by_context(apart, (60, 50, 5, 5), 0, bits, nothing_learned())
    assert mixed is not None
    assert mixed.bits > 1.2 * found.bits
    blind = by_context(apart, (60, 50, 5, 5), 0, np.full_like(bits, bits[0]), nothing_learned())
    assert blind is not None
    assert blind.bits >= mixed.bits


def test_a_filter_bank_of_many_sizes_gets_a_scale_for_each_and_an_even_one_does_not() -> None:
    draw = torch.Generator().manual_seed(0)
    even = torch.randn(24, 3, 2, 2, generator=draw)
    uneven = even * torch.logspace(-2, 1, 24)[:, None, None, None]  # twelve weights a channel
    assert quantise("w", even, 4, axis=0, scales="auto").scales.size == 1
    assert quantise("w", uneven, 4, axis=0, scales="auto").scales.size == 24
    for scales, count in (("tensor", 1), ("channel", 24)):
        assert quantise("w", even, 4, axis=0, scales=scales).scales.size == count  # type: ignore[arg-type]
    # at 3,000 a channel the scales cost next to nothing: whatever lowers the error is worth them
    wide = torch.randn(10, 3000, generator=draw) * torch.logspace(0, 0.5, 10)[:, None]
    assert quantise("w", wide, 4, axis=0, scales="auto").scales.size == 10


def test_a_coarse_scale_is_the_best_of_its_grid() -> None:
    weight = torch.randn(5, 400, dtype=torch.float64)
    found = quantise("w", weight, 3, axis=0)
    for row, scale, numbers in zip(weight.numpy(), found.scales, found.numbers.reshape(5, -1), strict=True):
        largest = np.abs(row).max() / 3
        grid = [m / 8 * 2.0**e for e in range(-8, 4) for m in range(8, 16)]
        grid = [s for s in grid if largest / 2 <= s <= largest * 1.125]
        errors = [float(np.square(np.clip(np.rint(row / s), -3, 3) * s - row).sum()) for s in grid]
        own = float(np.square(numbers * float(scale) - row).sum())
        assert float(scale) in grid
        assert own == pytest.approx(min(errors), rel=1e-5)


def test_small_tensors_keep_the_significant_bits_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 30))
    net.register_buffer("table", torch.randn(7))
    for tensor in net.state_dict().values():
        if tensor.dtype == torch.float32:
            tensor.copy_(torch.randn_like(tensor))
    sizes = []
    for bits in (24, 11, 5):
        report = save_compact(net, tmp_path / "f", bits=4, kept_bits=bits)
        state = load_compact(tmp_path / "f")
        sizes.append(report.compact_bytes)
        for name in ("0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.bias"):
            wanted = net.state_dict()[name].double().numpy()
            exponent = np.floor(np.log2(np.abs(wanted)))
            unit = 2.0 ** (exponent - bits + 1)
            assert np.array_equal(state[name].double().numpy(), np.rint(wanted / unit) * unit)
            assert report.left_out[name].endswith(f"in {bits} significant bits") == (bits < 24)
        assert torch.equal(state["table"], net.state_dict()["table"])
    assert sizes[0] > sizes[1] > sizes[2]
    with pytest.raises(ValueError, match=r"kept_bits must be a whole number in 1\.\.53, got 0"):
        save_compact(net, tmp_path / "g", kept_bits=0)
    special = torch.tensor([float("nan"), float("inf"), -0.0, 3.4028235e38])
    assert np.array_equal(rounded(special, 4).numpy().view(np.uint32), special.numpy().view(np.uint32))


OLD = (
    "r~v=~00000dm>+7ZDn*}WMOn+Utc0Rdm?mlX>D|2VlHEEZE#^@bRs$;dt4%IWprU=VRT_!B03;@Tq12{bZBp6Tp~IkTq1L4WLzSBEFfGWb7)~Q"
    "H8xx#Iv`vkF*P(aGdMLjW-?+jF<~+>VmCQsVL3BmVKg!@H#cHsIb=6AFgGz}Gh{b2VPi64IAUWsHaIq8He@(qGBss6Tp}zWTq1U5a&u{KZd@Wd"
    "ATfO+eJmnrZe(S6B075_WOR9OWg<EvRX8FnB6DbAaAhJoTQN8{T`VGGVRT_%Z)Rq5Wpr~QI$JO-F*r9}eJmnuZ+9X(dm?0Xd2nSSIwDm#A}k_v"
    "Xkl<=B05_$GF>bpWMOn+UvFk+b7gdMB05_!I5#XZF*#j*EFyDhWMv{cdm?0Xd2nSSIwDm#A}k_vXkl<=B05_#F*RK*B4lB7VP9`%W^-k9b0Ruh"
    "GBG(UG&3|^eJmn#d2M2EY;z(ydm?0Xd2nSSIwDm#A}k_vXkl<=B05_!F*98(B4lB7VP9`%W^-k9b0RuhG&3|TH8eL}eSIJxARr(hc-noC%?^Vg"
    "5QN`l&)Y`DpXjR?Vo<4)A|`<C!T9b)C25+{1}-q)GR&+Xnc@bj7@?bc-a}Q_5M7^K45I~vo1B>?31FQg*%w8%NQo(43M`N$7#9?4Afb^AlhpI2"
    "<4bh=I7O5qXl|^xYXvi(W^{iv4*tVSKWFr!lu$!6ai;zP52k~<TBfFDwi~%=tY+Qa)q)_D%~MCwGwzptb_iDRKB&3COuGBM?DfQaxawWrw!HxL"
    "Bzfi7Kn+8kM?WNJ3IxmmN3?dVl*tkQbmuVYo0CL0R4-b1+N=55%>W10KZ=<?bN~H2Ie~X_#tg7fLc|Y_9}FUI7&fGQVPN3+!104)MF0cC28M_g"
    "F<&;sEMW-P5U?R)MZg9I2x4FeVAudR5QPn7LKHGUaKs7*Q~*+u@L>al0p&9UaIh>1;NVyQF%9e*jujCM3@jXPc)n~1cxV$~^;>b30@K=S8k?kf"
    "Dh#x~DQ}*#Z{Hs4y|&0^H-LdX7%)%(u$glr=As$9;jY<9I`$&}dRzAH*=uXN$DofhTmSOTFMeFY-ARfz`}XeL3jn&@TWP>_%r^klnca|_N|s4$"
    "*)u7_Ya2`CHA*w#dN%xX2Ifuskwn}^vE37&*vTsII|+T69y-~?^`L=NXqp@==-B=j4N)M%bLpDZF)tzfueXB|0l0@-LPTJZ0$fOT&XKkNuR2UK"
    "1~LqeGR=&v=631"
)


def test_a_file_of_version_1_opens_as_it_did(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(base64.b85decode(OLD))
    found = load_compact(tmp_path / "f")
    digests = {name: hashlib.sha256(value.numpy().tobytes()).hexdigest()[:16] for name, value in found.items()}
    assert digests["0.weight"] == "edbf53ec57d52e40"  # by gaps
    assert digests["3.weight"] == digests["tied.weight"] == "3d8e9c1ee25f4a6b"  # all numbers, with low bits
    assert digests["0.bias"] == "5aede9846e86b1b3"
    assert digests["tied.bias"] == "0a7881795eb8ac2b"
    assert found["1.num_batches_tracked"].dtype == torch.int64
