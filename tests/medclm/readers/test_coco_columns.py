"""What the columns of a COCO file give is what a look at each annotation gives, whatever is wrong with the file."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.medclm_files import HALF
from tests.medclm.pictures import picture
from trimtab.medclm import readers
from trimtab.medclm.coco import encode
from trimtab.medclm.readers.coco_columns import Columns
from trimtab.medclm.records import ImageRecord, Rejected

Document = dict[str, list[Any]]
FILES = 7


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("columns") / "images"
    for number in range(FILES):
        picture(folder / f"{number}.png")
    (folder / "out.png").symlink_to(picture(folder.parent / "elsewhere.png"))
    return folder


def document() -> Document:
    """Seven images of 100 x 80, the last without boxes; whole and broken numbers, boxes that touch the edge."""
    entries = [{"id": 10 * n, "file_name": f"{n}.png", "width": 100, "height": 80} for n in range(FILES)]
    entries[1] |= {"patient": 7, "split": "val"}
    corners = [[0, 0, 100, 80], [10, 20, 30.5, 40], [99.25, 79, 0.75, 1], [10, 20, 30, 40], [11, 20, 30, 40]]
    boxes = [
        {"id": 3 * n + 1, "image_id": 10 * (n * 5 % (FILES - 1)), "category_id": 1 + n % 2, "bbox": corners[n % 5]}
        for n in range(15)
    ]
    return {
        "images": entries,
        "annotations": boxes,
        "categories": [{"id": 1, "name": "mass"}, {"id": 2, "name": "node"}],
    }


def both(file: Path, images: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, Any]:
    """(by columns where the file lets it, one by one); each the items, or the text of the error."""

    def read() -> Any:
        try:
            return list(readers.create("coco", **options).read(file, images))
        except ValueError as error:
            return str(error)

    found = read()
    with monkeypatch.context() as patch:
        patch.setattr(Columns, "of", lambda *_: None)
        return found, read()


def change(place: str, number: int, **values: Any) -> Callable[[Document], None]:
    return lambda found: found[place][number].update(values)


CHANGES: dict[str, Callable[[Document], None]] = {
    "nothing": lambda found: None,
    "no annotations": lambda found: found["annotations"].clear(),
    "a box that ends beyond the edge": change("annotations", 4, bbox=[90, 10, 20, 20]),
    "a box that rounding puts beyond the edge": change("annotations", 4, bbox=[90, 10, 10.5, 20]),
    "a box without area": change("annotations", 4, bbox=[90, 10, 0, 20]),
    "a box that is NaN": change("annotations", 4, bbox=[float("nan"), 10, 5, 20]),
    "a box as wide as no float": change("annotations", 4, bbox=[1, 10, 10**320, 20]),
    "a box of text": change("annotations", 4, bbox=["1", "2", "3", "4"]),
    "a box of three": change("annotations", 4, bbox=[1, 2, 3]),
    "no box": lambda found: found["annotations"][4].pop("bbox"),
    "a box twice": lambda found: found["annotations"].append({**found["annotations"][4], "id": 900}),
    "a box twice with another class": lambda found: found["annotations"].append(
        {**found["annotations"][4], "id": 900, "category_id": 2}
    ),
    "a box twice with another class of that name": lambda found: (
        found["categories"].append({"id": 3, "name": "mass"}),
        found["annotations"].append({**found["annotations"][4], "id": 900, "category_id": 3}),
    )[0],
    "an outline": change("annotations", 4, segmentation=[[1, 1, 9, 1, 9, 9]]),
    "run lengths": change("annotations", 4, segmentation={"size": [80, 100], "counts": encode(HALF)}),
    "run lengths of another size": change("annotations", 4, segmentation={"size": [8, 10], "counts": [80]}),
    "a crowd": change("annotations", 4, iscrowd=1),
    "no crowd": change("annotations", 4, iscrowd=0),
    "an id twice": change("annotations", 4, id=1),
    "an id of text": change("annotations", 4, id="1"),
    "no id": lambda found: found["annotations"][4].pop("id"),
    "an id of ninety digits": change("annotations", 4, id=10**90),
    "an id below zero": change("annotations", 4, id=-5),
    "an image's id as a whole float": change("annotations", 4, image_id=20.0),
    "an image that is not listed": change("annotations", 4, image_id=999),
    "no listed image": lambda found: [one.update(image_id=999) for one in found["annotations"]] and None,
    "a class without name": change("annotations", 4, category_id=8),
    "an annotation that is none": lambda found: found["annotations"].append([1, 2]),
    "a file twice": lambda found: found["images"].append({**found["images"][2], "id": 500}),
    "a file twice that disagrees": lambda found: found["images"].append({**found["images"][2], "id": 500, "split": "test"}),
    "an image's id twice": lambda found: found["images"].append({**found["images"][2], "file_name": "3.png"}),
    "a size of none": change("images", 2, width=0),
    "a size that is wrong": change("images", 2, width=50),
    "a size that is turned": change("images", 2, width=80, height=100),
    "a split of no known name": change("images", 2, split="dev"),
    "a split in capitals": change("images", 2, split="TEST"),
    "a file that is missing": change("images", 2, file_name="nine.png"),
    "a file outside": change("images", 2, file_name="../2.png"),
    "a link outside": change("images", 2, file_name="out.png"),
    "a file below the folder's own name": change("images", 2, file_name="images/2.png"),
}  # fmt: skip


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_columns_give_what_a_look_at_each_gives(
    name: str, trust: bool, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = document()
    CHANGES[name](found)
    (tmp_path / "set.json").write_text(json.dumps(found))
    ours, slow = both(tmp_path / "set.json", images, monkeypatch, trust_sizes=trust)
    assert ours == slow
    assert repr(ours) == repr(slow)  # 1 and 1.0 are equal, and so are lists of numpy's numbers
    if name == "nothing":
        assert [type(one) for one in ours] == [ImageRecord] * FILES
        assert [len(one.lesions) for one in ours] == [3, 2, 2, 2, 3, 3, 0]


@pytest.mark.parametrize(
    "options",
    [
        {"rename": {"mass": "lump"}, "source": "ours", "modality": "X-ray"}, {"anatomy": ("node",)}, {"clip": True},
        {"patient_pattern": r"^(\d)"}, {"patients": {"3": "p3", "4.png": "p4"}}, {"orientation": "upright"},
    ],
)  # fmt: skip
def test_options_of_the_reader_hold_for_columns_too(
    options: Any, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = document()
    found["annotations"][3]["bbox"] = [90, 10, 20, 20]
    (tmp_path / "set.json").write_text(json.dumps(found))
    for trust in (False, True):
        ours, slow = both(tmp_path / "set.json", images, monkeypatch, trust_sizes=trust, **options)
        assert repr(ours) == repr(slow)


def test_many_faults_at_once(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    changes = [
        one for name, one in CHANGES.items() if name not in ("no annotations", "no listed image", "no box", "no id")
    ]
    rejected = 0
    for _ in range(60):
        found = document()
        for one in chance.sample(changes, 3):
            one(found)
        (tmp_path / "set.json").write_text(json.dumps(found))
        ours, slow = both(tmp_path / "set.json", images, monkeypatch, trust_sizes=chance.random() < 0.5)
        assert repr(ours) == repr(slow)
        rejected += any(isinstance(one, Rejected) for one in ours)
    assert rejected > 40


def test_what_is_made_of_columns_is_a_record_like_any_other(tmp_path: Path, images: Path) -> None:
    (tmp_path / "set.json").write_text(json.dumps(document()))
    record = next(iter(readers.create("coco").read(tmp_path / "set.json", images)))
    assert ImageRecord.model_validate_json(record.model_dump_json()) == record
    assert record.lesions[0].model_copy(update={"label": "other"}).label == "other"
    assert record.lesions[0].box.model_fields_set == {"x0", "y0", "x1", "y1"}
