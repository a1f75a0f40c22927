"""Pictures that do not fit in memory lie on disk and give the same batches; reading says how far it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trimtab import datasets
from trimtab.datasets.dataset import channel_statistics
from trimtab.datasets.reading import reading_told
from trimtab.datasets.room import is_on_disk, room, taken


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (root / kind).mkdir()
        for number in range(20):
            Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(root / kind / f"{number:02}.png")
    return root


def load(root: Path, **arguments: float) -> datasets.DataSet:
    return datasets.load("image_folder", root=root, image_size=8, **arguments)


def test_on_disk_gives_the_batches_of_memory_to_the_bit(photos: Path) -> None:
    here, there = load(photos), load(photos, memory=1e-9)
    for split in ("train", "validation", "test"):
        assert not is_on_disk(getattr(here, split).images)
        assert is_on_disk(getattr(there, split).images)
        assert torch.equal(getattr(here, split).images, getattr(there, split).images)
    assert (here.mean, here.std) == (there.mean, there.std)
    made = [list(datasets.Batches(data.train, data, 7, seed=3, augment="crop_flip").epoch(1)) for data in (here, there)]
    for (one, targets), (two, same) in zip(*made, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(targets, same)


def test_the_file_is_gone_and_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    images = room((3000, 1, 2, 2), on_disk=True)
    assert not list(tmp_path.iterdir())
    images.copy_(torch.arange(3000).remainder(256).to(torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2))
    index = torch.arange(2999, -1, -2)
    part = taken(images, index)
    assert is_on_disk(part)
    assert torch.equal(part, images[index])
    mean, std = channel_statistics(images)
    values = images.double() / 255
    assert mean == pytest.approx((values.mean().item(),))
    assert std == pytest.approx((values.std(unbiased=False).item(),))


def test_a_full_disk_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match=r"no room for 1 GB for pictures in .*TMPDIR names another folder: No space left"):
        room((1000, 1, 1000, 1000), on_disk=True)


def test_reading_tells_how_far_it_is(photos: Path) -> None:
    told: list[tuple[int, int]] = []
    with reading_told(lambda done, total: told.append((done, total))):
        load(photos)
    assert told == [(number + 1, 40) for number in range(40)]
    load(photos)
    assert len(told) == 40


def test_bad_pictures_and_settings_are_named(photos: Path, tmp_path: Path) -> None:
    for kind in ("cat", "dog"):
        (tmp_path / kind).mkdir()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / kind / "0.png")
    (tmp_path / "dog/1.png").write_bytes(b"\x89PNG no picture")
    with pytest.raises(ValueError, match=r"dog/1.png is damaged"):
        load(tmp_path)
    with pytest.raises(ValueError, match="memory must be"):
        load(photos, memory=-1)
