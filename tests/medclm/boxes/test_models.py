"""Each way to write boxes through the whole loop: real processor class, tiny random model of the real architecture."""

import pytest

from tests.medclm.boxes.pictures import SIZE, TWO, set_of
from tests.medclm.boxes.tiny_models import MODELS
from trimtab.medclm.boxes import boxes_of, iou
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.evaluation.evaluate import evaluate
from trimtab.medclm.evaluation.questions import in_words_of, questions_of
from trimtab.medclm.texts.wording import boxes_in
from trimtab.medclm.training.models import load_finished
from trimtab.medclm.training.options import TrainOptions
from trimtab.medclm.training.rows import as_written, examples_of
from trimtab.medclm.training.run import train

QUICK = [
    pytest.param(name, marks=() if name in ("paligemma", "florence2") else pytest.mark.slow) for name in MODELS
]  # tokens of their own: short answers


@pytest.mark.parametrize("name", QUICK)
def test_train_generate_parse_iou(name, tmp_path):
    """Two pictures learnt by heart; their boxes come back from what the model generates."""
    data = set_of(tmp_path / "set", TWO)
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
    asked = in_words_of(questions_of(folder, ["train"]), folder, trained)
    found = evaluate(model, processor, asked, [], boxes=trained)
    for one, question in zip(found.predictions, asked, strict=True):
        (box,) = boxes_in(one["replies"]["model"])
        assert iou(box, question.box.corners) >= 0.5, (name, one)
    values = {
        system: next(row["value"] for row in one["rows"] if (row["group"], row["rule"]) == ("all", "boxes50.1"))
        for system, one in found.summary["systems"].items()
    }
    assert values == {"model": 1.0, "text only": 0.0}  # the other picture has its box elsewhere


TEXTS = {
    "qwen2_5_vl": ['```json\n[\n\t{"bbox_2d": [4, 4, 20, 14], "label": "blob"}\n]\n```'] * 3,
    "qwen3_vl": ['```json\n[\n\t{"bbox_2d": [83, 125, 417, 438], "label": "blob"}\n]\n```'] * 3,
    "internvl": ["<ref>blob</ref><box>[[83, 125, 417, 438]]</box>"] * 3,
    "gemma3": ['```json\n[\n\t{"box_2d": [83, 125, 417, 438], "label": "blob"}\n]\n```'] * 3,
}
