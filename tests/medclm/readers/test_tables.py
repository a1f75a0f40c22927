from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.medclm.pictures import mask, parted, picture
from tests.medclm.test_pixels import dicom_file
from trimtab.medclm import readers

VINDR = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"


def read(name: str, folder: Path, text: str | bytes, **options: object):
    table = folder / "table.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parted(readers.create(name, **options).read(table, folder / "images"))


def test_vindr_merges_readers_and_counts_who_agrees(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    text = VINDR + (
        "a,Nodule,8,R1,10,20,30,40\na,Nodule,8,R2,12,20,32,40\na,No finding,14,R3,,,,\n"
        "a,Nodule,8,R1,60,20,80,40\na,Mass,9,R2,11,20,31,40\n"
    )
    records, rejected = read("vindr", tmp_path, text)
    assert not rejected
    found = {
        (lesion.label, tuple(np.round(np.array(lesion.box.corners) * (100, 80, 100, 80)).astype(int).tolist())): lesion
        for lesion in records[0].lesions
    }
    assert set(found) == {
        ("Nodule", (11, 20, 31, 40)),
        ("Nodule", (60, 20, 80, 40)),
        ("Mass", (11, 20, 31, 40)),
    }
    both = found["Nodule", (11, 20, 31, 40)]
    assert both.flags == ("readers_2_of_3",)
    assert both.source_row == "table.csv:line 2+3"
    assert found["Mass", (11, 20, 31, 40)].flags == ("readers_1_of_3",)


def test_vindr_negatives_sizes_and_lone_readers(tmp_path: Path) -> None:
    for name in "abc":
        picture(tmp_path / "images" / f"{name}.png")
    text = VINDR.replace("x_min", "width,height,x_min") + (
        "a,No finding,14,R1,1000,800,,,,\na,No finding,14,R2,1000,800,,,,\n"
        "b,Nodule,8,R1,1000,800,100,200,600,600\n"
        "c,Nodule,8,R1,1000,800,1,1,9,9\nc,Nodule,8,R1,1001,800,1,1,9,9\n"
    )
    records, rejected = read("vindr", tmp_path, text)
    assert [len(record.lesions) for record in records] == [0, 1]
    assert records[1].lesions[0].box.corners == pytest.approx((0.1, 0.25, 0.6, 0.75))
    assert [row.reason for row in rejected] == ["rows of an image disagree on its size"]
    records, rejected = read("vindr", tmp_path, text, least_readers=2)
    assert [record.image_id for record in records] == ["a"]
    assert "box drawn by too few readers" in [row.reason for row in rejected]


def test_vindr_bad_rows(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    text = VINDR + "a,Nodule,8,R1,10,,30,40\na,,8,R1,10,20,30,40\nz,Nodule,8,R1,1,1,2,2\na,b\n"
    records, rejected = read("vindr", tmp_path, text.encode() + b"a,\xff,8,R1,1,1,2,2\n")
    assert not records
    assert {(row.row, row.reason) for row in rejected} == {
        ("line 2", "box has a corner that is not a number"),
        ("line 3", "row without class name"),
        ("line 4", "image is missing"),
        ("line 5", "line has another number of fields"),
        ("line 6", "line is not UTF-8"),
        ("line 2", "no usable box is left, so the image is no negative"),
    }
    with pytest.raises(ValueError, match=r"columns \['class_name'\] are missing"):
        read("vindr", tmp_path, VINDR.replace("class_name", "finding") + "a,b,1,R,1,1,2,2\n")
    with pytest.raises(ValueError, match="is empty"):
        read("vindr", tmp_path, "")


NIH = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"


def test_nih_measures_in_1024_and_knows_the_patient(tmp_path: Path) -> None:
    for name in ("00000013_005", "00000020_000", "00000021_000"):
        picture(tmp_path / "images" / "images_001" / f"{name}.png", 64, 64)
    entries = tmp_path / "Data_Entry_2017.csv"
    entries.write_text(
        "Image Index,Finding Labels\n00000020_000.png,No Finding\n00000021_000.png,Mass\n00000013_005.png,No Finding\n"
    )
    text = NIH + "00000013_005.png,Infiltrate,512,256,256,512,,,\n"
    records, rejected = read("nih", tmp_path, text, entries=entries)
    first, negative = records
    assert first.lesions[0].box.corners == (0.5, 0.25, 0.75, 0.75)
    assert (first.lesions[0].label, first.patient, first.modality) == ("Infiltration", "00000013", "chest X-ray")
    assert first.file == "images_001/00000013_005.png"
    assert (negative.image_id, negative.lesions, negative.source) == ("00000020_000", (), first.source)
    assert [row.reason for row in rejected] == ["image is called normal but has boxes"]
    assert len(read("nih", tmp_path, text)[0]) == 1, "images without boxes are not negatives by themselves"


RSNA = "patientId,x,y,width,height,Target\n"


def test_rsna_takes_only_normal_images_as_negatives(tmp_path: Path) -> None:
    for name in "abc":
        picture(tmp_path / "images" / f"{name}.png")
    classes = tmp_path / "classes.csv"
    classes.write_text("patientId,class\na,Lung Opacity\nb,Normal\nc,No Lung Opacity / Not Normal\n")
    text = RSNA + "a,10,20,50,40,1\nb,,,,,0\nc,,,,,0\n"
    records, rejected = read("rsna", tmp_path, text, classes=classes)
    assert [(record.image_id, len(record.lesions)) for record in records] == [("a", 1), ("b", 0)]
    assert records[0].lesions[0].box.corners == (0.1, 0.25, 0.6, 0.75)
    assert records[0].lesions[0].label == "lung opacity"
    assert [(row.row, row.reason) for row in rejected] == [("line 4", "image has no box but is not normal either")]
    assert len(read("rsna", tmp_path, text)[0]) == 3
    _, rejected = read("rsna", tmp_path, RSNA + "a,10,20,50,40,1\na,,,,,0\n")
    assert rejected[0].reason == "Target is not one of 0 and 1"


DEEP = ",".join(f"c{n}" for n in range(18)) + "\n"


def deep_row(name: str, box: str, kind: str = "5", noisy: str = "0", split: str = "2", size: str = "100, 80") -> str:
    fields = [
        name,
        "1",
        "1",
        "1",
        "109",
        "",
        f'"{box}"',
        "",
        "",
        kind,
        noisy,
        "",
        "",
        f'"{size}"',
        "",
        "F",
        "62",
        split,
    ]
    return ",".join(fields) + "\n"


def test_deeplesion_coordinates_start_at_one_and_the_folder_is_in_the_name(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "000001_01_01" / "109.png")
    text = DEEP + deep_row("000001_01_01_109.png", "11, 21, 61, 61")
    text += deep_row("000001_01_01_109.png", "31, 31, 41, 41", kind="-1")
    records, rejected = read("deeplesion", tmp_path, text)
    assert not rejected
    assert records[0].file == "000001_01_01/109.png"
    first, second = records[0].lesions
    assert first.box.corners == (0.1, 0.25, 0.6, 0.75)
    assert (first.label, second.label, second.flags) == ("lung lesion", "lesion", ("type_unknown",))
    assert (records[0].patient, records[0].split, records[0].modality) == ("1", "validation", "CT")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (deep_row("000001_01_01_109.png", "1, 1, 9, 9", noisy="1"), "row is flagged as noisy"),
        (deep_row("000001_01_01_109.png", "1, 1, 9"), "box is not four numbers"),
        (deep_row("000001_01_01_109.png", "1, 1, 9, 9", kind="12"), "lesion type is not -1 or 1 to 8"),
        (deep_row("000001_01_01_109.png", "1, 1, 9, 9", size="100, 81"), "image has another size than stated"),
        (deep_row("109.png", "1, 1, 9, 9"), "row has no file name or image size"),
        (deep_row("000001_01_01_110.png", "1, 1, 9, 9"), "image is missing"),
        (deep_row("000001_01_01_109.png", "1, 1, 9, 9", split="7"), "split has an unknown name"),
    ],
)
def test_deeplesion_bad_rows(tmp_path: Path, row: str, reason: str) -> None:
    picture(tmp_path / "images" / "000001_01_01" / "109.png")
    records, rejected = read("deeplesion", tmp_path, DEEP + row)
    assert not records
    assert rejected[0].reason == reason
    with pytest.raises(ValueError, match="18 columns"):
        read("deeplesion", tmp_path, "a,b\n1,2\n")


DICOM = "image,label,x_min,y_min,x_max,y_max\n"


def test_dicom_folders_hide_patients_and_want_a_word_on_every_file(tmp_path: Path) -> None:
    pixels = np.zeros((80, 100), dtype=np.int16)
    images = tmp_path / "images"
    dicom_file(images / "s" / "a.dcm", pixels, PatientID="Jane Doe", PatientName="Doe^Jane", Modality="DX")
    dicom_file(images / "s" / "b.dcm", pixels, PatientID="Jane Doe", Modality="CT")
    dicom_file(images / "c.dcm", pixels)
    (images / "broken.dcm").write_bytes(b"no")
    import pydicom

    uid = pydicom.dcmread(images / "s" / "b.dcm").SOPInstanceUID
    text = DICOM + f"s/a.dcm,nodule,10,20,60,60\n{uid},,,,,\nnone.dcm,nodule,1,1,2,2\n"
    records, rejected = read("dicom", tmp_path, text)
    first, second = records
    assert first.lesions[0].box.corners == (0.1, 0.25, 0.6, 0.75)
    assert (first.modality, second.modality, second.lesions) == ("radiograph", "CT", ())
    assert first.patient == second.patient
    assert "Doe" not in first.model_dump_json()
    assert {row.reason.split(";")[0] for row in rejected} == {
        "image is unreadable",
        "image is missing",
        "no row speaks of the image",
    }


def test_masks_become_a_box_per_component(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / "images" / f"{name}.png")
    drawn = np.zeros((80, 100))
    drawn[20:40, 10:30] = drawn[40:60, 30:50] = 255  # touch at a corner: one lesion
    drawn[5, 90] = 255
    mask(tmp_path / "masks" / "nodule" / "a.png", drawn)
    mask(tmp_path / "masks" / "nodule" / "b.png", drawn * 0)
    mask(tmp_path / "masks" / "nodule" / "c.png", drawn[:40])
    records, rejected = parted(readers.create("masks", min_pixels=2).read(tmp_path / "masks", tmp_path / "images"))
    assert [(record.image_id, [lesion.box.corners for lesion in record.lesions]) for record in records] == [
        ("a", [(0.1, 0.25, 0.5, 0.75)]),
        ("b", []),
    ]
    assert [row.reason for row in rejected] == [
        "component is a speck",
        "mask has another size than its image",
        "image lacks a usable mask of a class",
    ]
    records, rejected = parted(
        readers.create("masks", label="nodule").read(tmp_path / "masks" / "nodule", tmp_path / "images")
    )
    assert len(records[0].lesions) == 2
    (tmp_path / "masks" / "nodule" / "b.png").unlink()
    _, rejected = parted(readers.create("masks").read(tmp_path / "masks", tmp_path / "images"))
    assert "mask is missing" in [row.reason for row in rejected]
