"""Batches of a split whose order and augmentation depend on (seed, epoch, batch) alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from trimtab.checks import one_of, whole
from trimtab.datasets.augment import AUGMENTS, Augment, alternating, apply, draw
from trimtab.datasets.dataset import DataSet, Split
from trimtab.datasets.room import is_on_disk
from trimtab.datasets.seeds import generator

Batch = tuple[Tensor, Tensor]


class Batches:
    """Serves normalised batches of a split that lies whole on the device as uint8, or on disk where it is large.

    Of a text it serves windows of bytes, int64 (B, T), with the bytes that follow; with "shift" each window starts at a
    random byte of its own stretch, so that the places where the text was cut are others in each epoch.

    Batch j of epoch k is a pure function of (seed, k, j): a run that starts again at any epoch or batch sees what it
    would have seen. Ranks take every `world_size`-th image of a batch of `world_size * batch_size`, so two ranks
    together see exactly what one process with twice the batch sees, augmentation included.

    Values: `(pixel / 255 - mean) / std` with the statistics of the training split, float32.

    Args:
        split: one of `dataset`'s splits.
        dataset: gives mean and std.
        batch_size: images per batch and rank.
        seed: of order and augmentation.
        augment: "none", "flip" (mirrored with probability 1/2), "crop_flip" (also a crop out of the image with a
            black border), "shift" (the crop alone), "alternating" (mirrored in every second epoch, from a start that the
            seed draws for each image, and a crop out of the image with a mirrored border); masks of a segmentation go
            along. The border is an eighth of the side (4 pixels at 32), a mirrored one a sixteenth. Texts: "none" or
            "shift".
        shuffle: a new order in each epoch; otherwise the split's own.
        drop_last: leave out the last batch when it is not full. Default: as `shuffle`.
        device: where images lie and batches are made.
        rank, world_size: this process among those that share the split.

    Raises:
        ValueError: an empty split, a batch size below 1 or (with `drop_last`) above the images at hand, an unknown
            augmentation, or one that a text cannot have, a rank outside the world.

    Example:
        >>> from trimtab import datasets
        >>> digits = datasets.load("digits")
        >>> batches = Batches(digits.train, digits, 64, seed=0, augment="shift")
        >>> images, targets = next(batches.epoch(0))
        >>> images.shape, targets.shape, len(batches)
        (torch.Size([64, 1, 8, 8]), torch.Size([64]), 20)
    """

    def __init__(
        self,
        split: Split,
        dataset: DataSet,
        batch_size: int,
        *,
        seed: int,
        augment: Augment = "none",
        shuffle: bool = True,
        drop_last: bool | None = None,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        one_of("augment", augment, AUGMENTS)
        whole("batch_size", batch_size, 1)
        whole("rank", rank, 0, world_size - 1)
        if not len(split):
            raise ValueError(f"this split of {dataset.name!r} holds no image")
        if split.task == "text" and augment not in ("none", "shift"):
            raise ValueError(f"augment is {augment!r}, which is for images; {dataset.name!r} is a text: none or shift")
        self.task = split.task
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.augment: Augment = augment
        self.drop_last = shuffle if drop_last is None else drop_last
        self.rank, self.world_size = rank, world_size
        self.device = torch.device(device)
        if self.drop_last and len(split) < batch_size * world_size:
            raise ValueError(
                f"batch_size {batch_size} on {world_size} process(es) exceeds the {len(split)} images of this split of "
                f"{dataset.name!r}, so that no full batch exists; use a smaller batch or drop_last=False"
            )
        self.images = split.images if is_on_disk(split.images) else split.images.to(self.device)
        self.targets = split.targets.to(self.device)
        if self.task == "text":
            return
        scale = torch.tensor([1 / (255 * value) for value in dataset.std], dtype=torch.float32)
        shift = torch.tensor([-m / s for m, s in zip(dataset.mean, dataset.std, strict=True)], dtype=torch.float32)
        self._mirrored_first = torch.rand(len(split), generator=generator(seed, "mirrored")) < 0.5
        self._scale = scale.to(self.device).view(1, -1, 1, 1)
        self._shift = shift.to(self.device).view(1, -1, 1, 1)

    def __len__(self) -> int:
        """Batches in one epoch of this rank; with `drop_last` the same on every rank."""
        if self.drop_last:
            return len(self.images) // (self.batch_size * self.world_size)
        own = len(range(self.rank, len(self.images), self.world_size))
        return -(-own // self.batch_size)

    def _order(self, purpose: str, epoch: int) -> Tensor:
        count = len(self.images)
        if not self.shuffle and purpose == "order":
            return torch.arange(count)
        return torch.randperm(count, generator=generator(self.seed, purpose, epoch))

    def _batch(self, order: Tensor, number: int, epoch: int, augment: Augment) -> Batch:
        start = number * self.batch_size
        chosen = order[self.rank :: self.world_size][start : start + self.batch_size]
        if self.task == "text":
            return self._windows(chosen, number, epoch, augment)
        index = chosen.to(self.device)
        images, targets = self.images[index.to(self.images.device)].to(self.device), self.targets[index]
        if augment != "none":
            height, width = images.shape[-2:]
            stream = generator(self.seed, "augment", epoch, number)
            draws = draw(augment, self.batch_size * self.world_size, (height, width), stream)
            draws = draws.part(self.rank, self.world_size, len(index))
            if augment == "alternating":
                draws = replace(draws, mirrored=alternating(self._mirrored_first[chosen], epoch))
            images = apply(augment, images, draws)
            targets = apply(augment, targets, draws) if targets.ndim > 1 else targets
        return torch.addcmul(self._shift, images.float(), self._scale), targets

    def _windows(self, chosen: Tensor, number: int, epoch: int, augment: Augment) -> Batch:
        """Windows of the text from the starts of the chosen ones, or from somewhere behind each."""
        length = self.images.shape[1]
        starts = chosen * length
        if augment == "shift":
            stream = generator(self.seed, "augment", epoch, number)
            moves = torch.randint(length, (self.batch_size * self.world_size,), generator=stream)
            starts = starts + moves[self.rank :: self.world_size][: len(starts)]
        starts = starts.clamp(max=self.images.numel() - length).to(self.device)
        places = starts[:, None] + torch.arange(length, device=self.device)
        return self.images.view(-1)[places].long(), self.targets.view(-1)[places]

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Batches of epoch `epoch` (0, 1, ...), from `start_batch` on: (images float32 (B, C, H, W), targets int64).

        Of a text: (bytes int64 (B, T), bytes that follow int64 (B, T)).

        Raises:
            ValueError: a negative epoch, or a start outside 0..len(self).
        """
        whole("epoch", epoch, 0)
        whole("start_batch", start_batch, 0, len(self))
        return self._stream(epoch, start_batch)

    def _stream(self, epoch: int, start_batch: int) -> Iterator[Batch]:
        order = self._order("order", epoch)
        for number in range(start_batch, len(self)):
            yield self._batch(order, number, epoch, self.augment)

    def ids(self, epoch: int) -> Iterator[Tensor]:
        """Rows of the split in each batch of that epoch, int64 on the CPU; what scores of examples go by.

        Example:
            >>> from trimtab import datasets
            >>> digits = datasets.load("digits")
            >>> batches = Batches(digits.train, digits, 64, seed=0)
            >>> ids, (images, targets) = next(zip(batches.ids(0), batches.epoch(0), strict=True))
            >>> bool((digits.train.targets[ids] == targets).all())
            True
        """
        mine = self._order("order", whole("epoch", epoch, 0))[self.rank :: self.world_size]
        return iter(torch.split(mine, self.batch_size)[: len(self)])

    def sample(self, batches: int, seed: int) -> Sample:
        """A fixed random choice of at most `batches` batches, augmented as these are, to go through again and again.

        Made for the re-estimation of BatchNorm statistics: the network has learnt to live with the statistics of augmented
        images, and those of plain ones cost accuracy (docs/decisions/005-recalibrate-on-augmented-images.md).

        Raises:
            ValueError: fewer than one batch asked for.
        """
        return Sample(self, min(whole("batches", batches, 1), len(self)), seed)


class Sample:
    """What `Batches.sample` gives: an iterable of batches that is the same each time."""

    def __init__(self, batches: Batches, count: int, seed: int) -> None:
        self.batches, self.count, self.seed = batches, count, seed

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        order = self.batches._order("sample", self.seed)  # noqa: SLF001  (a sample is drawn by its own batches, in this file)
        for number in range(self.count):
            yield self.batches._batch(order, number, self.seed, self.batches.augment)  # noqa: SLF001  (a sample is drawn by its own batches, in this file)
