"""Sparse files: bit-equal round trip for every dtype, size against the entropy bound, refusal of damage and malice."""

from __future__ import annotations

import copy
import errno
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trimtab.deploy import load_sparse, save_sparse, sparse_metadata, sparse_writer, store_format
from trimtab.deploy.store_format import DTYPES, Index, IndexRow, content_hash, write_index, write_metadata

INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def same_bits(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(each.contiguous().reshape(-1).view(torch.uint8) for each in (one, other)))


def random_bits(dtype: torch.dtype, shape: tuple[int, ...], density: float, seed: int) -> Tensor:
    """Any bit pattern of the dtype, NaN payloads and -0.0 among them; the rest all zero bits."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.tensor(shape).prod()) if shape else 1
    if dtype == torch.bool:
        return (torch.rand(count, generator=generator) < density).reshape(shape)
    raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator).view(dtype)
    keep = torch.rand(count, generator=generator) < density
    bits = raw.view(INTEGER[dtype.itemsize]).clone()
    bits[~keep] = 0
    return bits.view(dtype).reshape(shape)


def pruned_net(sparsity: float = 0.9, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(64, 32))
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.masked_fill_(torch.rand_like(parameter) < sparsity, 0.0)
    return net


@settings(max_examples=120, deadline=None)
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.integers(0, 9), max_size=4).map(tuple),
    density=st.sampled_from([0.0, 0.02, 0.3, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_round_trip_is_bit_equal(
    tmp_path_factory: Any, dtype: str, shape: tuple[int, ...], density: float, seed: int
) -> None:
    path = tmp_path_factory.mktemp("sparse") / "file"
    state = {"x": random_bits(DTYPES[dtype], shape, density, seed), "y": torch.arange(3)}
    save_sparse(state, path)
    again = load_sparse(path)
    assert list(again) == ["x", "y"]
    assert all(same_bits(again[name], state[name]) for name in state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_negative_zero_and_nan_payload_survive(tmp_path: Path, dtype: torch.dtype) -> None:
    x = torch.zeros(1000, dtype=dtype)
    x[10], x[500], x[999] = -0.0, float("nan"), float("-inf")
    x.view(INTEGER[dtype.itemsize])[500] += 1  # another payload
    report = save_sparse({"x": x}, tmp_path / "f")
    assert report.rows[0].form != "dense"
    assert report.negative_zeros == 1
    assert same_bits(load_sparse(tmp_path / "f")["x"], x)


def test_dropping_negative_zeros(tmp_path: Path) -> None:
    weight = torch.randn(200, 200)
    masked = weight * (torch.rand(200, 200) > 0.95)  # leaves -0.0 behind, half of the zeros
    kept = save_sparse({"w": masked}, tmp_path / "kept")
    dropped = save_sparse({"w": masked}, tmp_path / "dropped", drop_negative_zeros=True)
    assert kept.negative_zeros > 15_000
    assert "-0.0" in str(kept)
    assert dropped.negative_zeros == 0
    assert dropped.sparse_bytes < kept.sparse_bytes / 5
    assert torch.equal(load_sparse(tmp_path / "dropped")["w"], masked)
    assert same_bits(load_sparse(tmp_path / "kept")["w"], masked)


def test_layouts_and_special_shapes(tmp_path: Path) -> None:
    state = {
        "channels_last": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        "slice": torch.randn(10, 10)[::2, 1::3],
        "scalar": torch.tensor(3.5),
        "count": torch.tensor(391),
        "empty": torch.empty(0, 3),
        "zeros": torch.zeros(100, 100),
        'name with " quotes \u00e9': torch.ones(1),
    }
    report = save_sparse(state, tmp_path / "f")
    again = load_sparse(tmp_path / "f")
    assert all(same_bits(again[name], state[name]) for name in state)
    assert {row.name: row.sparse_bytes for row in report.rows}["zeros"] == 0


def test_model_round_trip_and_strictness(tmp_path: Path) -> None:
    net, other = pruned_net(seed=1), pruned_net(seed=2)
    net(torch.randn(2, 3, 4, 4))  # BatchNorm buffers move
    save_sparse(net, tmp_path / "f", metadata={"method": "var"})
    load_sparse(tmp_path / "f", other)
    assert all(same_bits(tensor, other.state_dict()[name]) for name, tensor in net.state_dict().items())
    assert sparse_metadata(tmp_path / "f") == {"method": "var"}

    wrong = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(64, 31))
    before = copy.deepcopy(wrong.state_dict())
    with pytest.raises(ValueError, match=r"3\.weight is float32 \(32, 64\) in the file and float32 \(31, 64\)"):
        load_sparse(tmp_path / "f", wrong)
    assert all(same_bits(tensor, before[name]) for name, tensor in wrong.state_dict().items())
    with pytest.raises(ValueError, match="missing"):
        load_sparse(tmp_path / "f", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="bfloat16"):
        load_sparse(tmp_path / "f", pruned_net().bfloat16())


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(100, 50)
            self.head = nn.Linear(50, 100, bias=False)
            self.head.weight = self.embed.weight

    net, other = Tied(), Tied()
    report = save_sparse(net, tmp_path / "f")
    assert [row.form for row in report.rows] == ["dense", "alias"]
    assert report.sparse_bytes < 1.1 * 100 * 50 * 4
    state = load_sparse(tmp_path / "f", other)
    assert state["embed.weight"] is state["head.weight"]
    assert same_bits(other.head.weight.detach(), net.embed.weight.detach())
    assert other.head.weight is other.embed.weight


def test_same_content_gives_same_bytes(tmp_path: Path) -> None:
    save_sparse(pruned_net(), tmp_path / "a", metadata={"x": "1", "y": "2"})
    save_sparse(pruned_net(), tmp_path / "b", metadata={"y": "2", "x": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_close_to_the_entropy_bound(tmp_path: Path, sparsity: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    state = {f"conv{number}.weight": torch.randn(128, 128, 3, 3) * (1 + number) for number in range(3)}
    for number, name in enumerate(state):  # each layer at its own share around the given one
        share = min(0.999, sparsity + (number - 1) * 0.5 * (1 - sparsity))
        state[name] = state[name].masked_fill(torch.rand_like(state[name]) < share, 0.0).to(dtype)
    report = save_sparse(state, tmp_path / "f")
    assert report.sparse_bytes == (tmp_path / "f").stat().st_size
    assert 0.95 <= report.of_bound <= 1.0


def test_dense_bytes_are_those_of_a_real_dense_file(tmp_path: Path) -> None:
    state = dict(pruned_net().state_dict()) | {"half": torch.ones(3, dtype=torch.float16), "flag": torch.tensor(True)}
    safetensors.torch.save_file(state, tmp_path / "dense")
    report = save_sparse(state, tmp_path / "sparse", with_gzip=True)
    assert report.dense_bytes == (tmp_path / "dense").stat().st_size
    assert report.gzip_bytes is not None
    assert report.gzip_bytes < report.dense_bytes


def test_refused_input(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'a' is int"):
        save_sparse({"a": 1}, tmp_path / "f")  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="complex128"):
        save_sparse({"a": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "f")
    with pytest.raises(ValueError, match="meta"):
        save_sparse(nn.Linear(2, 2, device="meta"), tmp_path / "f")
    with pytest.raises(ValueError, match="sparse_coo"):
        save_sparse({"a": torch.eye(3).to_sparse()}, tmp_path / "f")
    with pytest.raises(TypeError, match="strings to strings"):
        save_sparse({"a": torch.eye(3)}, tmp_path / "f", metadata={"epoch": 3})  # type: ignore[dict-item]
    assert not (tmp_path / "f").exists()


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {f"layer{number}.weight": torch.zeros(3) for number in range(50)}
    save_sparse(state, tmp_path / "f")
    before = (tmp_path / "f").read_bytes()
    size = len(zlib.decompress(safetensors.torch.load(before)["index"].numpy().tobytes()))
    monkeypatch.setattr(store_format, "INDEX_LIMIT", size)
    save_sparse(state, tmp_path / "f")
    assert set(load_sparse(tmp_path / "f")) == set(state)  # just fits
    monkeypatch.setattr(store_format, "INDEX_LIMIT", size - 1)
    with pytest.raises(ValueError, match=rf"index of 50 tensor names takes {size} bytes, more than the {size - 1}"):
        save_sparse(state, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == before
    with pytest.raises(ValueError, match="could not read"):
        load_sparse(tmp_path / "f")
    shared = torch.zeros(3)
    with pytest.raises(ValueError, match="index of 300 tensor names"):
        save_sparse({f"tied{number}": shared for number in range(300)}, tmp_path / "new" / "f")
    assert [each.name for each in tmp_path.iterdir()] == ["f"]  # no folder, no temporary file


def test_an_index_beyond_the_real_limit_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"more than the {16 * 2**20} that can be read back"):
        save_sparse({"w" * 16 * 2**20: torch.zeros(3)}, tmp_path / "f")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("refuses", ["library", "trimtab"])
def test_a_header_that_could_not_be_read_back_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    if refuses == "library":
        content, says = "y" * 100_000_000, "cannot be written"  # present versions of safetensors refuse it themselves
        if not _refused_by_library(content):
            says = "the header takes"
    else:
        monkeypatch.setattr(sparse_writer, "HEADER_LIMIT", 1000)
        content, says = "y" * 1000, "the header takes"
    with pytest.raises(ValueError, match=says):
        save_sparse({"w": torch.zeros(3)}, tmp_path / "f", metadata={"notes": content})
    assert not list(tmp_path.iterdir())


def _refused_by_library(content: str) -> bool:
    try:
        safetensors.torch.save({}, {"notes": content})
    except safetensors.SafetensorError:
        return True
    return False


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net"
    save_sparse(pruned_net(seed=1), path)
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as handle:
            handle.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_sparse(pruned_net(seed=2), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["net"]


# Damage


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    save_sparse({"w": pruned_net()[3].weight}, tmp_path / "f")
    whole = (tmp_path / "f").read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"could not read .*cut"):
            load_sparse(tmp_path / "cut")
    (tmp_path / "cut").write_bytes(whole + b"x")
    with pytest.raises(ValueError, match="could not read"):
        load_sparse(tmp_path / "cut")


def test_altered_bytes_are_refused_or_change_nothing(tmp_path: Path) -> None:
    net = pruned_net()
    save_sparse(net, tmp_path / "f", metadata={"method": "var"})
    whole = (tmp_path / "f").read_bytes()
    chooser = random.Random(0)
    refused = 0
    for _ in range(600):
        changed = bytearray(whole)
        for _ in range(chooser.choice([1, 1, 2, 8])):
            # half of the changes strike the header
            place = chooser.randrange(600 if chooser.random() < 0.5 else len(whole))
            changed[place] ^= 1 << chooser.randrange(8)
        (tmp_path / "g").write_bytes(changed)
        try:
            state = load_sparse(tmp_path / "g")
        except ValueError:
            refused += 1
            continue
        assert all(same_bits(state[name], tensor) for name, tensor in net.state_dict().items())
    assert refused > 500


def test_other_files_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "plain")
    (tmp_path / "text").write_text("not a file of tensors")
    torch.save({"w": torch.ones(3)}, tmp_path / "pickle")
    with pytest.raises(ValueError, match="was it written by save_sparse"):
        load_sparse(tmp_path / "plain")
    for name in ("text", "pickle"):
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            load_sparse(tmp_path / name)
        with pytest.raises(ValueError, match="could not read"):
            sparse_metadata(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_sparse(tmp_path / "absent")


def test_newer_version_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sparse(Remembers({"version": 3}), tmp_path / "f")
    monkeypatch.setattr(store_format, "VERSION", 1)
    with pytest.raises(ValueError, match=r"version 2 is newer than 1.*upgrade trimtab"):
        load_sparse(tmp_path / "f")


# Malice: files with a right hash that ask for what they do not hold


def forge(path: Path, rows: list[list[Any]], aliases: Any = None, values: int = 1, codes: bytes = b"\x01") -> None:
    """A file with a right hash and these index rows."""
    index = Index((), {})
    entries = {"positions": torch.frombuffer(bytearray(codes), dtype=torch.uint8) if codes else torch.empty(0).byte()}
    if values:
        entries["values.float32"] = torch.ones(values)
    import json

    text = json.dumps({"tensors": rows, "aliases": aliases or {}}).encode()
    assert write_index(index).dtype == torch.uint8
    entries["index"] = torch.frombuffer(bytearray(zlib.compress(text)), dtype=torch.uint8)
    path.write_bytes(safetensors.torch.save(entries, write_metadata(content_hash(entries, {}), {})))


def test_forged_file_with_honest_rows_is_read(tmp_path: Path) -> None:
    forge(tmp_path / "f", [["w", "float32", [2, 3], 1, 0, 1]])
    assert load_sparse(tmp_path / "f")["w"].tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (["w", "float32", [2**40, 2**20], 1, 0, 1], "more than the limit"),
        (["w", "float32", [2**61, 2**61], 1, 0, 1], "elements"),
        (["w", "float32", [2**30], 1, 0, 1], "more than the limit"),
        (["w", "float32", [2, 3], 7, 0, 1], "claims 7 non-zeros of 6"),
        (["w", "float32", [9, 9], 5, 0, 1], "asks for"),
        (["w", "float32", [9, 9], 1, 0, 2**40], "disagree"),
        (["w", "float32", [9, 9], 1, 50, 1], "does not fit|too few"),
        (["w", "float32", [-1], 1, 0, 1], "must be an integer of 0 or more"),
        (["w", "float32", [1.5], 1, 0, 1], "must be an integer"),
        (["w", "float32", [True], 1, 0, 1], "must be an integer"),
        (["w", "float33", [2, 3], 1, 0, 1], "float33"),
        (["w", [], [2, 3], 1, 0, 1], "index"),
        ([3, "float32", [2, 3], 1, 0, 1], "bad name"),
        (["w", "float64", [2, 3], 1, 0, 1], "asks for"),
        (["w", "float32", [2, 3], 1], "3 or 6 fields"),
        ("row", "3 or 6 fields"),
    ],
)
def test_forged_rows_are_refused(tmp_path: Path, row: Any, says: str) -> None:
    forge(tmp_path / "f", [row])
    with pytest.raises(ValueError, match=says):
        load_sparse(tmp_path / "f")


def test_forged_aliases_and_duplicates_are_refused(tmp_path: Path) -> None:
    good = ["w", "float32", [2, 3], 1, 0, 1]
    for rows, aliases in (([good, good], None), ([good], {"v": "x"}), ([good], {"w": "w"}), ([good], ["w"])):
        forge(tmp_path / "f", rows, aliases, values=len(rows), codes=b"\x01" * len(rows))
        with pytest.raises(ValueError, match="index"):
            load_sparse(tmp_path / "f")


def test_index_that_inflates_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_format, "INDEX_LIMIT", 10_000)
    forge(tmp_path / "f", [["w" * 100_000, "float32", [2, 3], 1, 0, 1]])
    with pytest.raises(ValueError, match="larger than 10000 bytes"):
        load_sparse(tmp_path / "f")


def test_max_bytes(tmp_path: Path) -> None:
    save_sparse({"w": torch.zeros(1000)}, tmp_path / "f")
    with pytest.raises(ValueError, match="pass max_bytes=4000"):
        load_sparse(tmp_path / "f", max_bytes=3999)
    assert load_sparse(tmp_path / "f", max_bytes=4000)["w"].numel() == 1000


def test_index_row_sizes() -> None:
    assert IndexRow("w", "float32", (2, 3), 6).stored == 6
    assert IndexRow("w", "float32", (2, 3), 2, k=1, position_bytes=2).stored == 2


class Remembers(nn.Module):
    """A module with a state that is no tensor."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
def test_extra_states_come_back(tmp_path: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    state = {"version": 3, "scale": 0.1, "names": ["a", None, True], "deep": {"x": -0.0}}
    source = nn.Sequential(Remembers(state), Remembers(torch.arange(3)))
    save_sparse(wrap(source), tmp_path / "f")
    target = nn.Sequential(Remembers(None), Remembers(torch.zeros(3, dtype=torch.int64)))
    found = load_sparse(tmp_path / "f", wrap(target))
    assert target[0].state == found["0._extra_state"] == state
    assert type(target[0].state["names"][2]) is bool
    assert torch.equal(target[1].state, torch.arange(3))
    assert torch.equal(target[0].layer.weight, source[0].layer.weight)
    with pytest.raises(ValueError, match=r"unexpected \['0._extra_state', '1._extra_state'\]"):
        load_sparse(tmp_path / "f", nn.Sequential(Plain(), Plain()))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)


def test_extra_states_are_covered_by_the_hash_and_older_files_stay_the_same(tmp_path: Path) -> None:
    save_sparse(Remembers({"version": 3}), tmp_path / "f")
    content = (tmp_path / "f").read_bytes()
    (tmp_path / "g").write_bytes(content.replace(b'\\"version\\": 3', b'\\"version\\": 4'))
    assert (tmp_path / "g").read_bytes() != content
    with pytest.raises(ValueError, match="altered or damaged"):
        load_sparse(tmp_path / "g")
    assert b'\\"version\\": 2' in content
    save_sparse(Plain(), tmp_path / "h")
    assert b'\\"version\\": 1' in (tmp_path / "h").read_bytes(), "readers of version 1 read it"


@pytest.mark.parametrize("state", [(1, 2), {1: "a"}, [object()], {"t": torch.ones(1)}])
def test_an_extra_state_that_would_not_come_back_is_refused(tmp_path: Path, state: Any) -> None:
    with pytest.raises(TypeError, match=rf"^_extra_state is what get_extra_state gave, of {type(state).__name__}"):
        save_sparse(Remembers(state), tmp_path / "f")
    assert not list(tmp_path.iterdir())
