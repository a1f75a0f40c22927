"""Organ masks by segmentation networks of others: torchxrayvision, TotalSegmentator, CXAS.

None of them is a dependency, and all of them download weights at first use. Where that is not possible, masks from a
folder ("png", "labels", "rle", "nifti") need none of them.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.checks import number
from trimtab.medclm.organs.nifti import NiftiOrgans
from trimtab.medclm.organs.source import (
    OrganError,
    fitted,
    organ_name,
    without_empty,
)
from trimtab.medclm.pixels import Mask
from trimtab.medclm.records import ImageRecord


class Segmenter(Protocol):
    """A network that gives one score map per target."""

    targets: Sequence[str]

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, 1, height, width) in [-1024, 1024] to logits (1, targets, any height, any width)."""
        ...


class XrayVisionOrgans:
    """PSPNet of torchxrayvision (Lian et al. 2021, arXiv 2104.10326): 14 structures of a frontal chest X-ray; Apache-2.0.

    Args:
        model: a network of the same interface, its weights loaded; without it torchxrayvision's.
        threshold: least probability inside a mask; 0.5.
        device: where the network runs.

    Raises:
        ImportError: torchxrayvision is not installed. RuntimeError: its weights could not be had.
        ValueError: threshold is not in (0, 1).
    """

    def __init__(self, model: Segmenter | None = None, threshold: float = 0.5, device: str = "cpu") -> None:
        number("threshold", threshold, above=0, below=1)
        if model is None:
            networks = _required("torchxrayvision.baseline_models.chestx_det", "torchxrayvision")
            model = _with_weights("torchxrayvision", lambda: networks.PSPNet().to(device))
        self.model, self.threshold, self.device = model, threshold, device

    @torch.no_grad()
    def masks(self, record: ImageRecord, image: NDArray[np.uint8] | None) -> Mapping[str, Mask]:
        """The structures seen, at the image's size."""
        grey = _grey(record, image)
        scaled = torch.from_numpy(grey)[None, None].to(self.device) / 255 * 2048 - 1024
        logits = self.model(scaled)
        if logits.ndim != 4 or logits.shape[1] != len(self.model.targets):
            raise OrganError(record.file, "network gives another number of maps than targets", str(tuple(logits.shape)))
        wanted = (record.height, record.width)
        scores = torch.nn.functional.interpolate(logits.float(), wanted, mode="bilinear").sigmoid()[0]
        inside = (scores >= self.threshold).cpu().numpy()
        names = [_XRAY_NAMES.get(target, organ_name(target)) for target in self.model.targets]
        return without_empty(zip(names, inside, strict=True))


_XRAY_NAMES = {
    "Facies Diaphragmatica": "diaphragm",
    "Weasand": "trachea",
    "Left Hilus Pulmonis": "left hilum",
    "Right Hilus Pulmonis": "right hilum",
}


class TotalSegmentatorOrgans:
    """TotalSegmentator (arXiv 2208.05868) on CT or MR volumes; task "total" is Apache-2.0. Images are slices of volumes.

    An image CASE/SLICE.png needs the whole volume VOLUMES/CASE.nii.gz: a lone slice cannot be segmented. Each volume is
    segmented once into `cache`, then read as by `NiftiOrgans`.

    Args:
        volumes: folder of the volumes.
        cache: folder for the label maps.
        task: "total" (CT) or "total_mr".
        fast: 3 mm instead of 1.5 mm.
        first_slice: as in `NiftiOrgans`.
        device: "cpu", "gpu" or "gpu:1".

    Raises:
        ImportError: TotalSegmentator is not installed.
        NotADirectoryError: there is no such folder of volumes.
    """

    def __init__(
        self,
        volumes: Path,
        cache: Path,
        task: str = "total",
        *,
        fast: bool = True,
        first_slice: int = 0,
        device: str = "cpu",
    ) -> None:
        if not volumes.is_dir():
            raise NotADirectoryError(f"{volumes} is not a folder; TotalSegmentator needs whole volumes, CASE.nii.gz")
        self._segment = _required("totalsegmentator.python_api", "TotalSegmentator").totalsegmentator
        classes = _required("totalsegmentator.map_to_binary", "TotalSegmentator").class_map
        if task not in classes:
            raise ValueError(f"task {task!r} is not one of {', '.join(classes)}")
        self.volumes, self.cache, self.task, self.fast, self.device = volumes, cache, task, fast, device
        cache.mkdir(parents=True, exist_ok=True)
        self._labels = NiftiOrgans(cache, {value: sided(name) for value, name in classes[task].items()}, first_slice)

    def masks(self, record: ImageRecord, image: NDArray[np.uint8] | None) -> Mapping[str, Mask]:
        """The organs in the slice."""
        case = PurePosixPath(record.file).parent
        volume = self.volumes / f"{case}.nii.gz"
        if not case.name or not volume.is_file():
            raise OrganError(record.file, "volume is missing; a lone slice cannot be segmented", str(volume))
        done = self.cache / f"{case}.nii.gz"
        if not done.is_file():
            done.parent.mkdir(parents=True, exist_ok=True)
            part = done.with_name(f"part_{done.name}")
            _with_weights(
                "TotalSegmentator",
                lambda: self._segment(
                    volume, part, ml=True, fast=self.fast, task=self.task, device=self.device, quiet=True
                ),
            )
            part.replace(done)
        return self._labels.masks(record, image)


class CxasOrgans:
    """CXAS (Seibold et al. 2022): 159 structures of a chest X-ray. Its licence is for non-commercial use only.

    Args:
        images: the folder the records' files lie in; CXAS reads PNG, JPEG and DICOM files itself.
        accept_noncommercial: must be set to True by whoever may use it.
        keep: structures to keep; without it lungs, lobes, heart, ribs, spine, mediastinum and diaphragm.
        model: `cxas.CXAS` already made; without it one is made with its default weights.

    Raises:
        PermissionError: `accept_noncommercial` is not set.
        ImportError: cxas is not installed.
    """

    def __init__(
        self,
        images: Path,
        *,
        accept_noncommercial: bool = False,
        keep: Sequence[str] = (),
        model: Any = None,
        labels: Mapping[int, str] | None = None,
    ) -> None:
        if not accept_noncommercial:
            raise PermissionError(
                "CXAS is licensed for non-commercial use only; set accept_noncommercial=True if that covers your use, "
                "or take another organ source"
            )
        self.images, self.keep = images, frozenset(keep)
        if model is None:
            made = _required("cxas.segmentor", "cxas").CXAS
            model = _with_weights("cxas", lambda: made(model_name="UNet_ResNet50_default", gpus="cpu"))
        if labels is None:
            labels = {int(key): name for key, name in _required("cxas.label_mapper", "cxas").id2label_dict.items()}
        self.model, self.labels = model, dict(labels)

    def masks(self, record: ImageRecord, image: NDArray[np.uint8] | None) -> Mapping[str, Mask]:
        """The structures seen, at the image's size."""
        found = self.model.process_file(str(self.images / record.file))["segmentation_preds"][0].cpu().numpy()
        wanted = {number: sided(name) for number, name in self.labels.items()}
        masks = {
            name: np.asarray(_to_size(found[number], record))
            for number, name in wanted.items()
            if (name in self.keep if self.keep else _is_common(name))
        }
        return without_empty(masks.items())


def sided(name: str) -> str:
    """A structure's name with its side in front, and lobes by their short name.

    >>> sided("lung_upper_lobe_left"), sided("kidney_right"), sided("heart")
    ('left upper lobe', 'right kidney', 'heart')
    """
    plain = organ_name(name)
    lobe = re.fullmatch(r"lung (upper|middle|lower) lobe (left|right)", plain)
    if lobe:
        return f"{lobe[2]} {lobe[1]} lobe"
    tail = re.fullmatch(r"(.+) (left|right)", plain)
    return f"{tail[2]} {tail[1]}" if tail else plain


def _is_common(name: str) -> bool:
    return bool(
        re.fullmatch(r"((left|right) (lung|(upper|middle|lower) lobe))|heart|ribs|spine|mediastinum|diaphragm", name)
    )


def _to_size(mask: NDArray[np.generic], record: ImageRecord) -> Mask:
    scaled = fitted(np.asarray(mask, dtype=np.uint8), record, Path(record.file), resize=True)
    return np.asarray(scaled > 0)


def _grey(record: ImageRecord, image: NDArray[np.uint8] | None) -> NDArray[np.float32]:
    if image is None:
        raise OrganError(record.file, "this organ source needs the pixels of the image")
    return np.asarray(image if image.ndim == 2 else image.mean(axis=2), dtype=np.float32)


def _required(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this organ source needs {package}: pip install {package}. Masks from a folder (png, labels, rle, nifti) work "
            f"without it. ({error})"
        ) from error


def _with_weights(package: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except OSError as error:  # no network, no space, a broken file
        raise RuntimeError(
            f"{package} could not load its weights, which it downloads at first use: {error}. Download them as its pages "
            "say, or take masks from a folder (png, labels, rle, nifti)"
        ) from error
