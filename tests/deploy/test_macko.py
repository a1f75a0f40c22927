"""The MACKO format: a walk column by column as the oracle, the arrays that its library packs a pattern into, and damage."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trimtab.deploy import Macko, load_macko, macko_decode, macko_encode, save_macko
from trimtab.pruning import one_shot


def walked(matrix: Tensor) -> tuple[list[float], list[int], list[int]]:
    """Values, deltas and row ends by the definition, one column after the other."""
    values: list[float] = []
    deltas: list[int] = []
    ends = [0]
    for row in matrix.half().tolist():
        skipped = 0
        for value in row:
            if value != 0 or skipped == 15:
                values.append(value)
                deltas.append(skipped)
                skipped = 0
            else:
                skipped += 1
        ends.append(len(values))
    return values, deltas, ends


def nibbles(packed: Macko) -> list[int]:
    return [part for byte in packed.deltas.tolist() for part in (byte & 15, byte >> 4)]


@settings(max_examples=80, deadline=None)
@given(
    rows=st.integers(0, 7),
    columns=st.one_of(st.integers(0, 40), st.sampled_from([15, 16, 17, 31, 32, 33, 48, 100])),
    sparsity=st.sampled_from([0.0, 0.5, 0.9, 0.97, 1.0]),
    seed=st.integers(0, 5),
)
def test_equals_the_walk_and_comes_back(rows: int, columns: int, sparsity: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator)
    matrix[torch.rand(rows, columns, generator=generator) < sparsity] = 0
    packed, (values, deltas, ends) = macko_encode(matrix), walked(matrix)
    assert packed.row_ends.tolist() == ends
    assert packed.values.tolist()[: len(values)] == values
    assert nibbles(packed)[: len(values)] == deltas
    assert packed.values.numel() % 8 == 0
    assert packed.values.numel() - len(values) < 8
    assert not packed.values[len(values) :].any()
    assert not any(nibbles(packed)[len(values) :])
    assert (packed.values.dtype, packed.deltas.dtype, packed.row_ends.dtype) == (
        torch.float16,
        torch.uint8,
        torch.int32,
    )
    assert torch.equal(macko_decode(packed), matrix.half())


def test_the_arrays_are_those_of_the_published_library() -> None:
    """For this pattern of 5 x 32 its compressor gives these deltas and row indices (its own test of them)."""
    places = [[0, 1, 8, 12, 29], [0, 1, 14, 19], [21], [5], [4, 5, 7, 13, 23, 26, 28, 29, 31]]
    matrix = torch.zeros(5, 32)
    for row, columns in enumerate(places):
        matrix[row, columns] = torch.arange(1, len(columns) + 1) / 8
    packed = macko_encode(matrix)
    assert packed.deltas.tolist() == [0, 54, 15, 0, 76, 95, 245, 4, 81, 41, 1, 1]
    assert packed.row_ends.tolist() == [0, 6, 10, 12, 14, 23]
    assert packed.values.tolist()[:7] == [0.125, 0.25, 0.375, 0.5, 0.0, 0.625, 0.125]
    assert packed.values.numel() == 24
    assert packed.entries == 23


@pytest.mark.parametrize(("sparsity", "bits"), [(0.5, 10.0), (0.75, 5.2), (0.9, 2.47)])
def test_bits_for_a_weight(sparsity: float, bits: float) -> None:
    """20 bits for each entry; the gaps beyond 15 columns add density * (1 - density)^16 / (1 - (1 - density)^16) entries."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(256, 1024, generator=generator)
    matrix[torch.rand(256, 1024, generator=generator) < sparsity] = 0
    wide = sparsity**16
    expected = 20 * (1 - sparsity) * (1 + wide / (1 - wide))
    found = 8 * macko_encode(matrix).bytes / matrix.numel()
    assert found == pytest.approx(expected, abs=0.1)
    assert found == pytest.approx(bits, abs=0.2)


def test_what_float16_makes_of_a_value() -> None:
    packed = macko_encode(torch.tensor([[1e-9, 0.1, -0.0, 3.0]]))
    assert packed.entries == 2  # what float16 calls zero is zero
    assert macko_decode(packed).tolist() == [[0.0, float(torch.tensor(0.1).half()), 0.0, 3.0]]
    with pytest.raises(ValueError, match=r"7e\+04 is beyond float16"):
        macko_encode(torch.tensor([[7e4]]))
    with pytest.raises(TypeError, match="a matrix of real numbers"):
        macko_encode(torch.zeros(3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_ends": torch.tensor([0, 2], dtype=torch.int32)}, "row ends must rise"),
        ({"row_ends": torch.tensor([0, 3, 2], dtype=torch.int32)}, "row ends must rise"),
        ({"row_ends": torch.tensor([0, 2, 99], dtype=torch.int32)}, "99 entries need"),
        ({"columns": 3}, "beyond the last of 3 columns"),
    ],
)
def test_damage_is_named(change: dict[str, object], message: str) -> None:
    packed = macko_encode(torch.tensor([[0.0, 0.0, 3.0, 4.0], [0.0, 5.0, 0.0, 0.0]]))
    with pytest.raises(ValueError, match=message):
        macko_decode(replace(packed, **change))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 64)
        self.inner = nn.Linear(64, 64)
        self.wide = nn.Linear(64, 40, bias=False)
        self.head = nn.Linear(64, 16, bias=False)
        self.head.weight = self.table.weight


def test_a_file_holds_the_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Tied()
    one_shot(net.inner, 0.7)
    report = save_macko(net, tmp_path / "net.safetensors", {"who": "me"})
    state = load_macko(tmp_path / "net.safetensors")
    own = net.state_dict()
    assert state.keys() == own.keys()
    assert torch.equal(state["inner.weight"], own["inner.weight"].half().float())
    assert torch.equal(state["wide.weight"], own["wide.weight"].half().float())
    assert all(torch.equal(state[name], own[name]) for name in ("table.weight", "head.weight", "inner.bias"))
    other = copy.deepcopy(net)
    other.load_state_dict(state)
    rows = {row.name: row for row in report.rows}
    assert rows["inner.weight"].packed
    assert rows["inner.weight"].sparsity == pytest.approx(0.7, abs=1e-3)
    assert rows["inner.weight"].bits < 16
    assert (rows["wide.weight"].packed, rows["wide.weight"].bits) == (False, 16.0)  # dense: 20 bits would be more
    assert report.left_out["table.weight"] == "no weight of a linear layer"
    assert report.macko_bytes == (tmp_path / "net.safetensors").stat().st_size
    packed = load_macko(tmp_path / "net.safetensors", "packed")
    assert [type(packed[f"inner.c_{place}"]) for place in range(5)] == [Tensor, Tensor, Tensor, int, int]
    assert "inner.weight" not in packed
    assert torch.equal(
        macko_decode(Macko(*(packed[f"inner.c_{place}"] for place in range(5)))), own["inner.weight"].half()
    )


def test_columns_first_layers_of_transformers_come_back(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    net = nn.Sequential(Conv1D(48, 32))
    one_shot(net, 0.6)
    save_macko(net, tmp_path / "net.safetensors")
    state = load_macko(tmp_path / "net.safetensors")
    assert torch.equal(state["0.weight"], net[0].weight.half().float())
    with pytest.raises(ValueError, match=r"0\.weight lies \(inputs, outputs\)"):
        load_macko(tmp_path / "net.safetensors", "packed")


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    with pytest.raises(ValueError, match="has no linear layer"):
        save_macko(nn.Conv1d(2, 2, 1), file)
    net = nn.Linear(4, 4)
    nn.init.constant_(net.weight, 1e6)
    with pytest.raises(ValueError, match=r"weight: a value of 1e\+06 is beyond float16"):
        save_macko(net, file)
    assert not file.exists()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_macko(file)
    file.write_bytes(b"\x00" * 32)
    with pytest.raises(ValueError, match="is no MACKO file, or damaged"):
        load_macko(file)
    with pytest.raises(ValueError, match="form must be one of"):
        load_macko(file, "sparse")
