"""Texts read byte by byte: any text file, tinyshakespeare, WikiText-2, and a few sonnets that need no file."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trimtab.checks import below_one, whole
from trimtab.datasets.dataset import BYTES, Split
from trimtab.datasets.reading import Source, require_root
from trimtab.datasets.sonnets import SONNETS
from trimtab.inputs import named

HELD_BACK = 0.1
LENGTH = 128
MOST = 2**31
"""Bytes of a text, unpacked [ours]: its windows are held in memory."""
CLASSES = tuple(chr(byte) if 32 <= byte < 127 else f"0x{byte:02x}" for byte in range(BYTES))


def text_bytes(path: Path) -> bytes:
    """The bytes of a text file, plain or with gzip (`.gz`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, no UTF-8 or holds NUL bytes (so no text), damaged, or too large.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a text file (.txt, or .gz of one)")
    with named(path):
        if path.suffix == ".gz":
            with gzip.open(path) as packed:
                found = packed.read(MOST + 1)
        else:
            found = path.read_bytes()
    if not found:
        raise ValueError(f"{path} is empty; a text must hold something to learn from")
    if len(found) > MOST:
        raise ValueError(f"{path} holds more than {MOST:,} bytes, which is the most; cut it")
    try:
        found.decode("utf-8")
        wrong = found.find(b"\0")
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        line = found.count(b"\n", 0, wrong) + 1
        raise ValueError(
            f"{path} is not a text: line {line} holds the byte 0x{found[wrong]:02x}, which is no UTF-8 text"
        )
    return found


def windows(text: bytes, length: int, where: object) -> Split:
    """A text cut into windows of `length` bytes, each with the bytes that follow its own; the rest at the end is left out.

    Raises:
        ValueError: it is shorter than one window and a byte; names `where` it is from.
    """
    whole("length", length, 1)
    count = (len(text) - 1) // length
    if count < 1:
        raise ValueError(
            f"{where} holds {len(text):,} bytes, too few for one window of {length} and the byte after it; choose a smaller "
            "data.arguments.length"
        )
    stream = torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())

    def cut(start: int) -> Tensor:
        return stream[start : start + count * length].view(count, length)

    return Split(cut(0).clone(), cut(1).long())


def _parted(text: bytes, length: int, held_back: float, where: object) -> tuple[Split, Split]:
    """Training and test text: the end is held back, in one piece, as texts are parted."""
    below_one("held_back", held_back)
    if held_back == 0:
        raise ValueError("held_back must be above 0: without a test text nothing can be measured")
    kept = len(text) - math.ceil(held_back * len(text))
    parts = (text[:kept], f"the beginning of {where}"), (text[kept:], f"the end of {where}, held back for testing,")
    train, test = (windows(part, length, said) for part, said in parts)
    return train, test


def read_text(root: Path | None, length: int = LENGTH, held_back: float = HELD_BACK) -> Source:
    """One text file, UTF-8, plain or with gzip; its last tenth is the test text.

    Args:
        root: the file.
        length: bytes of a window, which is what the network sees at once. Default 128 [ours].
        held_back: share at the end that is kept for testing. Default 0.1, as is usual for tinyshakespeare.

    Raises:
        ValueError: no root, no text in it, or too short.
    """
    path = require_root(root, "text", "a text file (.txt, or .gz of one)")
    train, test = _parted(text_bytes(path), length, held_back, path)
    return Source("text", train, CLASSES, test=test)


def _one_of(folder: Path, files: tuple[str, ...]) -> Path | None:
    return next((folder / file for file in files if (folder / file).is_file()), None)


def read_tinyshakespeare(root: Path | None, length: int = LENGTH, held_back: float = HELD_BACK) -> Source:
    """1,115,394 bytes of Shakespeare's plays, 65 different ones (Karpathy's char-rnn); the last tenth is the test text.

    Args:
        root: the file, or the folder that holds tinyshakespeare.txt or input.txt, plain or with gzip.
        length: bytes of a window. Default 128 [ours].
        held_back: share at the end that is kept for testing. Default 0.1, as is usual.

    Raises:
        ValueError: no root, no text in it, or too short.
        FileNotFoundError: the file is not there.
    """
    files = ("tinyshakespeare.txt", "tinyshakespeare.txt.gz", "input.txt", "input.txt.gz")
    expected = f"the file, or the folder that holds one of {', '.join(files)}"
    path = require_root(root, "tinyshakespeare", expected)
    found = _one_of(path, files) if path.is_dir() else path
    if found is None:
        raise FileNotFoundError(f"data set 'tinyshakespeare': {path} holds no text; root must be {expected}")
    train, test = _parted(text_bytes(found), length, held_back, found)
    return Source("tinyshakespeare", train, CLASSES, test=test)


def read_wikitext2(root: Path | None, length: int = LENGTH) -> Source:
    """WikiText-2 (Merity et al. 2016, arXiv 1609.07843): articles of Wikipedia with `<unk>` for rare words.

    The files as published (`wiki.train.tokens`) or as in PyTorch's examples (`train.txt`), or named `wikitext2_train.txt`;
    plain or with gzip. The validation file is the validation text. Without the training file the validation file is what is
    trained on, in part held back for validation, and the remarks say so: such figures cannot be compared with published ones.

    Args:
        root: the folder.
        length: bytes of a window. Default 128 [ours].

    Raises:
        ValueError: no root, no text in a file, or too short.
        FileNotFoundError: the validation or the test file is not there.
    """
    expected = "the folder that holds wiki.train.tokens (if at hand), wiki.valid.tokens and wiki.test.tokens"
    path = require_root(root, "wikitext2", expected)
    found: dict[str, Split] = {}
    for part in ("train", "valid", "test"):
        names = (f"wiki.{part}.tokens", f"{part}.txt", f"wikitext2_{part}.txt")
        file = _one_of(path, (*names, *(f"{name}.gz" for name in names)))
        if file is not None:
            found[part] = windows(text_bytes(file), length, file)
        elif part != "train":
            raise FileNotFoundError(f"data set 'wikitext2': {path} holds no {names[0]}; root must be {expected}")
    if "train" in found:
        return Source("wikitext2", found["train"], CLASSES, found["valid"], found["test"])
    note = (
        "WikiText-2's training file was not at hand: its validation file is the training text. These figures cannot be "
        "compared with published ones."
    )
    return Source("wikitext2", found["valid"], CLASSES, test=found["test"], notes=(note,))


def read_sonnets(root: Path | None, length: int = 32, held_back: float = HELD_BACK) -> Source:
    """Eight sonnets of Shakespeare (1609), 5 kB, in the package: to try the commands and to test them. `root` is not used.

    Args:
        root: not used.
        length: bytes of a window. Default 32 [ours].
        held_back: share at the end that is kept for testing. Default 0.1.

    Raises:
        ValueError: a window that is longer than the text.
    """
    train, test = _parted(SONNETS.encode(), length, held_back, "the embedded sonnets")
    return Source("sonnets", train, CLASSES, test=test)
