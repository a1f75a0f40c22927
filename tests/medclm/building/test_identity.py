"""One picture, one identity: copies under other names are found by their pixels, and no split shares one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.medclm.samples import source
from trimtab.medclm.building import BuildOptions, build
from trimtab.medclm.building.checking import check
from trimtab.medclm.building.identity import DISPUTED, SAME
from trimtab.medclm.splits import split_of


def twinned(folder: Path, of: int, patient: str, boxes: bool = True, suffix: str = ".png") -> BuildOptions:
    """The sample set with picture `of` once more, under another name, id and patient, with its boxes or without."""
    options = source(folder)
    document: dict[str, list[dict[str, Any]]] = json.loads(options.detections.read_text())
    with Image.open(options.images / f"{of:03d}.png") as picture:
        picture.convert("RGB").save(options.images / f"copy{suffix}")
    document["images"].append({**document["images"][of], "id": 99, "file_name": f"copy{suffix}", "patient": patient})
    if boxes:
        document["annotations"] += [
            {**one, "id": one["id"] + 100, "image_id": 99} for one in document["annotations"] if one["image_id"] == of
        ]
    options.detections.write_text(json.dumps(document))
    masks = (folder / "organs" / f"{of:03d}.json").read_text()
    (folder / "organs" / "copy.json").write_text(masks)
    return options


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_a_copy_that_says_the_same_is_left_out(tmp_path: Path, suffix: str) -> None:
    result = build(twinned(tmp_path / "source", 3, "other", suffix=suffix), tmp_path / "out")
    assert result.statistics["images"] == 12
    (fault,) = [one for one in result.folder.rejected() if one.reason == SAME]
    assert (fault.row, "also 3" in fault.value) == ("99", True)
    assert not (tmp_path / "out" / "images" / f"copy{suffix}").exists()
    assert (tmp_path / "out" / "images" / "003.png").exists()
    assert check(result.folder, decode=True).reasons == {}


def test_copies_that_deny_each_other_are_all_left_out(tmp_path: Path) -> None:
    result = build(twinned(tmp_path / "source", 3, "other", boxes=False), tmp_path / "out")
    assert {one.row for one in result.folder.rejected() if one.reason == DISPUTED} == {"3", "99"}
    assert not {"3", "99"} & {row.image_id for row, _ in result.folder.rows()}
    assert check(result.folder, decode=True).reasons == {}


def test_patients_who_share_a_picture_share_a_split(tmp_path: Path) -> None:
    fractions, seed = (0.4, 0.3, 0.3), 0
    apart = next(
        f"q{n}"
        for n in range(99)
        if split_of(f"q{n}", "set", fractions, seed) != split_of("p1", "set", fractions, seed)
    )
    options = twinned(tmp_path / "source", 3, apart).model_copy(update={"fractions": fractions, "seed": seed})
    document = json.loads(options.detections.read_text())
    document["images"][5]["patient"] = apart  # another picture of the patient who shares picture 3 with p1
    options.detections.write_text(json.dumps(document))
    records = {record.image_id: record for record in build(options, tmp_path / "out").folder.records()}
    assert (records["3"].patient, records["5"].patient) == ("p1", apart)
    assert records["3"].split == records["5"].split == split_of("p1", "set", fractions, seed)


def test_pictures_of_one_value_are_no_copies_of_each_other(tmp_path: Path) -> None:
    options = source(tmp_path / "source")
    for name in ("001", "002"):
        Image.fromarray(np.zeros((40, 40), dtype=np.uint8)).save(options.images / f"{name}.png")
    assert build(options, tmp_path / "out").statistics["images"] == 12


def test_check_sees_a_picture_that_is_there_twice(tmp_path: Path) -> None:
    result = build(source(tmp_path / "source"), tmp_path / "out")
    (tmp_path / "out" / "images" / "002.png").write_bytes((tmp_path / "out" / "images" / "001.png").read_bytes())
    assert check(result.folder, decode=True).reasons["picture is in the set twice"] == 1


def test_a_failed_build_does_not_block_its_folder_and_a_finished_one_does(tmp_path: Path) -> None:
    good = source(tmp_path / "source")
    with pytest.raises(ValueError, match="has no class"):
        build(
            good.model_copy(update={"organs": (("coco", {"file": good.detections, "organs": ("heart",)}),)}),
            tmp_path / "o",
        )
    assert build(good, tmp_path / "o").statistics["images"] == 12
    with pytest.raises(ValueError, match="built with other options: seed"):
        build(good.model_copy(update={"seed": 1}), tmp_path / "o")
