"""Training files: what each trainer expects, boxes in each dialect."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.medclm.samples import LABELS, source, two_classes
from trimtab.medclm.boxes import ModelBoxes
from trimtab.medclm.building import DataSetFolder, build
from trimtab.medclm.building.dialects import in_dialect
from trimtab.medclm.building.exports import _swift, export, rows_with_records
from trimtab.medclm.texts import TemplateGenerator, asks
from trimtab.medclm.texts.prompts import prompt_of
from trimtab.medclm.texts.wording import boxes_in


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    return build(source(root / "source"), root / "out").folder


def _entries(files):
    for path in files.values():
        text = path.read_text()
        yield from map(json.loads, text.splitlines()) if path.suffix == ".jsonl" else json.loads(text)


def _count(folder):
    return sum(1 for _ in folder.rows())


def test_llava_has_one_image_token_and_the_target(folder, tmp_path):
    found = list(_entries(export(folder, "llava", tmp_path)))
    targets = Counter(row.target for row, _ in folder.rows())
    assert Counter(entry["conversations"][1]["value"] for entry in found) == targets
    for entry in found:
        human, model = entry["conversations"]
        assert (human["from"], model["from"]) == ("human", "gpt")
        assert human["value"].count("<image>") == 1
        assert (folder.path / entry["image"]).is_file()


def test_sharegpt_has_as_many_image_tokens_as_images_and_is_registered(folder, tmp_path):
    files = export(folder, "sharegpt", tmp_path)
    found = list(_entries(files))
    assert len(found) == _count(folder)
    for entry in found:
        tokens = sum(message["content"].count("<image>") for message in entry["messages"])
        assert tokens == len(entry["images"]) == 1
        assert [message["role"] for message in entry["messages"]] == ["user", "assistant"]
    info = json.loads((tmp_path / "dataset_info.json").read_text())
    assert {entry["file_name"] for entry in info.values()} == {path.name for path in files.values()}


def test_trl_spans_cut_out_reasoning_and_answer(folder, tmp_path):
    rows = {row.row_id: row for row, _ in folder.rows()}
    found = list(_entries(export(folder, "trl", tmp_path, dialect="thousand", stages=("easy", "hard"))))
    assert {entry["stage"] for entry in found} == {"easy", "hard"}
    for entry in found:
        target = entry["completion"][0]["content"][0]["text"]
        assert target[slice(*entry["answer_span"])] == rows[entry["row_id"]].answer
        reasoning = target[slice(*entry["reasoning_span"])]
        assert bool(reasoning) == (entry["stage"] != "hard")
        assert "0." not in reasoning


def test_swift_has_a_box_for_every_placeholder(folder, tmp_path):
    rows = [row for row, _ in folder.rows()]
    found = list(_entries(export(folder, "swift", tmp_path)))
    placeholders = 0
    for entry in found:
        number = sum(message["content"].count("<bbox>") for message in entry["messages"])
        placeholders += number
        assert len(entry.get("objects", {"bbox": []})["bbox"]) == number
        assert not any("[0." in message["content"] for message in entry["messages"])
    assert placeholders >= sum(row.stage == "easy" for row in rows)


def test_every_box_of_a_count_is_written_as_itself():
    image = two_classes()
    asked = next(ask for ask in asks(image, image.lesions[1], "easy", LABELS) if ask.kind == "count")
    row = TemplateGenerator().generate(image, image.lesions[1], "easy", 0, asked)
    first, second = (one.box for one in image.lesions[:2])
    assert boxes_in(f"{row.question} {row.reasoning}") == [box.corners for box in (second, second, first, second)]
    there = in_dialect(row, image, "thousand")
    assert re.findall(r"\[[\d, ]+\]", there.question) == ["[100, 500, 300, 700]"]
    assert re.findall(r"\[[\d, ]+\]", there.reasoning) == [
        "[100, 500, 300, 700]", "[100, 200, 200, 300]", "[100, 500, 300, 700]"
    ]  # fmt: skip
    entry = _swift(row, "i.png", image, ModelBoxes.named("unit"))
    assert entry["objects"]["bbox"] == [[10, 40, 30, 56], [10, 40, 30, 56], [10, 16, 20, 24], [10, 40, 30, 56]]
    assert [message["content"].count("<bbox>") for message in entry["messages"]] == [1, 3]
    with pytest.raises(ValueError, match="the box of no lesion of its image"):
        in_dialect(row, image.model_copy(update={"lesions": image.lesions[:1]}), "thousand")


@pytest.mark.parametrize("to", ["llava", "sharegpt", "trl", "swift"])
def test_prompts_are_the_trainers_and_no_prompt_has_two_target_forms(folder, tmp_path, to):
    wanted = Counter(prompt_of(row) for row, _ in folder.rows()) if to != "swift" else None
    prompts, forms = Counter(), {}
    for entry in _entries(export(folder, to, tmp_path)):
        if to == "llava":
            prompt, target = (part["value"].removeprefix("<image>\n") for part in entry["conversations"])
            image = entry["image"]
        elif to == "trl":
            prompt, target = entry["prompt"][0]["content"][1]["text"], entry["completion"][0]["content"][0]["text"]
            (image,) = entry["images"]
        else:
            prompt, target = (part["content"].removeprefix("<image>") for part in entry["messages"])
            (image,) = entry["images"]
        prompts[prompt] += 1
        assert prompt.endswith(("Answer only.", "Reason first, then answer."))
        forms.setdefault(prompt, set()).add(target.startswith("Reasoning:"))
        assert Path(image).is_absolute()
        assert Path(image).is_file()
    assert wanted is None or prompts == wanted
    assert all(len(found) == 1 for found in forms.values())
    assert set.union(*forms.values()) == {True, False}


def test_relative_paths_on_request(folder, tmp_path):
    for entry in _entries(export(folder, "llava", tmp_path, absolute=False)):
        assert not Path(entry["image"]).is_absolute()
        assert (folder.path / entry["image"]).is_file()


def test_coco_is_read_by_pycocotools_and_keeps_every_lesion(folder, tmp_path):
    from pycocotools.coco import COCO

    lesions = {}
    for path in export(folder, "coco", tmp_path).values():
        read = COCO(str(path))
        for annotation in read.anns.values():
            image = read.imgs[annotation["image_id"]]
            lesions.setdefault(image["file_name"], []).append((annotation["bbox"], annotation["host"]))
    assert sum(map(len, lesions.values())) == sum(len(record.lesions) for record in folder.records())
    for record in folder.records():
        for lesion in record.lesions:
            x0, y0, x1, y1 = lesion.box.pixels(40, 40)
            assert any(
                box == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1) and organ == lesion.host.organ
                for box, organ in lesions[f"images/{record.file}"]
            )


def test_texts_in_a_dialect_quote_the_box_in_it(folder):
    row, _, record = next(found for found in rows_with_records(folder) if found[0].stage == "easy")
    there = in_dialect(row, record, "qwen2.5")
    assert str(list(row.box.pixels(56, 56))) in there.question  # 40 x 40 is enlarged to 56 x 56
    assert there.target[slice(*there.spans["answer"])] == row.answer
    assert there.target[slice(*there.spans["reasoning"])] == there.reasoning


def test_bad_requests_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="cannot export to 'kosmos'"):
        export(folder, "kosmos", tmp_path)
    with pytest.raises(ValueError, match="in its own way"):
        export(folder, "coco", tmp_path, dialect="thousand")
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        export(DataSetFolder(tmp_path), "llava", tmp_path)
    with pytest.raises(ValueError, match="200 times"):
        ModelBoxes.named("qwen2.5").seen(1, 300)
    with pytest.raises(ValueError, match="boxes must be one of"):
        export(folder, "trl", tmp_path, dialect="qwen2")


def test_a_models_folder_decides_format_and_resizing(folder, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    row, _, _ = next(found for found in rows_with_records(folder) if found[0].stage == "easy")

    def first(family, **processor):
        (model / "config.json").write_text(json.dumps({"model_type": family}))
        (model / "preprocessor_config.json").write_text(json.dumps(processor))
        entries = _entries(export(folder, "trl", tmp_path / "out", model=model))
        return next(one["prompt"][0]["content"][1]["text"] for one in entries if one["row_id"] == row.row_id)

    qwen = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2}
    for least, side in ((56 * 56, 56), (112 * 112, 112)):  # the same picture of 40 x 40, seen at two sizes
        wanted = str(list(row.box.pixels(side, side)))
        assert wanted in first("qwen2_5_vl", **qwen, size={"shortest_edge": least, "longest_edge": 12845056})
    assert str(list(row.box.pixels(1000, 1000))) in first(
        "qwen3_vl", **qwen, size={"shortest_edge": 9, "longest_edge": 99999}
    )
    x0, y0, x1, y1 = row.box.pixels(1000, 1000)
    assert str([y0, x0, y1, x1]) in first(
        "gemma3", image_processor_type="Gemma3ImageProcessor", size={"height": 8, "width": 8}
    )
    for family, kind, said in (
        ("llava", "CLIPImageProcessor", "family 'llava' writes boxes is not known"),
        ("qwen3_vl", "LlavaNextImageProcessor", "image processor LlavaNextImageProcessor: how it resizes is not known"),
        ("florence2", "CLIPImageProcessor", "do_center_crop: the model does not see the whole picture"),
    ):
        with pytest.raises(ValueError, match=said):
            first(family, image_processor_type=kind, size={"height": 8, "width": 8})
    first("gemma3", image_processor_type="Gemma3ImageProcessor", size={"height": 8, "width": 8})
    with pytest.raises(ValueError, match="whose own are 'gemma'"):
        export(folder, "trl", tmp_path / "out", dialect="qwen3", model=model)
    with pytest.raises(ValueError, match="leave the dialect and the model out"):
        export(folder, "coco", tmp_path / "out", model=model)
