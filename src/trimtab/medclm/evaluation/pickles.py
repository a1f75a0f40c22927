"""Pickles of plain lists and texts, which is what PathVQA's authors ship, read without running anything."""

from __future__ import annotations

import io
import pickle  # nosec
from pathlib import Path
from typing import Any


class _Plain(pickle.Unpickler):
    """Takes lists, mappings, texts and numbers; whatever would import or call something is refused."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"it wants to import {module_name}.{global_name}")


def read_plain_pickle(file: Path) -> Any:
    """What a pickle of lists, mappings, texts and numbers holds.

    A pickle is a program: it may import any function and call it. Here it may import none, so that a file from elsewhere can
    do no harm.

    Args:
        file: the pickle.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds anything but plain values.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "qa.pkl"
        ...     _ = file.write_bytes(pickle.dumps([{"image": "val_0261"}]))
        ...     read_plain_pickle(file)
        [{'image': 'val_0261'}]
    """
    try:
        return _Plain(io.BytesIO(file.read_bytes()), encoding="utf-8").load()
    except OSError:
        raise
    except Exception as error:  # a damaged program fails in as many ways as there are
        raise ValueError(f"{file}: no pickle of plain lists and texts: {error}") from error
