"""The vision tower of tiny-llava taught to see: boxes, organs, places and drawn boxes of the training patients."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from trimtab.checks import non_negative, positive, whole
from trimtab.files import replace_atomically, write_text
from trimtab.inputs import named, read_json_mapping
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.records import ImageRecord
from trimtab.medclm.training.sights import PatchTruth, Sights, drawn, normalised, patch_truth, read_sights
from trimtab.medclm.training.tiny import IMAGE, PATCH, tiny_tower
from trimtab.medclm.training.tower_figures import figures
from trimtab.medclm.training.whitening import whiten_

MARKED = 0.5
"""Share of the training pictures with boxes on which one is drawn, as on Easy rows (ours)."""
RARE = -4.0
"""First bias of the classes: most patches hold none (ours)."""


@dataclass(frozen=True)
class PretrainOptions:
    """Settings of the tower's pretraining; ours, from a pilot on drawn X-rays.

    Raises:
        ValueError: a setting is out of range.
    """

    epochs: int = 32
    """Passes over the training pictures."""
    batch: int = 32
    """Pictures of a step."""
    lr: float = 3e-3
    """Peak learning rate of AdamW: a fifth of the steps up, then a cosine down to 0."""
    weight_decay: float = 0.05
    """Of AdamW."""
    positive: float = 8.0
    """Weight of patches that hold a class against those that do not."""
    image: float = 0.2
    """Weight of the term for the whole picture."""
    organs: float = 0.5
    """Weight of the organs' term."""
    most: int = 20_000
    """At most so many training pictures, spread evenly: 49 kB of memory each."""
    seed: int = 42
    """Of weights, order and drawn boxes."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "most"):
            whole(name, getattr(self, name), 1)
        whole("seed", self.seed, 0)
        for name in ("lr", "positive"):
            positive(name, getattr(self, name))
        for name in ("image", "organs", "weight_decay"):
            non_negative(name, getattr(self, name))


class Teacher(nn.Module):
    """A vision tower with one linear layer on each patch's features: lesions, organs, the drawn box, x and y.

    Args:
        tower: a `CLIPVisionModel`; its last hidden states, which LLaVA takes, are what is taught.
        classes, organs: how many.
    """

    def __init__(self, tower: Any, classes: int, organs: int) -> None:
        super().__init__()
        self.tower, self.parts = tower, (classes, organs, 1, 2)
        self.head = nn.Linear(tower.config.hidden_size, sum(self.parts))
        with torch.no_grad():
            self.head.bias[:classes] = RARE

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(lesions, organs, marked, place): logits, and x and y, of each patch; (n, patches, ...)."""
        hidden = self.tower(pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        lesions, organs, marked, place = self.head(hidden).split(self.parts, dim=-1)
        return lesions, organs, marked[..., 0], place


def tower_loss(said: tuple[Tensor, Tensor, Tensor, Tensor], truth: PatchTruth, options: PretrainOptions) -> Tensor:
    """What the tower minimises; shape ().

    BCE(lesions, weight `positive`) + image BCE(logsumexp over patches) + organs BCE(organs)
    + organs BCE(drawn box) + squared error of x, y
    """
    lesions, organs, marked, place = said
    weight = torch.tensor(options.positive, device=lesions.device)
    loss = cross_entropy(lesions, truth.lesions, pos_weight=weight)
    loss = loss + options.image * cross_entropy(lesions.logsumexp(1), truth.present)
    if organs.shape[-1]:
        loss = loss + options.organs * cross_entropy(organs, truth.organs)
    loss = loss + options.organs * cross_entropy(marked, truth.marked, pos_weight=weight)
    return loss + (place - truth.place).square().mean()


def pretrain(
    data: Path, out: Path, options: PretrainOptions, progress: Callable[[int, int, float | None], None] | None = None
) -> dict[str, Any]:
    """Teach a new tower what the training pictures of a built set show; goes on after an interruption.

    Leaves `pretrain.json` (options, state, classes, CPU seconds of all its processes, figures), `tower/` (a `CLIPVisionModel`
    as transformers reads it), and while it runs `checkpoint.safetensors`, written after every epoch. The same options, data and
    machine give the same tower, interrupted or not.

    Args:
        data: folder of `trimtab medclm build`.
        out: folder for the tower.
        options: of the pretraining.
        progress: called with (epoch, epochs, loss or None).

    Returns:
        What `pretrain.json` holds; its figures are of the validation pictures (see `tower_figures`), which choose nothing.

    Raises:
        ValueError: no training picture has a box, held-out pictures have classes that no training picture has, or `out` holds
            a pretraining with other options or data.
    """
    file = out / "pretrain.json"
    wanted = {"options": asdict(options), "data": str(data)}
    if file.is_file():
        found = read_json_mapping(file)
        with named(file):
            same, state = {key: found[key] for key in wanted} == wanted, found["state"]
        if not same:
            raise ValueError(f"{out} holds a pretraining with other options or data; choose another folder")
        if state == "finished":
            return found
    from transformers.utils.logging import disable_progress_bar

    folder = DataSetFolder(data)
    training, validation, classes, organs = _records(folder, options.most)
    write_text(file, json.dumps({**wanted, "state": "running"}, indent=1) + "\n")
    start = time.process_time()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sights, held_out = (
        read_sights(folder, records, classes, organs, IMAGE, IMAGE // PATCH) for records in (training, validation)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        teacher = Teacher(tiny_tower(), len(classes), len(organs))
        whiten_(teacher.tower, sights.pictures)
    teacher.to(device)
    losses, earlier = _teach(teacher, sights, options, out / "checkpoint.safetensors", start, progress)
    teacher.eval()
    done = {
        **wanted, "state": "finished", "classes": classes, "organs": organs, "pictures": len(training),
        "cpu_seconds": round(earlier + time.process_time() - start, 2), "losses": losses,
        "figures": figures(teacher, held_out, classes, organs),
    }  # fmt: skip
    disable_progress_bar()
    teacher.tower.save_pretrained(out / "tower")
    write_text(file, json.dumps(done, indent=1) + "\n")
    (out / "checkpoint.safetensors").unlink(missing_ok=True)
    return read_json_mapping(file)


def _records(folder: DataSetFolder, most: int) -> tuple[list[ImageRecord], list[ImageRecord], list[str], list[str]]:
    """(training, validation, classes, organs); see `pretrain` for what is refused."""
    folder.finished()
    without = "; `trimtab medclm train --pretrain 0` trains without"
    if not folder.records_file.is_file():
        raise FileNotFoundError(
            f"{folder.path} has no records.jsonl, so there are no boxes to pretrain a vision tower on{without}"
        )
    by_split: dict[str, list[ImageRecord]] = {"train": [], "validation": [], "test": []}
    for record in folder.records():
        by_split[record.split].append(record)
    labels = {split: {lesion.label for one in records for lesion in one.lesions} for split, records in by_split.items()}
    if not labels["train"]:
        raise ValueError(
            f"{folder.path}: none of the {len(by_split['train']):,} training pictures has a box to pretrain a vision tower "
            f"on{without}"
        )
    if absent := sorted((labels["validation"] | labels["test"]) - labels["train"]):
        raise ValueError(
            f"{folder.path}: held-out pictures have boxes of {', '.join(absent)}, training pictures have none: build with "
            f"another split or seed, or leave the class out{without}"
        )
    training = by_split["train"]
    if len(training) > most:
        training = [training[place * len(training) // most] for place in range(most)]
    organs = sorted({organ for record in training for organ in record.organs})
    return training, by_split["validation"], sorted(labels["train"]), organs


def _teach(
    teacher: Teacher,
    sights: Sights,
    options: PretrainOptions,
    checkpoint: Path,
    start: float,
    progress: Callable[[int, int, float | None], None] | None,
) -> tuple[list[float], float]:
    """Train to the end, from the checkpoint if there is one: the mean loss of each epoch, CPU seconds before the checkpoint.

    `start` is the process's CPU time at which this process began with it.
    """
    device = next(teacher.parameters()).device
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    per_epoch = max(len(sights) // options.batch, 1)
    total = options.epochs * per_epoch
    losses, earlier = _load(teacher, optimizer, checkpoint) if checkpoint.is_file() else ([], 0.0)
    teacher.train()
    for epoch in range(len(losses), options.epochs):
        chance = torch.Generator().manual_seed(options.seed * 1_000_003 + epoch)
        order = torch.randperm(len(sights), generator=chance)
        seen = torch.zeros((), device=device)
        for number in range(per_epoch):
            batch = sights[order[number * options.batch : (number + 1) * options.batch]]
            pixels, truth = _lesson(batch, teacher.parts[0], chance, device)
            loss = tower_loss(teacher(pixels), truth, options)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = options.lr * _height(epoch * per_epoch + number, total)
            optimizer.step()
            seen += loss.detach()
        losses.append(float(seen) / per_epoch)
        _save(teacher, optimizer, checkpoint, losses, earlier + time.process_time() - start)
        if progress is not None:
            progress(epoch + 1, options.epochs, losses[-1])
    return losses, earlier


def _height(step: int, total: int) -> float:
    """The learning rate's share of its peak: up over a fifth of the steps, then half a cosine."""
    rising = total / 5
    if step < rising:
        return (step + 1) / (rising + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (total - rising)))


def _lesson(batch: Sights, classes: int, chance: torch.Generator, device: torch.device) -> tuple[Tensor, PatchTruth]:
    """A batch, half of the pictures that have boxes with one of them drawn, and its truth."""
    there = batch.labels >= 0
    picks = torch.rand(there.shape, generator=chance).masked_fill(~there, -1.0)
    marked = (torch.rand(len(batch), generator=chance) < MARKED) & there.any(1)
    chosen = torch.where(marked, picks.argmax(1), -1)
    shown = drawn(batch, chosen).to(device)
    return normalised(shown.pictures), patch_truth(shown, classes, chosen.to(device))


def _save(teacher: Teacher, optimizer: torch.optim.Optimizer, file: Path, losses: list[float], seconds: float) -> None:
    tensors = {f"teacher.{name}": value for name, value in teacher.state_dict().items()}
    for place, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{place}.{name}": value for name, value in state.items()}
    kept = {"losses": json.dumps(losses), "cpu_seconds": repr(seconds)}
    replace_atomically(file, lambda path: save_file(tensors, path, metadata=kept))


def _load(teacher: Teacher, optimizer: torch.optim.Optimizer, file: Path) -> tuple[list[float], float]:
    with (
        named(file, "is not a checkpoint of this pretraining; delete it to begin anew"),
        safe_open(file, "pt") as opened,
    ):
        losses = [float(loss) for loss in json.loads(opened.metadata()["losses"])]
        seconds = float(opened.metadata().get("cpu_seconds", 0))  # an older version kept none
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
        teacher.load_state_dict({k.removeprefix("teacher."): v for k, v in tensors.items() if k.startswith("teacher.")})
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, place, key = name.split(".")
                state.setdefault(int(place), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return losses, seconds
