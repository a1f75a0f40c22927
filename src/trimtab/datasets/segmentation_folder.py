"""Pictures with masks: a folder of each, or the LGG brain MRI folders as their authors ship them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from trimtab.datasets.dataset import Split
from trimtab.datasets.image_folder import split_folders
from trimtab.datasets.pictures import pictures_in, read_mask, read_picture, stacked
from trimtab.datasets.reading import Source, image_tensor, require_root

Size = tuple[int, int] | None


def _pairs_by_stem(folder: Path) -> list[tuple[Path, Path]]:
    for needed in ("images", "masks"):
        if not (folder / needed).is_dir():
            raise FileNotFoundError(f"{folder} has no folder {needed}/; pictures go to images/, masks to masks/")
    masks: dict[str, Path] = {}
    for path in pictures_in(folder / "masks"):
        if path.stem in masks:
            raise ValueError(f"{path} and {masks[path.stem]} have the same name")
        masks[path.stem] = path
    images = pictures_in(folder / "images")
    without = [path.name for path in images if path.stem not in masks]
    if without or not images:
        raise ValueError(
            f"{folder}: {len(without)} of {len(images)} pictures have no mask of the same name: {without[:3]}"
        )
    return [(path, masks[path.stem]) for path in images]


def _split(pairs: list[tuple[Path, Path]], channels: int, size: Size, groups: list[int] | None) -> Split:
    images, masks = [], []
    for image_path, mask_path in pairs:
        images.append(read_picture(image_path, channels, size))
        masks.append(read_mask(mask_path, size))
        if masks[-1].shape != images[-1].shape[:2]:
            raise ValueError(f"{mask_path} is {masks[-1].shape}, its picture {image_path} {images[-1].shape[:2]}")
    paths = [path for path, _ in pairs]
    pixels = stacked(images, paths)
    return Split(
        image_tensor(pixels, paths[0].parent),
        torch.from_numpy(stacked(masks, paths).astype(np.int64)),
        None if groups is None else torch.tensor(groups),
    )


def _with_classes(name: str, splits: dict[str, Split], classes: str, where: Path) -> Source:
    """Masks of 0 and 255 alone are background and foreground; other values are the numbers of the classes."""
    values = torch.cat([torch.unique(split.targets) for split in splits.values()]).unique().tolist()  # type: ignore[no-untyped-call]
    binary = set(values) <= {0, 255}
    if binary:
        splits = {
            label: Split(split.images, (split.targets == 255).long(), split.groups) for label, split in splits.items()
        }
    count = 2 if binary else max(values) + 1
    given = tuple(part.strip() for part in classes.split(",")) if classes else ()
    if given and len(given) < count:
        raise ValueError(f"{where}: masks hold {count} classes, but classes names {len(given)}: {given}")
    if not given and count > 64:
        raise ValueError(
            f"{where}: mask values reach {count - 1}: they must be class numbers, or 0 and 255; give classes if they are"
        )
    names = given or ("background", *(("foreground",) if count == 2 else (f"class {i}" for i in range(1, count))))
    return Source(name, splits["train"], names, splits.get("validation"), splits.get("test"))


def read_segmentation_folder(
    root: Path | None, image_size: Size = None, channels: int = 3, classes: str = ""
) -> Source:
    """root/images/* and root/masks/* with the same names but for the ending; or the same under train/, val/, test/.

    Mask values are the numbers of the classes (0 the background), or 0 and 255 for background and foreground.

    Args:
        root: the folder.
        image_size: (height, width) to resize to (masks by the nearest pixel); without it all must have one size.
        channels: 3 (RGB) or 1 (grey).
        classes: names of the classes, background first, separated by commas.
    """
    root = require_root(
        root, "segmentation_folder", "a folder that holds images/ and masks/, or train/, val/, test/ of such"
    )
    splits = {
        name: _split(_pairs_by_stem(folder), channels, image_size, None) for name, folder in split_folders(root).items()
    }
    return _with_classes(root.name, splits, classes, root)


def read_lgg_mri(root: Path | None, image_size: Size = None) -> Source:
    """Brain MRI slices with masks of low-grade glioma: 110 patients, 3,929 slices of 256 x 256, three MR sequences.

    The files as shipped (Buda et al. 2019, arXiv 1906.03720): kaggle_3m/PATIENT/PATIENT_N.tif and PATIENT_N_mask.tif.
    Splits are by patient.
    """
    expected = (
        "the folder kaggle_3m (one folder per patient, NAME.tif and NAME_mask.tif) of the LGG MRI segmentation set"
    )
    root = require_root(root, "lgg_mri", expected)
    root = root / "kaggle_3m" if (root / "kaggle_3m").is_dir() else root
    pairs, groups = [], []
    patients = sorted(path for path in root.iterdir() if path.is_dir())
    for number, patient in enumerate(patients):
        for image in pictures_in(patient):
            mask = image.with_name(f"{image.stem}_mask{image.suffix}")
            if image.stem.endswith("_mask"):
                continue
            if not mask.is_file():
                raise FileNotFoundError(f"{image} has no mask {mask.name}")
            pairs.append((image, mask))
            groups.append(number)
    if not pairs:
        raise FileNotFoundError(
            f"data set 'lgg_mri': {root} holds no patient folder with .tif files; root must be {expected}"
        )
    return _with_classes("lgg_mri", {"train": _split(pairs, 3, image_size, groups)}, "background, tumour", root)
