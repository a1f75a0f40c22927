"""What the pictures of a built set show and where: pictures, boxes and organ masks in memory, and what each patch holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, one_hot

from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.organs.rle import read_organs
from trimtab.medclm.records import ImageRecord
from trimtab.medclm.training.grounding import cover
from trimtab.medclm.training.rows import BOX_COLOUR


@dataclass(frozen=True)
class Sights:
    """Pictures with what they show.

    Attributes:
        pictures: (n, 3, side, side) uint8, the whole picture resized as CLIP's processor does without cutting.
        boxes: (n, most, 4) corners in fractions, zeros behind the last.
        labels: (n, most) class of each box, -1 behind the last.
        organs: (n, organs, grid, grid) share of each patch.
    """

    pictures: Tensor
    boxes: Tensor
    labels: Tensor
    organs: Tensor

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, places: Tensor) -> Sights:
        return Sights(self.pictures[places], self.boxes[places], self.labels[places], self.organs[places])

    def to(self, device: torch.device) -> Sights:
        """The same on a device."""
        return Sights(*(part.to(device) for part in (self.pictures, self.boxes, self.labels, self.organs)))


def read_sights(
    folder: DataSetFolder,
    records: Sequence[ImageRecord],
    classes: Sequence[str],
    organs: Sequence[str],
    side: int,
    grid: int,
) -> Sights:
    """The pictures of `records` at `side` x `side` pixels, their boxes, and their organ masks on `grid` x `grid` patches."""
    most = max((len(record.lesions) for record in records), default=0)
    found = Sights(
        torch.zeros(len(records), 3, side, side, dtype=torch.uint8), torch.zeros(len(records), most, 4),
        torch.full((len(records), most), -1), torch.zeros(len(records), len(organs), grid, grid),
    )  # fmt: skip
    for place, record in enumerate(records):
        found.pictures[place] = _picture(folder.images / record.file, side)
        for number, lesion in enumerate(record.lesions):
            found.boxes[place, number] = torch.tensor(lesion.box.corners)
            found.labels[place, number] = classes.index(lesion.label)
        if record.organ_file is not None and organs:
            for organ, mask in read_organs(folder.organs / record.organ_file).items():
                if organ in organs:
                    share = adaptive_avg_pool2d(torch.from_numpy(mask).float()[None], grid)[0]
                    found.organs[place, organs.index(organ)] = share
    return found


def _picture(file: Path, side: int) -> Tensor:
    with Image.open(file) as opened:
        small = opened.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(side, side, 3).permute(2, 0, 1)


def drawn(sights: Sights, chosen: Tensor) -> Sights:
    """The outline of box `chosen[i]` drawn on picture i as on Easy rows (see `rows.with_box`); -1 draws none."""
    side = sights.pictures.shape[-1]
    box = sights.boxes[torch.arange(len(chosen)), chosen.clamp(min=0)]
    edges = (box * side + 0.5).floor()
    width = max(side // 128, 1)
    places = torch.arange(side, device=box.device)

    def within(margin: int) -> Tensor:
        x = (places >= edges[:, 0:1] + margin) & (places < edges[:, 2:3] - margin)
        y = (places >= edges[:, 1:2] + margin) & (places < edges[:, 3:4] - margin)
        return y[:, :, None] & x[:, None, :]

    line = within(0) & ~within(width) & (chosen >= 0)[:, None, None]
    colour = torch.tensor(BOX_COLOUR, dtype=torch.uint8, device=box.device)[None, :, None, None]
    return Sights(
        torch.where(line[:, None], colour, sights.pictures), sights.boxes, sights.labels, sights.organs
    )  # fmt: skip


@dataclass(frozen=True)
class PatchTruth:
    """What each patch holds; patches in reading order.

    Attributes:
        lesions: (n, patches, classes) share of the patch that a box of the class covers, or share of the box that lies in the
            patch, whichever is larger: a nodule smaller than a patch counts as much as a large finding.
        present: (n, classes) whether any part of a box of the class is in the picture.
        organs: (n, patches, organs) share of the patch.
        marked: (n, patches) as `lesions`, of the box that is drawn.
        place: (patches, 2) x and y of the patch's middle.
    """

    lesions: Tensor
    present: Tensor
    organs: Tensor
    marked: Tensor
    place: Tensor


def patch_truth(sights: Sights, classes: int, chosen: Tensor | None = None) -> PatchTruth:
    """The truth on the grid of the organ masks; `chosen` as in `drawn`."""
    grid = sights.organs.shape[-1]
    shares = _box_shares(sights.boxes, grid)
    real = one_hot(sights.labels + 1, classes + 1)[..., 1:]
    lesions = (
        (shares.flatten(2)[..., None] * real[:, :, None]).amax(1)
        if shares.shape[1]
        else shares.new_zeros(len(sights), grid * grid, classes)
    )
    marked = shares.new_zeros(len(sights), grid * grid)
    if chosen is not None and shares.shape[1]:
        own = shares[torch.arange(len(chosen)), chosen.clamp(min=0)].flatten(1)
        marked = own * (chosen >= 0)[:, None]
    middles = (torch.arange(grid, device=shares.device) + 0.5) / grid
    place = torch.stack([middles.repeat(grid), middles.repeat_interleave(grid)], dim=-1)
    return PatchTruth(
        lesions, (lesions.amax(1) > 0).float(), sights.organs.flatten(2).transpose(1, 2), marked, place
    )  # fmt: skip


def _box_shares(boxes: Tensor, grid: int) -> Tensor:
    """(n, most, grid, grid): the larger of the patch's share that the box covers and the box's share in the patch."""
    covered = cover(boxes, grid, grid)
    return torch.maximum(covered, covered / covered.sum((-2, -1), keepdim=True).clamp(min=1e-9))


def normalised(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, side, side) in 0 to 255 as CLIP's image processor hands them to the tower; float32."""
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    mean, std = (
        torch.tensor(one, device=pictures.device)[:, None, None] for one in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    )
    return (pictures.float() / 255 - mean) / std
