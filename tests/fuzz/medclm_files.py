"""Annotations, pictures, organ masks, built sets and question sets of MedCLM."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz.running import Kind
from tests.medclm.pictures import image_record, picture
from tests.medclm.samples import source
from tests.medclm.test_pixels import dicom_file
from trimtab.medclm import organs, readers
from trimtab.medclm.building import DataSetFolder, build
from trimtab.medclm.building.journal import journal_items
from trimtab.medclm.coco import encode
from trimtab.medclm.evaluation.benchmarks import load_benchmark
from trimtab.medclm.organs.rle import write_organs
from trimtab.medclm.pixels import read_mask, read_picture
from trimtab.medclm.records import ImageRecord, Rejected
from trimtab.medclm.texts.replies import Reply, ReplyCache

SLICE = image_record(file="case/1.png")
HALF = np.zeros((80, 100), dtype=bool)
HALF[10:70, 10:50] = True


def _records(name: str, annotations: str, **options: Any) -> Callable[[Path], list[Any]]:
    return lambda folder: list(readers.create(name, **options).read(folder / annotations, folder / "images"))


def _plausible(found: Any) -> None:
    """Every item is a record of a picture that is there with boxes inside it, or a rejected row."""
    files = [item.file for item in found if isinstance(item, ImageRecord)]
    assert len(files) == len(set(files))
    for item in found:
        assert isinstance(item, ImageRecord | Rejected)
        if isinstance(item, ImageRecord):
            assert Path(item.file).name.partition(".")[0] in {"a", "b", "00000013_005", "001"}
            assert (item.width, item.height) in {(100, 80), (64, 64)} or item.file.endswith(".dcm")
            for lesion in item.lesions:
                x0, y0, x1, y1 = lesion.box.corners
                assert 0 <= x0 < x1 <= 1
                assert 0 <= y0 < y1 <= 1
        else:
            assert item.reason
            assert len(item.model_dump_json()) < 5000


def _pictures(folder: Path) -> None:
    for name in "ab":
        picture(folder / "images" / f"{name}.png")


def _coco(folder: Path) -> Path:
    _pictures(folder)
    document = {
        "images": [{"id": n, "file_name": f"{name}.png", "width": 100, "height": 80} for n, name in enumerate("ab", 1)],
        "categories": [{"id": 1, "name": "nodule"}, {"id": 2, "name": "mass"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 50, 40]},
            {"id": 2, "image_id": 1, "category_id": 2, "segmentation": [[10, 10, 40, 10, 40.5, 50, 10, 50]]},
            {"id": 3, "image_id": 2, "category_id": 1, "segmentation": {"size": [80, 100], "counts": encode(HALF)}},
            {"id": 4, "image_id": 2, "category_id": 2, "segmentation": {"size": [80, 100], "counts": [800, 60, 7140]}},
        ],
    }
    (folder / "set.json").write_text(json.dumps(document, indent=1))
    return folder / "set.json"


def _voc(folder: Path) -> Path:
    _pictures(folder)
    (folder / "xml").mkdir()
    box = "<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>60</xmax><ymax>60</ymax></bndbox>"
    (folder / "xml" / "a.xml").write_text(
        "<annotation><filename>a.png</filename><size><width>100</width><height>80</height></size>"
        f"<object><name>mass</name><difficult>1</difficult>{box}</object></annotation>"
    )
    return folder / "xml" / "a.xml"


def _yolo(name: str) -> Callable[[Path], Path]:
    def prepare(folder: Path) -> Path:
        _pictures(folder)
        (folder / "labels").mkdir()
        (folder / "labels" / "a.txt").write_text("0 0.5 0.5 0.2 0.1\n1 0.3 0.3 0.2 0.2\n")
        (folder / "labels" / "b.txt").write_text("")
        (folder / "labels" / "data.yaml").write_text("names: {0: nodule, 1: mass}\nnc: 2\n")
        return folder / "labels" / name

    return prepare


def _table(text: str, *images: str) -> Callable[[Path], Path]:
    def prepare(folder: Path) -> Path:
        _pictures(folder)
        for image in images:
            picture(folder / "images" / image, 64, 64)
        (folder / "t.csv").write_text(text)
        return folder / "t.csv"

    return prepare


VINDR = (
    "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\na,Nodule,8,R1,10,20,30,40\n"
    "a,Mass,9,R2,12,20,32,40\nb,No finding,14,R3,,,,\n"
)
NIH = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n00000013_005.png,Infiltrate,512,256,256,512,,,\n"
RSNA = "patientId,x,y,width,height,Target\na,10,20,50,40,1\nb,,,,,0\n"


def _dicom(folder: Path) -> Path:
    return dicom_file(folder / "images" / "a.dcm", PatientID="p1", WindowCenter=101, WindowWidth=201)


DEEP = (
    ",".join(f"column {number}" for number in range(18))
    + "\n"
    + "".join(
        f'000001_01_01_001.png,1,1,1,1,x,"{corners}",,,{kind},{noisy},,,"64, 64",,F,62,2\n'
        for corners, kind, noisy in (("11, 21, 41.5, 61", 5, 0), ("31, 31, 41, 41", -1, 0), ("1, 1, 9, 9", 5, 1))
    )
)
BOXES = "image,label,x_min,y_min,x_max,y_max\na.dcm,nodule,0,0,1,1\na,mass,0,1,2,2\nb.dcm,,,,,\n"


def _dicom_folder(name: str) -> Callable[[Path], Path]:
    def prepare(folder: Path) -> Path:
        for number, file in enumerate(("a.dcm", "b.dcm")):
            dicom_file(folder / "images" / file, PatientID=f"p{number}", Modality="CR")
        (folder / "t.csv").write_text(BOXES)
        return folder / name

    return prepare


def _lesion_mask(folder: Path) -> Path:
    _pictures(folder)
    (folder / "masks" / "mass").mkdir(parents=True)
    for name in "ab":
        Image.fromarray(HALF.astype(np.uint8) * 255).save(folder / "masks" / "mass" / f"{name}.png")
    return folder / "masks" / "mass" / "a.png"


def _sixteen_bits(folder: Path) -> Path:
    Image.fromarray((np.arange(80, dtype=np.uint16) * 800).reshape(8, 10)).save(folder / "a.png")
    return folder / "a.png"


def _uint8(found: Any) -> None:
    assert found.dtype == np.uint8
    assert found.size < 10**9


def _organ_rle(folder: Path) -> Path:
    write_organs(folder / "a.json", {"left lung": HALF, "right lung": HALF[:, ::-1]})
    return folder / "a.json"


def _organ_coco(folder: Path) -> Path:
    file = _coco(folder)
    document = json.loads(file.read_text())
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] == 1]
    file.write_text(json.dumps(document))
    return file


def _masks(record: ImageRecord | None = None, **options: Any) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        given = {key: folder / value if isinstance(value, Path) else value for key, value in options.items()}
        return organs.create(given.pop("kind"), **given).masks(record or image_record(), None)

    return read


def _whole_masks(found: Any) -> None:
    assert all(mask.shape == (80, 100) and mask.dtype == bool for mask in found.values())


def _organ_labels(name: str) -> Callable[[Path], Path]:
    def prepare(folder: Path) -> Path:
        Image.fromarray(HALF.astype(np.uint8)).save(folder / "a.png")
        (folder / "labels.json").write_text('{"1": "left lung", "2": "heart"}')
        return folder / name

    return prepare


def _nifti(folder: Path) -> Path:
    import nibabel

    nibabel.save(nibabel.Nifti1Image(HALF.astype(np.uint8).T[:, :, None], np.eye(4)), folder / "a.nii")
    (folder / "labels.json").write_text('{"1": "left lung"}')
    return folder / "a.nii"


def _volume(folder: Path) -> Path:
    import nibabel

    values = np.zeros((100, 80, 3), dtype=np.int16)
    values[10:50, 10:70, 1] = 1
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-1, 1, 2, 1])), folder / "case.nii.gz")
    (folder / "labels.json").write_text('{"1": "left lung"}')
    return folder / "case.nii.gz"


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


def _built(folder: Path) -> list[Path]:
    build(source(folder / "source", images=4), folder / "out")
    names = ("manifest.json", "rows.jsonl", "records.jsonl", "rejected.jsonl", "statistics.json")
    return [folder / "out" / name for name in names]


def _read_set(folder: Path) -> Any:
    found = DataSetFolder(folder / "out")
    return [found.finished(), list(found.rows()), list(found.records()), list(found.rejected()), found.statistics()]


def _inside_set(found: Any) -> None:
    assert not any(image.startswith("/") or ".." in image.split("/") for _, image in found[1])


def _journal(folder: Path) -> Path:
    (folder / "j.jsonl").write_text('{"a": 1}\n{"b": [1, 2.5, "x"]}\n')
    return folder / "j.jsonl"


def _questions(name: str, file: str, text: str, images: str, split: str = "test") -> Kind:
    def prepare(folder: Path) -> Path:
        picture(folder / images / "a.jpg")
        (folder / file).write_text(text)
        return folder / file

    def check(found: Any) -> None:
        assert all(question.image.name == "a.jpg" and question.answer.strip() for question in found.questions)

    return Kind(f"questions-{name}", prepare, lambda folder: load_benchmark(name, folder, split), check)  # type: ignore[arg-type]


def _reply(folder: Path) -> Path:
    ReplyCache(folder).get("abc", 0, lambda: Reply(text="x"))
    return next(folder.glob("*/*.json"))


KINDS = [
    Kind("coco", _coco, _records("coco", "set.json"), _plausible),
    Kind("voc", _voc, _records("voc", "xml"), _plausible),
    Kind("yolo", _yolo("a.txt"), _records("yolo", "labels"), _plausible),
    Kind("yolo-names", _yolo("data.yaml"), _records("yolo", "labels"), _plausible, short=400),
    Kind("vindr", _table(VINDR), _records("vindr", "t.csv"), _plausible),
    Kind("nih", _table(NIH, "images_001/00000013_005.png"), _records("nih", "t.csv"), _plausible),
    Kind("rsna", _table(RSNA), _records("rsna", "t.csv"), _plausible),
    Kind("deeplesion", _table(DEEP, "000001_01_01/001.png"), _records("deeplesion", "t.csv"), _plausible),
    Kind("dicom-table", _dicom_folder("t.csv"), _records("dicom", "t.csv"), _plausible, short=500),
    Kind("dicom-folder", _dicom_folder("images/a.dcm"), _records("dicom", "t.csv"), _plausible, short=400),
    Kind("lesion-mask", _lesion_mask, _records("masks", "masks"), _plausible),
    Kind("dicom", _dicom, lambda folder: read_picture(folder / "images" / "a.dcm"), _uint8, short=400),
    Kind("sixteen-bits", _sixteen_bits, lambda folder: read_picture(folder / "a.png"), _uint8),
    Kind("medclm-mask", _sixteen_bits, lambda folder: read_mask(folder / "a.png")),
    Kind("organ-rle", _organ_rle, _masks(kind="rle", folder=Path()), _whole_masks),
    Kind("organ-coco", _organ_coco, _masks(kind="coco", file=Path("set.json"), organs=("nodule",)), _whole_masks),
    Kind("organ-labels", _organ_labels("labels.json"), _masks(kind="labels", folder=Path()), _whole_masks),
    Kind("organ-map", _organ_labels("a.png"), _masks(kind="labels", folder=Path()), _whole_masks),
    Kind("nifti", _nifti, _masks(kind="nifti", folder=Path()), _whole_masks, short=500),
    Kind("nifti-volume", _volume, _masks(SLICE, kind="nifti", folder=Path()), _whole_masks, short=300),
    Kind(
        "nifti-volume-content", _volume, _masks(SLICE, kind="nifti", folder=Path()), _whole_masks,
        wrap=_gzip, unwrap=gzip.decompress, short=300,
    ),
    Kind("built-set", _built, _read_set, _inside_set, short=200),
    Kind("journal", _journal, lambda folder: list(journal_items(folder / "j.jsonl"))),
    _questions(
        "vqa_rad", "VQA_RAD Dataset Public.json",
        json.dumps([{"qid": n, "phrase_type": "test_freeform", "image_name": "a.jpg", "question": "Is it?", "answer": "yes",
                     "image_organ": "CHEST", "question_type": "PRESENCE"} for n in range(3)]),
        "VQA_RAD Image Folder",
    ),
    _questions(
        "slake", "test.json",
        json.dumps([{"qid": n, "q_lang": "en", "img_name": "a.jpg", "img_id": 1, "question": "What?", "answer": "lung",
                     "location": "Lung", "modality": "CT"} for n in range(3)]),
        "imgs",
    ),
    _questions(
        "path_vqa", "test_qa.jsonl", "".join(
            json.dumps({"image": "a", "question": "Is it?", "answer": "yes"}) + "\n" for _ in range(3)), "images/test",
    ),
    _questions(
        "pmc_vqa", "test.csv", "Figure_path,Question,Choice A,Choice B,Choice C,Choice D,Answer_label,Answer\n"
        + "a.jpg,What?,A: one,B: two,C: three,D: four,B,two\n" * 3, "images",
    ),
    Kind("reply", _reply, lambda folder: ReplyCache(folder).totals()),
]  # fmt: skip
