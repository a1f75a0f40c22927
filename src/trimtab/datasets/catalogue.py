"""The data sets in one line each; nothing is imported until one is read."""

from __future__ import annotations

READERS: dict[str, tuple[str, str]] = {
    "digits": (
        "digits:read_digits",
        "1,797 handwritten digits 8 x 8, embedded in scikit-learn; needs no root",
    ),
    "cifar10": (
        "cifar:read_cifar10",
        "CIFAR-10, 32 x 32 RGB, 10 classes: binary or Python batches, .npz or zipped shards",
    ),
    "cifar100": (
        "cifar:read_cifar100",
        "CIFAR-100, 32 x 32 RGB, 100 classes: binary or Python files, .npz or zipped shards",
    ),
    "svhn": ("svhn:read_svhn", "Street View House Numbers, 32 x 32 RGB, 10 classes: .mat files; extra"),
    "mnist": ("idx:read_mnist", "MNIST, 28 x 28 grey, 10 classes: IDX files, compressed or not"),
    "fashion_mnist": (
        "idx:read_fashion_mnist",
        "Fashion-MNIST, 28 x 28 grey, 10 classes: IDX files, compressed or not",
    ),
    "image_folder": (
        "image_folder:read_image_folder",
        "pictures in one folder per class, with or without train/val/test; channels",
    ),
    "npz": ("npz:read_npz", "one .npz of images and labels with the keys of MedMNIST; classes"),
    "segmentation_folder": (
        "segmentation_folder:read_segmentation_folder",
        "images/ and masks/ of the same names, with or without train/val/test; channels, classes",
    ),
    "hippocampus": (
        "hippocampus:read_hippocampus",
        "hippocampus MRI slices 48 x 64, 3 classes, split by case; plane, empty_share",
    ),
    "sonnets": (
        "text:read_sonnets",
        "eight sonnets read byte by byte, 5 kB, embedded; needs no root; length, held_back",
    ),
    "tinyshakespeare": (
        "text:read_tinyshakespeare",
        "1.1 MB of Shakespeare's plays read byte by byte; length, held_back",
    ),
    "wikitext2": ("text:read_wikitext2", "WikiText-2 read byte by byte, also without its training file; length"),
    "text": ("text:read_text", "any text file (.txt, .gz) read byte by byte; length, held_back"),
    "lgg_mri": ("segmentation_folder:read_lgg_mri", "LGG brain MRI slices with tumour masks, split by patient"),
}
"""By name: where its reader stands in this package, and what it is."""


def names() -> dict[str, str]:
    """Every data set that `load` knows, with one line on each.

    Example:
        >>> names()["digits"]
        '1,797 handwritten digits 8 x 8, embedded in scikit-learn; needs no root'
    """
    return {name: line for name, (_, line) in READERS.items()}
