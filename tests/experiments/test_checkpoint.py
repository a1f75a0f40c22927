"""Checkpoints: exact round trip, damage refused, nothing half-written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from trimtab.experiments.checkpoint import load_checkpoint, save_checkpoint

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
