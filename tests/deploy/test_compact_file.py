"""Compact files: every bit of the quantised network comes back, in few bytes, and damage is refused."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.deploy.test_one_file_reader import BARE
from tests.deploy.test_sparse_file import same_bits
from trimtab.cli import main
from trimtab.deploy import load_compact, load_sparse, one_file_reader, rans, save_compact, save_sparse
from trimtab.deploy.compact_code import coded, order_0_bits
from trimtab.deploy.compact_quantise import quantise

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def small_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 40))


def entropy_bits(numbers: np.ndarray) -> float:
    _, counts = np.unique(numbers, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.integers(-32767, 32767), min_size=1, max_size=400),
    lanes=st.integers(1, 9),
    zeros=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_entropy_code_gives_back_what_it_took(values: list[int], lanes: int, zeros: float, seed: int) -> None:
    numbers = np.array(values, np.int16)
    numbers[np.random.default_rng(seed).random(numbers.size) < zeros] = 0
    streams = coded(numbers).streams
    stream = rans.encode([rans.Tabled(one.symbols, one.frequencies) for one in streams], lanes, b"abc")
    decoder = one_file_reader._Rans(stream, lanes)
    for one in streams:
        symbols = decoder.symbols(one.symbols.size, one.frequencies)
        assert np.array_equal(symbols, one.symbols)
        back = one_file_reader._magnitudes(np.abs(symbols.astype(np.int64) + one.least), one.low_bits)[0]
        assert back.max(initial=0) <= 2**24
    assert decoder.rest().rstrip(b"\0") == b"abc"


@settings(deadline=None, max_examples=40)
@given(codes=st.lists(st.integers(0, 160), min_size=1, max_size=399).filter(any))
def test_frequencies_sum_to_the_whole_and_no_symbol_that_occurs_is_lost(codes: list[int]) -> None:
    found = one_file_reader.frequencies(np.array(codes, np.uint8))
    assert found.sum() == 2**16
    assert all((frequency > 0) == (code > 0) for frequency, code in zip(found, codes, strict=True))


@settings(deadline=None, max_examples=40)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(1, 7), min_size=2, max_size=5),
    bits=st.integers(1, 16),
    sparsity=st.sampled_from([0.0, 0.5, 0.9]),
    scales=st.sampled_from(["channel", "tensor"]),
    seed=st.integers(0, 999),
)
def test_every_bit_of_the_quantised_weight_comes_back(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, shape: list[int], bits: int, sparsity: float,
    scales: Any, seed: int,
) -> None:  # fmt: skip
    path = tmp_path_factory.mktemp("f") / "f"
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    save_compact(
        {"w": weight, "b": weight[0]} if len(shape) < 3 else {"w": weight},
        path,
        bits=bits,
        sparsity=sparsity,
        scales=scales,
    )
    wanted = quantise("w", weight, bits, sparsity, 0 if scales == "channel" else None)
    found = load_compact(path)["w"]
    assert found.dtype == dtype
    assert same_bits(found, wanted.values)
    # apart from our arithmetic: whole numbers times a scale, in float64, rounded once
    rows = wanted.numbers.reshape(wanted.scales.size, -1).astype(np.float64) * wanted.scales.astype(np.float64)[:, None]
    assert torch.equal(found.double(), torch.from_numpy(rows).reshape(shape).float().to(dtype).double())
    most = max(1, 2 ** (bits - 1) - 1)
    assert np.abs(wanted.numbers).max() <= most
    assert np.count_nonzero(wanted.numbers == 0) >= int(sparsity * weight.numel() + 0.5)


def test_rounding_is_to_the_nearest_step() -> None:
    weight = torch.randn(50, 40, dtype=torch.float64)
    found = quantise("w", weight, 8, axis=0)
    step = torch.from_numpy(found.scales).double()[:, None]
    assert bool(((weight.float().double() - found.values).abs() <= step / 2 + 1e-9).all())
    assert bool((step[:, 0] <= weight.abs().amax(1) / 127 * 1.01).all())
    one_bit = quantise("w", torch.tensor([1.0, -3.0, 0.0]), 1)
    assert one_bit.numbers.tolist() == [1, -1, 0]
    assert one_bit.scales.tolist() == [2.0]


@pytest.mark.parametrize(("bits", "sparsity"), [(4, 0.9), (8, 0.0), (2, 0.5), (12, 0.0), (4, 0.98)])
def test_the_code_is_near_the_entropy(tmp_path: Path, bits: int, sparsity: float) -> None:
    weight = torch.randn(600, 500, generator=torch.Generator().manual_seed(1))
    report = save_compact({"w": weight}, tmp_path / "f", bits=bits, sparsity=sparsity, scales="channel")
    wanted = entropy_bits(quantise("w", weight, bits, sparsity, 0).numbers) / 8
    assert report.entropy_bytes == pytest.approx(wanted)
    assert 0.97 <= report.of_entropy < 1.03  # below 1: the scale of a row tells of its sizes
    assert report.compact_bytes == (tmp_path / "f").stat().st_size
    assert order_0_bits(np.zeros(5, np.int16)) == 0


def test_a_network_comes_back_in_trimtab_and_in_the_reader_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net, again = small_net(), small_net(1)
    net.tied = nn.Linear(16 * 36, 40)
    again.tied = nn.Linear(16 * 36, 40)
    net.tied.weight, again.tied.weight = net[4].weight, again[4].weight
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    report = save_compact(net, tmp_path / "net", bits=5, sparsity=0.5, metadata={"method": "sgd"})
    state = load_compact(tmp_path / "net", again)
    assert all(same_bits(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert [row.name for row in report.rows] == ["0.weight", "4.weight"]
    assert set(report.left_out) >= {"0.bias", "1.weight", "1.running_var", "1.num_batches_tracked"}
    assert state["tied.weight"] is state["4.weight"]
    assert same_bits(state["1.running_var"], net[1].running_var)
    assert all(same_bits(again.state_dict()[name], tensor) for name, tensor in state.items())
    assert main(["export", "--to", "reader", "-o", str(tmp_path)]) == 0
    words = [sys.executable, "-I", "-c", BARE, str(tmp_path / "trimtab_reader.py"), str(tmp_path / "net")]
    assert "method: sgd" in subprocess.run(words, capture_output=True, text=True, check=True).stdout
    subprocess.run([*words, str(tmp_path / "dense")], capture_output=True, check=True)
    dense = safetensors.torch.load_file(tmp_path / "dense")
    assert all(same_bits(dense[name], tensor) for name, tensor in state.items())


def many_values(net: Any) -> float:
    return float(net[4].weight[0].unique().numel())


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (small_net, {"budget_bytes": 300}, "too small: the smallest file"),
        (small_net, {"bits": 0}, "bits of 0.weight must be a whole number in 1..16, got 0"),
        (small_net, {"bits": 17}, "1..16, got 17"),
        (small_net, {"budget_bytes": 9000, "bits": (4, 99)}, "1..16, got 99"),
        (small_net, {"sparsity": 1.0}, "sparsity of 0.weight"),
        (small_net, {"bits": {"weigth": 4}}, "not coded"),
        (small_net, {"max_drop": 1.0}, "needs quality"),
        (small_net, {"max_drop": 0.0, "quality": many_values, "bits": 2}, "max_drop is not met"),
        (lambda: nn.BatchNorm1d(3), {}, "nothing to code"),
        (lambda: {"w": torch.tensor([[1.0, float("nan")]])}, {}, "w has NaN"),
        (lambda: {"w": torch.tensor([[1.0, float("inf")]])}, {}, "w has infinite"),
    ],
)  # fmt: skip
def test_bad_input_is_one_error_and_nothing_is_written(
    tmp_path: Path, source: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        save_compact(source(), tmp_path / "f", **arguments)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(TypeError, match="needs a model"):
        save_compact({"w": torch.ones(2, 2)}, tmp_path / "f", loss=lambda net: 0.0)


def test_damage_is_refused_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "f"
    save_compact({"w": torch.randn(20, 30), "b": torch.ones(3)}, path, bits=4, sparsity=0.8)
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        with pytest.raises(ValueError, match="could not read"):
            load_compact(path)
        path.write_bytes(content[:at])
        with pytest.raises(ValueError, match="could not read"):
            load_compact(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="load_compact reads it"):
        load_sparse(path)
    with pytest.raises(ValueError, match="pass max_bytes"):
        load_compact(path, max_bytes=100)
    with pytest.raises(ValueError, match="does not fit Linear"):
        load_compact(path, nn.Linear(2, 2))
    with pytest.raises(FileNotFoundError):
        load_compact(tmp_path / "none")
    save_sparse({"w": torch.randn(20, 30)}, path)
    with pytest.raises(ValueError, match="sparse file; load_sparse reads it"):
        load_compact(path)


@pytest.mark.parametrize(
    "change",
    [
        {"lanes": 10**9}, {"lanes": 0}, {"lanes": "1"}, {"coded": 5}, {"rest": [["b", "float32", [2**30]]]},
        {"sizes": [2**40, 0, 0, 0]}, {"sizes": [-1, 0, 0, 0]}, {"sizes": None}, {"sizes": [10]},
        {"coded": [["w", "float32", [20, 30], 0, 4, 99]]}, {"coded": [["w", "float32", [20, 30], 0, 4, 0]]},
        {"coded": [["w", "float32", [20, 30], 0, 4, 2]]}, {"coded": [["w", "float32", [600], 0, 4, 7]]},
        {"coded": [["w", "float32", [20, 30], 2, 4, 7]]}, {"coded": [["w", "float32", [2**50, 30], 0, 4, 7]]},
        {"aliases": {"b": "w"}}, {"aliases": []},
        {"coded": [["w", "float32", [2**40, 2**20], 0, 4, -7, 7, None, 0]]},
        {"coded": [["w", "float32", [20, 30], 5, 4, -7, 7, None, 0]]},
        {"coded": [["w", "int8", [20, 30], 0, 4, -7, 7, None, 0]]},
        {"coded": [["w", "float32", [20, 30], 0, 4, -7, 9**9, None, 0]]},
        {"coded": [["w", "float32", [20, 30], 0, 4, -7, 7, 601, 0]]},
    ],
)  # fmt: skip
def test_a_hostile_index_with_a_right_hash_is_refused_before_it_costs_memory(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    from trimtab.deploy.store_format import content_hash, write_metadata

    path = tmp_path / "f"
    save_compact({"w": torch.randn(20, 30), "b": torch.ones(3)}, path, bits=4)
    entries = safetensors.torch.load_file(path)
    content = bytes(entries["compact"].numpy())
    at = 4 + int.from_bytes(content[:4], "little")
    index = json.loads(zlib.decompressobj(zdict=one_file_reader.WORDS).decompress(content[4:at]))
    packer = zlib.compressobj(zdict=one_file_reader.WORDS)
    packed = packer.compress(json.dumps(index | change).encode()) + packer.flush()
    new = len(packed).to_bytes(4, "little") + packed + content[at:]
    entries["compact"] = torch.frombuffer(bytearray(new), dtype=torch.uint8)
    safetensors.torch.save_file(entries, path, write_metadata(content_hash(entries, {}), {}, compact=True))
    with pytest.raises(ValueError, match="could not read"):
        load_compact(path)


def test_all_other_tensors_and_extra_states_come_back(tmp_path: Path) -> None:
    state = {
        "w": torch.randn(4, 4), "n": torch.arange(5), "flag": torch.tensor([True, False]), "half": torch.randn(3).half(),
        "b": torch.tensor([-0.0, float("nan"), float("inf")]), "one": torch.tensor(3.5), "none": torch.zeros(0, 4),
        "small": torch.randn(3).bfloat16(), "u": torch.tensor([1, 2**31], dtype=torch.uint32), "q._extra_state": {"seen": 4},
    }  # fmt: skip
    save_compact(state, tmp_path / "f", bits=16)
    found = load_compact(tmp_path / "f")
    assert found.keys() == state.keys()
    assert found["q._extra_state"] == {"seen": 4}
    assert all(same_bits(found[name], state[name]) for name in state if name not in ("w", "q._extra_state"))
