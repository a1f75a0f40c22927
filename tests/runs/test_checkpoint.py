"""Checkpoints: exact round trip, damage refused, nothing half-written."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from trimtab.runs.checkpoint import (
    load_checkpoint,
    load_network,
    save_checkpoint,
    save_network,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(PLAIN)
@settings(max_examples=60, deadline=None)
def test_plain_values_come_back_equal_and_of_the_same_type(
    tmp_path_factory: pytest.TempPathFactory, value: object
) -> None:
    path = tmp_path_factory.mktemp("c") / "c.safetensors"
    save_checkpoint(path, {"value": value})
    back = load_checkpoint(path)["value"]
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool]
)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.randn(3, 4).to(dtype)
    save_checkpoint(tmp_path / "c", {"a": [tensor, {"deep": tensor.t()}], "empty": torch.empty(0)})
    back = load_checkpoint(tmp_path / "c")
    assert torch.equal(back["a"][0], tensor)
    assert back["a"][0].dtype == dtype
    assert torch.equal(back["a"][1]["deep"], tensor.t())
    assert back["empty"].shape == (0,)


def test_adam_state_round_trips(tmp_path: Path) -> None:
    net = torch.nn.Linear(3, 2)
    adam = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    adam.step()
    save_checkpoint(tmp_path / "c", {"optimizer": adam.state_dict()})
    other = torch.optim.Adam(net.parameters())
    other.load_state_dict(load_checkpoint(tmp_path / "c")["optimizer"])
    for first, second in zip(adam.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_damage_is_refused_with_the_file_name(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.ones(100)})
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    with pytest.raises(ValueError, match=r"c\.safetensors is damaged"):
        load_checkpoint(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is not a trimtab"):
        load_checkpoint(path)
    with pytest.raises(ValueError, match="no checkpoint"):
        load_checkpoint(tmp_path / "absent")


def test_foreign_objects_are_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, {"a": 1})
    with pytest.raises(TypeError, match="object"):
        save_checkpoint(path, {"a": object()})
    assert load_checkpoint(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    state = {"w": torch.randn(20, generator=torch.Generator().manual_seed(0)), "plain": [1, 2.5, "x", (3, None)]}
    save_checkpoint(path, state)
    whole = path.read_bytes()
    assert len(whole) < 2000
    refused = 0
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= 1 << position % 8
        path.write_bytes(content)
        try:
            back = load_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 - most flips are refused, those of white space are not
            refused += 1
            continue
        assert torch.equal(back["w"], state["w"])
        assert back["plain"] == state["plain"]
    assert refused > 0.85 * len(whole)


def test_a_checkpoint_of_an_older_version_is_read_without_a_hash(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    structure = '{"__dict__": [["w", {"__tensor__": "0"}]]}'
    save_file({"0": torch.ones(3)}, path, metadata={"format": "trimtab.checkpoint/1", "structure": structure})
    assert torch.equal(load_checkpoint(path)["w"], torch.ones(3))


@pytest.mark.parametrize(
    "structure", ["[1]", "{}", '{"__dict__": 3}', '{"__tensor__": "9"}', "{" * 5, "[" * 100_000, "3"]
)
def test_a_structure_of_another_form_is_refused_with_the_file_name(tmp_path: Path, structure: str) -> None:
    path = tmp_path / "c.safetensors"
    save_file({"0": torch.ones(3)}, path, metadata={"format": "trimtab.checkpoint/1", "structure": structure})
    with pytest.raises(ValueError, match=r"c\.safetensors is damaged"):
        load_checkpoint(path)


def test_a_network_comes_back_and_a_flipped_bit_in_it_does_not(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
            self.second.weight = self.first.weight

    path = tmp_path / "model.safetensors"
    net, other = Tied(), Tied()
    save_network(path, net)
    load_network(path, other)
    assert torch.equal(net.first.weight, other.first.weight)
    assert other.second.weight is other.first.weight
    assert torch.equal(load_file(path)["second.bias"], net.second.bias)  # any reader of safetensors opens it
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or of another network"):
        load_network(path, torch.nn.Linear(8, 8))
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: its content does not have the sha256"):
        load_network(path, other)
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, path)  # of another program, without a hash
    load_network(path, plain := torch.nn.Linear(2, 2))
    assert torch.equal(plain.weight, torch.ones(2, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="limits on file sizes")
def test_a_file_that_cannot_grow_keeps_the_systems_number(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": 1})
    script = (
        "import resource, sys, torch, pathlib\n"
        "from trimtab.runs.checkpoint import save_checkpoint, save_network\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "path, large = pathlib.Path(sys.argv[1]), torch.nn.Linear(99, 99)\n"
        "for write, what in ((save_checkpoint, large.state_dict()), (save_network, large)):\n"
        "    try: write(path, what)\n"
        "    except OSError as error: print(error.errno, 'could not write ' + str(path) in str(error))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == [f"{errno.EFBIG} True"] * 2
    assert load_checkpoint(path) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["c.safetensors"]
