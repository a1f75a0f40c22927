"""Arrays from .mat files: what scipy reads, and damage without a crash."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from trimtab import datasets
from trimtab.datasets.mat_file import read_mat


def _big_endian(array: np.ndarray[Any, Any], kind: int, number_type: int) -> bytes:
    """A file with one variable `y`, written by hand."""

    def element(type_: int, content: bytes) -> bytes:
        return struct.pack(">II", type_, len(content)) + content + bytes(-len(content) % 8)

    dimensions = element(5, struct.pack(f">{array.ndim}i", *array.shape))
    name = struct.pack(">HH", 1, 1) + b"y\0\0\0"  # a small element
    parts = element(6, struct.pack(">II", kind, 0)) + dimensions + name
    parts += element(number_type, array.tobytes(order="F"))
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(">H", 0x0100) + b"MI" + element(14, parts)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", "i8", "u8"])
def test_arrays_are_those_that_scipy_reads(tmp_path: Path, dtype: str, compressed: bool) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a.mat"
    written = {"other": {"text": "x" * 9000}, "X": (rng.normal(size=(3, 4, 2, 5)) * 50).astype(dtype), "s": "text"}
    written["y"] = (np.arange(7)[:, None] + 1).astype(dtype)
    savemat(path, written, do_compression=compressed)
    found, peer = read_mat(path, ("X", "y", "absent")), loadmat(path)
    assert sorted(found) == ["X", "y"]
    for name, array in found.items():
        assert array.dtype == peer[name].dtype
        assert np.array_equal(array, peer[name])


def test_the_other_byte_order_and_doubles_kept_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    path.write_bytes(_big_endian(np.array([[1], [2], [10]], dtype=np.uint8), kind=6, number_type=2))
    assert np.array_equal(read_mat(path, ["y"])["y"], loadmat(path)["y"])
    assert read_mat(path, ["y"])["y"].dtype == np.float64
    path.write_bytes(_big_endian(np.array([[1.5, -2.0]], dtype=">f8"), kind=6, number_type=9))
    assert read_mat(path, ["y"])["y"].tolist() == [[1.5, -2.0]]


@pytest.mark.parametrize(
    ("value", "message"), [("text", "no array of real numbers"), (np.array([[1j]]), "real"), ({"a": 1}, "real")]
)
def test_variables_of_another_kind_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    savemat(tmp_path / "a.mat", {"y": value})
    with pytest.raises(ValueError, match=rf"a\.mat is damaged.*{message}"):
        read_mat(tmp_path / "a.mat", ["y"])


def test_lies_about_sizes_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    whole = _big_endian(np.array([[1, 2]], dtype=np.uint8), kind=9, number_type=2)
    for old, new, message in (
        (struct.pack(">ii", 1, 2), struct.pack(">ii", 2**31 - 1, 2**31 - 1), "impossible shape"),
        (struct.pack(">ii", 1, 2), struct.pack(">ii", -1, -2), "impossible shape"),
        (struct.pack(">ii", 1, 2), struct.pack(">ii", 1000, 1000), "but holds 2"),
        (struct.pack(">II", 2, 2), struct.pack(">II", 2, 2**32 - 1), "claims 4294967295 bytes"),
        (struct.pack(">HH", 1, 1), struct.pack(">HH", 9, 1), "small element"),
    ):
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(ValueError, match=rf"a\.mat.*{message}"):
            read_mat(path, ["y"])
    bomb = zlib.compress(struct.pack(">II", 14, 2**32 - 16) + whole[136:184] + bytes(10**6))
    path.write_bytes(whole[:128] + struct.pack(">II", 15, len(bomb)) + bomb)
    with pytest.raises(ValueError, match=r"claims 4294967280 bytes, \d+ are there"):
        read_mat(path, ["y"])
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    with pytest.raises(ValueError, match="HDF5"):
        read_mat(path, ["y"])


@pytest.mark.parametrize("compressed", [False, True])
def test_any_one_byte_is_an_error_that_names_the_file_or_another_number(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"X": np.arange(40, dtype=np.uint8).reshape(2, 4, 5), "y": np.arange(3.0)}, do_compression=compressed)
    whole = path.read_bytes()
    for position in range(100, len(whole)):
        for value in (whole[position] ^ 0xFF, 0, whole[position] ^ 1):
            path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            try:
                found = read_mat(path, ("X", "y"))
            except ValueError as error:
                assert str(path) in str(error)  # noqa: PT017 - some bytes are numbers
                continue
            assert all(array.size <= 40 for array in found.values())


def test_a_label_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32, 3, 4), np.uint8)
    for bad in (np.nan, 1.5, 0, 11):
        savemat(tmp_path / "train_32x32.mat", {"X": pixels, "y": np.array([[1.0], [2.0], [10.0], [bad]])})
        with pytest.raises(ValueError, match=r"train_32x32\.mat.*whole numbers in 1\.\.10"):
            datasets.load("svhn", root=tmp_path)
