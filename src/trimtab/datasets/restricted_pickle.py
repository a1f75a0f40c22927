"""Reading the pickles of the Python CIFAR files without running what a pickle may ask for."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 512 * 2**20


class _Dtype:
    """Stands for `numpy.dtype`: numbers and booleans only, so never an array of objects."""

    def __init__(self, code: str | bytes, align: bool = False, copy: bool = False) -> None:  # noqa: FBT001, FBT002  (as the pickles call it)
        text = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(text, str) or text[:1] not in set("buif") or not text[1:].isdecimal():
            raise pickle.UnpicklingError(f"refused dtype {text!r}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order: Any = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("refused a dtype with fields or of unknown byte order")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for `numpy.ndarray`: filled from raw bytes whose number must fit the shape."""

    value: np.ndarray[Any, np.dtype[Any]]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        if not isinstance(kind, _Dtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("refused an array that is not of plain numbers")
        self.value = np.frombuffer(raw, dtype=kind.dtype).reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind: type, shape: tuple[int, ...], code: bytes) -> _Array:
    """Stands for NumPy's own function of that name: an empty array, and nothing else."""
    if kind is not _Array:
        raise pickle.UnpicklingError(f"refused to rebuild {kind!r}")
    return _Array()


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for `_codecs.encode`, by which Python 3 writes bytes into old pickles."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"refused encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"refused {module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("refused a persistent reference")


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary in a pickle that holds only numbers, text, lists, dictionaries and numeric NumPy arrays.

    Nothing named in the file is imported or called except the rebuilding of such arrays; keys come back as text.

    Raises:
        ValueError: the file asks for anything else (its name is given), is damaged, over 512 MiB, or holds no
            dictionary.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes, more than the {MAX_BYTES} allowed for a pickle")
    try:
        found = _Restricted(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was not read: {error}. Only numbers, text, lists, dictionaries and numeric arrays are allowed"
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a dictionary, got {type(found).__name__}")
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): value.value
        if isinstance(value, _Array)
        else value
        for key, value in found.items()
    }
