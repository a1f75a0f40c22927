"""Sets of drawn pictures with one blob each, and the question for its box."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.building.folder import Manifest
from trimtab.medclm.records import Box, ImageRecord, Lesion, Row
from trimtab.medclm.texts.generator import target_of
from trimtab.medclm.texts.steps import marked
from trimtab.medclm.texts.wording import named_boxes

SIZE = (48, 32)
TWO = [(0, (4, 4, 20, 14)), (120, (26, 12, 44, 28))]
"""A dark and a bright picture, each with a blob in another corner."""


def set_of(folder: Path, pictures: Sequence[tuple[int, tuple[int, int, int, int]]]) -> Path:
    """A finished set of (grey value, corners of the blob in pixels): rows without reasoning, all for training."""
    (folder / "images").mkdir(parents=True)
    rows, records = [], []
    for number, (shade, corners) in enumerate(pictures):
        picture = Image.new("RGB", SIZE, (shade,) * 3)
        ImageDraw.Draw(picture).ellipse(corners, fill=(255, 255, 255))
        picture.save(folder / "images" / f"{number}.png")
        box = Box.of_pixels(*corners, *SIZE)
        lesion = Lesion(lesion_id=f"{number}/1", image_id=str(number), label="blob", box=box, source_row="test:1")
        records.append(
            ImageRecord(
                image_id=str(number), file=f"{number}.png", width=SIZE[0], height=SIZE[1], patient=f"p{number}",
                modality="picture", source="test", lesions=(lesion,),
            )
        )  # fmt: skip
        answer = named_boxes([lesion])
        target, reasoning, span = target_of("", answer)
        rows += [
            Row(
                row_id=f"{number}:{stage}", image_id=str(number), patient=f"p{number}", split="train", stage=stage,
                domain="blob x picture", question_type="refer", question="Mark the blob.", reasoning="", answer=answer,
                target=target, spans={"reasoning": reasoning, "answer": span}, objects=marked([lesion]), box=box,
                lesion_id=lesion.lesion_id, generator="test", prompt_id="test", seed=0,
            )
            for stage in ("medium", "hard")
        ]  # fmt: skip
    images = [f"images/{row.image_id}.png" for row in rows]
    lines = [
        json.dumps({"image": image, **row.model_dump(mode="json")}) for image, row in zip(images, rows, strict=True)
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "records.jsonl").write_text("\n".join(one.model_dump_json() for one in records) + "\n")
    counts = {"rows": len(rows), "images": len(records)}
    DataSetFolder(folder).write_manifest(
        Manifest(trimtab="test", state="complete", options={}, inputs={}, counts=counts)
    )
    return folder
