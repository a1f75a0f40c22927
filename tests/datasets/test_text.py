"""Texts read byte by byte: windows, how they are parted, what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trimtab import datasets
from trimtab.datasets import Batches, DataSet
from trimtab.datasets.sonnets import SONNETS

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "text_lm"


def a_text(folder: Path, size: int = 2000, **arguments: Any) -> tuple[bytes, DataSet]:
    """A text in which every place is told by its bytes, as a data set of windows of 16."""
    text = "".join(f"{number:04d};" for number in range(size // 5)).encode()
    path = folder / "counted.txt"
    path.write_bytes(text)
    return text, datasets.load("text", root=path, **{"length": 16, **arguments})


def test_windows_follow_each_other_and_targets_are_the_bytes_that_follow(tmp_path: Path) -> None:
    text, data = a_text(tmp_path, validation=0)
    train = text[: len(text) - 200]
    seen = bytes(data.train.images.flatten().tolist())
    assert seen == train[: len(seen)]
    assert len(train) - len(seen) <= 16  # what is left is less than a window and the byte after it
    assert bytes(data.train.targets.flatten().tolist()) == train[1 : len(seen) + 1]
    assert (data.task, data.num_classes) == ("text", 256)


def test_the_ends_are_held_back_in_one_piece(tmp_path: Path) -> None:
    text, data = a_text(tmp_path, validation=0.25)
    parts = [bytes(split.images.flatten().tolist()) for split in (data.train, data.validation, data.test)]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    assert places[1] == len(parts[0])  # validation begins where training ends
    assert places[2] == len(text) - 200  # the last tenth is the test text
    assert len(data.validation) == 28  # ceil(0.25 * 112)
    for seed in (1, 2):
        assert torch.equal(a_text(tmp_path, validation=0.25, split_seed=seed)[1].train.images, data.train.images)


def test_chance_is_the_entropy_of_the_bytes(tmp_path: Path) -> None:
    _, data = a_text(tmp_path, validation=0)
    share = np.bincount(data.train.images.numpy().ravel(), minlength=256) / data.train.images.numel()
    share = share[share > 0]
    assert data.chance == pytest.approx(-(share * np.log2(share)).sum(), rel=1e-12)


def test_shifted_windows_are_pieces_of_the_text_that_differ_between_epochs(tmp_path: Path) -> None:
    text, data = a_text(tmp_path, validation=0)
    batches = Batches(data.train, data, 4, seed=0, augment="shift")
    first = [(images, targets) for images, targets in batches.epoch(0)]
    for images, targets in first:
        for window, following in zip(images.tolist(), targets.tolist(), strict=True):
            place = text.index(bytes(window))
            assert text[place + 1 : place + 17] == bytes(following)
    begun = {text.index(bytes(window)) % 16 for images, _ in first for window in images.tolist()}
    assert len(begun) > 8  # not at the cuts alone
    again = [images for images, _ in Batches(data.train, data, 4, seed=0, augment="shift").epoch(0)]
    assert all(torch.equal(one, other) for (one, _), other in zip(first, again, strict=True))
    assert not torch.equal(next(batches.epoch(1))[0], first[0][0])
    assert torch.equal(next(batches.epoch(0, start_batch=3))[0], first[3][0])


def test_two_ranks_together_see_what_one_with_twice_the_batch_sees(tmp_path: Path) -> None:
    _, data = a_text(tmp_path, validation=0)
    whole = [images for images, _ in Batches(data.train, data, 8, seed=3, augment="shift").epoch(1)]
    halves = [
        [
            images
            for images, _ in Batches(data.train, data, 4, seed=3, augment="shift", rank=rank, world_size=2).epoch(1)
        ]
        for rank in (0, 1)
    ]
    for one, even, odd in zip(whole, *halves, strict=True):
        assert torch.equal(one[0::2], even)
        assert torch.equal(one[1::2], odd)


def test_a_limit_takes_the_beginning(tmp_path: Path) -> None:
    _, data = a_text(tmp_path, validation=0)
    _, few = a_text(tmp_path, validation=0, limit_train=10)
    assert torch.equal(few.train.images, data.train.images[:10])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"one\ntwo\nth\xffree" * 20, r"is not a text: line 3 holds the byte 0xff"),
        (b"one\ntw\0o\n" * 50, r"is not a text: line 2 holds the byte 0x00"),
        (b"short", "too few for one window of 128"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"bad\.txt.*{message}"):
        datasets.load("text", root=path)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    packed = tmp_path / "text.txt.gz"
    packed.write_bytes(gzip.compress(SONNETS.encode())[:-50])
    with pytest.raises(ValueError, match=r"text\.txt\.gz is damaged"):
        datasets.load("text", root=packed)
    with pytest.raises(ValueError, match="is a folder; name a text file"):
        datasets.load("text", root=tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt does not exist"):
        datasets.load("text", root=tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match="needs root: a text file"):
        datasets.load("text")
    with pytest.raises(FileNotFoundError, match=r"holds no text; root must be .*tinyshakespeare\.txt"):
        datasets.load("tinyshakespeare", root=tmp_path)


def test_what_is_for_images_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size is 32, but 'sonnets' is a text"):
        datasets.load("sonnets", image_size=32)
    data = datasets.load("sonnets")
    with pytest.raises(ValueError, match="augment is 'flip', which is for images"):
        Batches(data.train, data, 8, seed=0, augment="flip")
    with pytest.raises(ValueError, match="held_back must be above 0"):
        datasets.load("sonnets", held_back=0.0)


def test_wikitext2_without_its_training_file_says_so(tmp_path: Path) -> None:
    for part, size in (("valid", 4000), ("test", 900)):
        (tmp_path / f"wikitext2_{part}.txt.gz").write_bytes(gzip.compress(SONNETS[:size].encode()))
    data = datasets.load("wikitext2", root=tmp_path, length=32)
    assert "cannot be compared with published" in data.notes[0]
    assert bytes(data.test.images[0].tolist()) == SONNETS[:32].encode()
    assert len(data.train) + len(data.validation) == 3999 // 32
    (tmp_path / "wiki.train.tokens").write_text(SONNETS * 2)
    whole = datasets.load("wikitext2", root=tmp_path, length=32)
    assert not whole.notes
    assert len(whole.train) == (2 * len(SONNETS.encode()) - 1) // 32
    assert len(whole.validation) == 3999 // 32
    (tmp_path / "wikitext2_test.txt.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no wiki\.test\.tokens"):
        datasets.load("wikitext2", root=tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="tinyshakespeare is not at hand")
def test_tinyshakespeare_as_it_is_spread() -> None:
    data = datasets.load("tinyshakespeare", root=SHARED)
    assert len(data.test) == (111_540 - 1) // 128
    assert bytes(data.train.images[0, :14].tolist()) == b"First Citizen:"
    assert len(torch.cat([split.images.flatten() for split in (data.train, data.test)]).unique()) == 65
    assert len(datasets.load("wikitext2", root=SHARED).notes) == 1
