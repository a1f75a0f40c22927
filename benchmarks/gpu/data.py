"""CIFAR-10 in one small npz, bit for bit, that numpy and the standard library unpack: what the study trains on.

    python benchmarks/gpu/data.py [--root ../shared/data/cifar10] [--out benchmarks/gpu/data.npz]

`--root` is anything that `trimtab` reads as cifar10. Pixels are predicted from their neighbours left, above and above left
(the median rule of LOCO-I, Weinberger, Seroussi & Sapiro 2000), red and blue as differences to green; what the prediction
misses goes through LZMA: about 1,650 of 3,072 bytes an image, where deflate leaves 2,830.
"""

from __future__ import annotations

import argparse
import lzma
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
LIMIT = 40 * 2**20
FILTERS = [{"id": lzma.FILTER_LZMA1, "preset": 9, "lc": 0, "lp": 0, "pb": 0}]
Array = np.ndarray[Any, Any]


def _median(left: Array, above: Array, corner: Array) -> Array:
    least, most = np.minimum(left, above), np.maximum(left, above)
    return np.where(corner >= most, least, np.where(corner <= least, most, left + above - corner))


def _predicted(plane: Array, y: int, x: int) -> Array:
    """What the pixels before (y, x) say of it, for every image of `plane` (height, width, images)."""
    if y == 0 and x == 0:
        return np.zeros_like(plane[0, 0])
    if y == 0:
        return plane[0, x - 1]
    if x == 0:
        return plane[y - 1, 0]
    return _median(plane[y, x - 1], plane[y - 1, x], plane[y - 1, x - 1])


def packed(images: Array) -> Array:
    """Images (N, height, width, 3) uint8 as a row of bytes.

    >>> some = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    >>> np.array_equal(unpacked(packed(some), some.shape), some)
    True
    """
    red, green, blue = (images[..., channel].astype(np.int16).transpose(1, 2, 0) for channel in range(3))
    missed = []
    for plane in (green, red - green, blue - green):
        places = np.ndindex(plane.shape[:2])
        missed.append(np.stack([plane[y, x] - _predicted(plane, y, x) for y, x in places]).astype(np.uint8))
    raw = b"".join(np.ascontiguousarray(part.T).tobytes() for part in missed)  # image by image
    return np.frombuffer(lzma.compress(raw, format=lzma.FORMAT_ALONE, filters=FILTERS), dtype=np.uint8)


def unpacked(data: Array, shape: tuple[int, ...]) -> Array:
    """The images of `packed`."""
    count, height, width, _ = shape
    missed = np.frombuffer(lzma.decompress(data.tobytes()), dtype=np.uint8).reshape(3, count, height * width)
    images = np.empty(shape, dtype=np.uint8)
    green = np.zeros((height, width, count), dtype=np.int16)
    for channel, part in zip((1, 0, 2), missed, strict=True):
        plane = np.empty_like(green)
        base = np.zeros_like(green) if channel == 1 else green
        for place, (y, x) in enumerate(np.ndindex(height, width)):
            value = (_predicted(plane, y, x) + part[:, place] + base[y, x]) & 255  # the pixel, known modulo 256
            plane[y, x] = value - base[y, x]
            images[:, y, x, channel] = value
        if channel == 1:
            green = plane
    return images


def expand(file: Path, target: Path) -> tuple[int, int]:
    """Write the plain npz that trimtab's cifar10 reads; how many training and test images it holds."""
    plain = {}
    with np.load(file) as found:
        for split in ("train", "test"):
            labels = found[f"{split}_labels"]
            plain[f"{split}_images"] = unpacked(found[split], (len(labels), 32, 32, 3))
            plain[f"{split}_labels"] = labels.astype(np.int64)
    np.savez(target, **plain)
    return len(plain["train_labels"]), len(plain["test_labels"])


def drawn(target: Path, train: int = 96, test: int = 48) -> None:
    """A plain npz of drawn images in which the class can be seen, for the dry run."""
    random = np.random.default_rng(0)
    plain = {}
    for split, count in {"train": train, "test": test}.items():
        labels = np.arange(count) % 10
        noise = random.integers(0, 100, (count, 32, 32, 3))
        plain[f"{split}_images"] = (noise + 15 * labels[:, None, None, None]).astype(np.uint8)
        plain[f"{split}_labels"] = labels.astype(np.int64)
    np.savez(target, **plain)


def main() -> None:
    """Read, pack, write; refuse a file that is too large to travel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=HERE.parents[2] / "shared" / "data" / "cifar10")
    parser.add_argument("--out", type=Path, default=HERE / "data.npz")
    given = parser.parse_args()
    sys.path.insert(0, str(HERE.parents[1] / "src"))
    from trimtab.datasets.cifar import read_cifar10

    source = read_cifar10(given.root)
    assert source.test is not None
    arrays = {}
    for name, split in {"train": source.train, "test": source.test}.items():
        images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        arrays[name], arrays[f"{name}_labels"] = packed(images), split.targets.numpy().astype(np.uint8)
        assert np.array_equal(unpacked(arrays[name], images.shape), images)
        print(f"{name}: {len(images)} images, {len(arrays[name]) / len(images):.0f} bytes each")
    np.savez(given.out, **arrays)
    size = given.out.stat().st_size
    print(f"{given.out}: {size / 2**20:.2f} MiB")
    if size >= LIMIT:
        given.out.unlink()
        sys.exit(f"too large to travel ({LIMIT // 2**20} MiB at most); give --root fewer shards")


if __name__ == "__main__":
    main()
