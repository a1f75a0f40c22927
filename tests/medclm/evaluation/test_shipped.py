"""Question sets in the layouts that the public descriptions of SLAKE, PathVQA and PMC-VQA give."""

import json
import pickle

import pytest
from PIL import Image

from trimtab.medclm.evaluation.benchmarks import load_benchmark


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (640, 320)).save(path)


SLAKE = {
    "img_id": 1, "img_name": "xmlab1/source.jpg", "question": "Where is the atelectasis?", "answer": "Left", "q_lang": "en",
    "location": "Lung", "modality": "X-Ray", "answer_type": "OPEN", "base_type": "vqa", "content_type": "Position",
    "triple": ["vhead", "_", "_"], "qid": 9,
}  # fmt: skip


@pytest.mark.parametrize("file", ["validate.json", "validation.json"])
def test_slake_with_all_its_keys(tmp_path, file):
    picture(tmp_path / "imgs" / "xmlab1" / "source.jpg")
    (tmp_path / "imgs" / "xmlab1" / "detection.json").write_text('[{"Atelectasis": [160.0, 80.0, 320.0, 40.0]}]')
    chinese = {**SLAKE, "q_lang": "zh", "question": "肺不张在哪里?", "answer": "左", "qid": 10}
    (tmp_path / file).write_text(json.dumps([SLAKE, chinese]))
    (one,) = load_benchmark("slake", tmp_path, "validation").questions
    assert (one.name, one.cluster, one.domain, one.kind, one.closed) == ("9", "1", "Lung X-Ray", "Position", False)
    assert one.box.corners == (0.25, 0.25, 0.75, 0.375)  # left, top, width, height
    (other,) = load_benchmark("slake", tmp_path, "validation", "zh").questions
    assert (other.name, other.answer) == ("10", "左")


PATH = [
    {"image": "val_0261", "question": "What have lost their nuclei?", "answer": "neutrophils"},
    {"image": "val_0261", "question": "Is the nucleus lost?", "answer": "yes"},
    {"image": "val_0262", "question": "Is it there?", "answer": "no"},
]


def test_path_vqa_as_its_authors_ship_it(tmp_path):
    picture(tmp_path / "images" / "val" / "val_0261.jpg")
    qas = tmp_path / "qas" / "val" / "val_qa.pkl"
    qas.parent.mkdir(parents=True)
    qas.write_bytes(pickle.dumps(PATH))
    found = load_benchmark("path_vqa", tmp_path, "validation")
    assert [(one.answer, one.kind, one.choices) for one in found.questions] == [
        ("neutrophils", "what", ()), ("yes", "yes/no", ("yes", "no")),
    ]  # fmt: skip
    assert [(one.row, one.reason) for one in found.rejected] == [("[2]", "no image val_0262.jpg")]


class Malicious:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (pickle.dumps([Malicious()]), r"val_qa\.pkl: no pickle of plain lists and texts: it wants to import builtins\.print"),
        (pickle.dumps([Malicious()], protocol=0), "it wants to import"),
        (pickle.dumps(PATH)[:-20], "no pickle of plain lists"),
        (b"version https://git-lfs", "no pickle of plain lists"),
        (b"", "no pickle of plain lists"),
        (pickle.dumps({"image": "a"}), "must hold a list"),
    ],
)  # fmt: skip
def test_a_pickle_that_would_run_something_is_refused(tmp_path, capsys, content, said):
    qas = tmp_path / "qas" / "val" / "val_qa.pkl"
    qas.parent.mkdir(parents=True)
    qas.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        load_benchmark("path_vqa", tmp_path, "validation")
    assert capsys.readouterr().out == ""


CHOICES = ("Diffuse uptake pattern", "Focal uptake pattern", "No uptake pattern", "Cannot determine")
ROW = ",".join(f" {letter}:{text} " for letter, text in zip("ABCD", CHOICES, strict=True))


@pytest.mark.parametrize(
    ("file", "images", "head", "rest"),
    [
        # version 1, its header as in the first upload too
        ("test.csv", "images", "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label",
         f"Focal uptake pattern,{ROW},B"),
        ("test.csv", "images", "Figure_path,Question,Anwser,Choice A,Choice B,Choice C,Choice D,Answer_label",
         f"B:Focal uptake pattern,{ROW},B"),
        # version 2
        ("test_2.csv", "images_2", "Figure_path,Question,Caption,Choice A,Choice B,Choice C,Choice D,Answer",
         f'"A, b.",{ROW},B'),
        ("test2.csv", "figures", "Figure_path,Question,Caption,Choice A,Choice B,Choice C,Choice D,Answer", f"x,{ROW},B"),
    ],
)  # fmt: skip
def test_pmc_vqa_in_both_versions(tmp_path, file, images, head, rest):
    picture(tmp_path / images / "PMC1_F1.jpg")
    if images == "images_2":
        (tmp_path / "images").mkdir()  # version 1's lies beside: the second takes its own
    (tmp_path / file).write_text(f"{head}\nPMC1_F1.jpg,What is the uptake pattern?,{rest}\n")
    (one,) = load_benchmark("pmc_vqa", tmp_path, "test").questions
    assert (one.answer, one.choices) == (CHOICES[1], CHOICES)
    assert one.image == tmp_path / images / "PMC1_F1.jpg"
