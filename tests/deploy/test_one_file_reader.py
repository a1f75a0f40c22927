"""The one-file reader opens every sparse file without trimtab and without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.deploy.test_sparse_file import pruned_net, random_bits, same_bits
from trimtab import deploy
from trimtab.cli import main
from trimtab.deploy import load_sparse, one_file_reader, save_sparse
from trimtab.deploy.store_format import DTYPES, VERSION


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("density", [0.0, 0.05, 0.6, 1.0])
def test_every_dtype_is_read_bit_for_bit(tmp_path: Path, dtype: str, density: float) -> None:
    state = {"x": random_bits(DTYPES[dtype], (7, 5, 30), density, 1), "y": torch.tensor(3.5), "z": torch.zeros(0, 4)}
    save_sparse(state, tmp_path / "f", metadata={"method": "var"})
    one_file_reader.write_dense(tmp_path / "f", tmp_path / "dense")
    again = safetensors.torch.load_file(tmp_path / "dense")  # the container's own reader
    assert again.keys() == state.keys()
    assert all(same_bits(again[name], state[name]) for name in state)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_what_numpy_lacks_comes_as_float32_of_the_same_values(tmp_path: Path, dtype: str) -> None:
    bits = torch.arange(256, dtype=torch.uint8)
    x = bits.view(DTYPES[dtype]) if dtype != "bfloat16" else random_bits(torch.bfloat16, (999,), 0.4, 2)
    save_sparse({"x": x}, tmp_path / "f")
    found = one_file_reader.load(tmp_path / "f")["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, x.float().numpy())
    assert np.array_equal(np.signbit(found), np.signbit(x.float().numpy()))


def test_tied_weights_and_extra_states(tmp_path: Path) -> None:
    net = pruned_net()
    net.tied = nn.Linear(64, 32)
    net.tied.weight = net[3].weight
    save_sparse(net, tmp_path / "f")
    wanted, found = load_sparse(tmp_path / "f"), one_file_reader.load(tmp_path / "f")
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], wanted[name].numpy()) for name in wanted)
    save_sparse({"w": torch.ones(3), "q._extra_state": {"seen": 4}}, tmp_path / "g")
    assert one_file_reader.load_raw(tmp_path / "g")[1]["extra"] == {"q._extra_state": {"seen": 4}}


def test_it_knows_every_version_that_is_written() -> None:
    assert tuple(range(1, VERSION + 1)) == one_file_reader.FORMATS


def test_damage_and_other_files_are_refused(tmp_path: Path) -> None:
    save_sparse(pruned_net(), tmp_path / "f")
    content = bytearray((tmp_path / "f").read_bytes())
    content[-3] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    (tmp_path / "cut").write_bytes(content[:-40])
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / "plain")
    for name, message in (("damaged", "altered or damaged"), ("cut", "not a whole"), ("plain", "no sparse file")):
        with pytest.raises(ValueError, match=message) as error:
            one_file_reader.load(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(ValueError, match="max_bytes="):
        one_file_reader.load(tmp_path / "f", max_bytes=10)


BARE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "trimtab", "ml_dtypes", "scipy"}:
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Blocked())
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_printed_file_works_where_neither_trimtab_nor_torch_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", "--to", "reader"]) == 0
    Path("trimtab_reader.py").write_text(capsys.readouterr().out)
    net = pruned_net()
    deploy.save_sparse(net, "net.safetensors", metadata={"method": "cram+"})
    words = [sys.executable, "-I", "-c", BARE, "trimtab_reader.py", "net.safetensors"]
    listed = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "3.weight" in listed
    assert "method: cram+" in listed
    subprocess.run([*words, "dense.safetensors"], check=True, cwd=tmp_path, capture_output=True)
    again = safetensors.torch.load_file("dense.safetensors")
    assert all(same_bits(again[name], tensor) for name, tensor in net.state_dict().items())
    failed = subprocess.run([*words[:-1], "dense.safetensors"], capture_output=True, text=True, cwd=tmp_path)
    assert failed.returncode == 1
    assert "no sparse file" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_reader_is_written_where_it_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--to", "reader", "-o", str(tmp_path / "x")]) == 0
    assert "trimtab_reader.py" in capsys.readouterr().out
    source = Path(one_file_reader.__file__).read_text(encoding="utf-8")
    assert (tmp_path / "x/trimtab_reader.py").read_text(encoding="utf-8") == source
    assert main(["export", "--to", "sparse"]) == 2
    assert "name a finished run" in capsys.readouterr().err
