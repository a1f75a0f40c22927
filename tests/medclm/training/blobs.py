"""A data set of pictures with a bright blob on one side: what a model must look at the picture for."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from trimtab.medclm.building.folder import DataSetFolder, Manifest
from trimtab.medclm.records import Box, Row
from trimtab.medclm.texts.generator import target_of
from trimtab.medclm.training.run import train

SIZE = 32


def blob_row(number: int, side: str, stage: str, split: str, box: Box) -> Row:
    reasoning = "" if stage == "hard" else f"The blob is seen at the {side}."
    target, where, answer = target_of(reasoning, side)
    return Row(
        row_id=f"{number}:{stage}", image_id=str(number), patient=f"p{number}", split=split, stage=stage,
        domain="blob x picture", question_type="side", question="Which side?", reasoning=reasoning, answer=side, target=target,
        spans={"reasoning": where, "answer": answer}, box=box, generator="test", prompt_id="test", seed=0,
    )  # fmt: skip


def blob_set(folder: Path, images: int = 48, seed: int = 0, shuffled: bool = False) -> Path:
    """A finished data set; `shuffled` gives every row the picture of another one."""
    chance = random.Random(seed)
    (folder / "images").mkdir(parents=True)
    rows, files = [], []
    for number in range(images):
        side = "left" if number % 2 else "right"
        split = "train" if number < images * 2 // 3 else "test"
        x = chance.randint(1, 6) + (0 if side == "left" else SIZE // 2)
        y = chance.randint(2, SIZE - 12)
        picture = Image.new("RGB", (SIZE, SIZE))
        ImageDraw.Draw(picture).ellipse((x, y, x + 8, y + 8), fill=(255, 255, 255))
        name = f"images/{number}.png"
        picture.save(folder / name)
        box = Box.of_pixels(x, y, x + 9, y + 9, SIZE, SIZE)
        for stage in ("easy", "medium", "hard"):
            rows.append(blob_row(number, side, stage, split, box))
            files.append(name)
    if shuffled:
        chance.shuffle(files)
    lines = [json.dumps({"image": file, **row.model_dump(mode="json")}) for file, row in zip(files, rows, strict=True)]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    DataSetFolder(folder).write_manifest(
        Manifest(trimtab="test", state="complete", options={}, inputs={}, counts={"rows": len(rows), "images": images})
    )
    return folder


def train_until(step, data, out, options):
    """A run that is interrupted after this step."""

    def die(done, steps, loss):
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, out, options, progress=die)
