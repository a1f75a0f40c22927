"""Each way to write boxes through the whole loop: real processor class, tiny random model of the real architecture."""

import json
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.medclm.boxes.tiny_models import MODELS
from trimtab.medclm.boxes import boxes_of, iou
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.building.folder import Manifest
from trimtab.medclm.evaluation.generation import replies
from trimtab.medclm.evaluation.questions import questions_of
from trimtab.medclm.records import Box, ImageRecord, Lesion, Row
from trimtab.medclm.texts.generator import target_of
from trimtab.medclm.texts.steps import marked
from trimtab.medclm.texts.wording import boxes_in, named_boxes
from trimtab.medclm.training.models import load_finished
from trimtab.medclm.training.options import TrainOptions
from trimtab.medclm.training.rows import as_written, examples_of
from trimtab.medclm.training.run import train

SIZE = (48, 32)
QUICK = [
    pytest.param(name, marks=() if name in ("paligemma", "florence2") else pytest.mark.slow) for name in MODELS
]  # tokens of their own: short answers


def one_box_set(folder: Path) -> Path:
    """A dark and a bright picture, each with a blob in another corner; the question asks for its box."""
    (folder / "images").mkdir(parents=True)
    rows, records = [], []
    for number, (shade, corners) in enumerate([(0, (4, 4, 20, 14)), (120, (26, 12, 44, 28))]):
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
    DataSetFolder(folder).write_manifest(
        Manifest(trimtab="test", state="complete", options={}, inputs={}, counts={"rows": len(rows), "images": 2})
    )
    return folder


@pytest.mark.parametrize("name", QUICK)
def test_train_generate_parse_iou(name, tmp_path):
    """Two pictures learnt by heart; their boxes come back from what the model generates."""
    data = one_box_set(tmp_path / "set")
    folder = DataSetFolder(data)
    own = [one.row.target for one in examples_of(folder, ["train"])]
    for guess in ("qwen2_5_vl", "qwen3_vl", "internvl", "gemma3"):  # texts that the tokenizer learns from
        own += [f"Answer: {text}" for text in TEXTS[guess]]
    model_folder = MODELS[name](tmp_path / "model", [*own, "Mark the blob. Answer only."])
    boxes = boxes_of(model_folder)
    written = as_written(folder, examples_of(folder, ["train"]), boxes)
    assert all(boxes.format.parse(one.row.answer, boxes.seen(*SIZE)) for one in written)
    options = TrainOptions(
        model=str(model_folder), steps=80, epochs=2, batch=4, lr=1e-2, warmup=0.1, schedule="mixed", boxes="model",
        draw_boxes=False, save_every=80, weight_decay=0.0,
    )  # fmt: skip
    done = train(data, tmp_path / "run", options)
    assert done["state"] == "finished"
    model, processor = load_finished(tmp_path / "run")
    trained = boxes_of(model, processor)
    assert trained == boxes
    asked = questions_of(folder, ["train"])
    said = replies(model, processor, asked, most=320, boxes=trained)
    for question, text in zip(asked, said, strict=True):
        (found,) = boxes_in(text)
        assert iou(found, question.box.corners) >= 0.5, (name, text, question.answer)


TEXTS = {
    "qwen2_5_vl": ['```json\n[\n\t{"bbox_2d": [4, 4, 20, 14], "label": "blob"}\n]\n```'] * 3,
    "qwen3_vl": ['```json\n[\n\t{"bbox_2d": [83, 125, 417, 438], "label": "blob"}\n]\n```'] * 3,
    "internvl": ["<ref>blob</ref><box>[[83, 125, 417, 438]]</box>"] * 3,
    "gemma3": ['```json\n[\n\t{"box_2d": [83, 125, 417, 438], "label": "blob"}\n]\n```'] * 3,
}
