"""What is published loads with the tools of others, and annotations find their pictures again."""

import json
import shutil
import tarfile

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.medclm.samples import source
from trimtab.cli import main
from trimtab.medclm.building import DataSetFolder, build
from trimtab.medclm.building.checking import check
from trimtab.medclm.publishing import LICENCES, About, publish, rejoin
from trimtab.medclm.publishing.publish import size_category

ABOUT = About(name="chest-boxes", licence="cc-by-nc-sa-4.0", description="Drawn for a test.", creators=("Trimtab",))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("set")
    return build(source(root / "source").model_copy(update={"box_answers": True}), root / "out").folder


@pytest.fixture(scope="module")
def published(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("published") / "out"
    publish(folder, out, ABOUT, published="2026-01-31", shards=2)
    return out


@pytest.fixture
def release(folder, tmp_path):
    publish(folder, tmp_path / "release", ABOUT, published="2026-01-31", annotations_only=True)
    return tmp_path / "release"


def test_the_card_has_what_the_hub_reads(published, folder):
    header = yaml.safe_load((published / "README.md").read_text().split("---")[1])
    assert header["license"] == "cc-by-nc-sa-4.0"
    assert header["pretty_name"] == "chest boxes"
    assert header["size_categories"] == [size_category(sum(1 for _ in folder.rows()))]
    assert {one["path"] for one in header["configs"][0]["data_files"]} == {
        path.relative_to(published).as_posix() for path in (published / "data").iterdir()
    }
    assert "https://creativecommons.org/licenses/by-nc-sa/4.0/" in (published / "README.md").read_text()


def test_datasets_loads_the_folder_and_saves_it(published, folder, tmp_path):
    from datasets import load_dataset, load_from_disk

    loaded = load_dataset(str(published), cache_dir=str(tmp_path / "cache"))
    rows = {row.row_id: row for row, _ in folder.rows()}
    found = {row["row_id"]: row for split in loaded.values() for row in split}
    assert found.keys() == rows.keys()
    assert loaded["train"][0]["image"].size == (40, 40)
    for name, row in rows.items():
        assert [one["box"] for one in found[name]["objects"]] == [list(one.box.corners) for one in row.objects]
        assert [tuple(one["span"]) for one in found[name]["steps"]] == [one.span for one in row.steps]
    loaded.save_to_disk(str(tmp_path / "saved"))
    assert load_from_disk(str(tmp_path / "saved"))["train"][0]["question"] == loaded["train"][0]["question"]


def test_croissant_names_every_file_and_column(published):
    metadata = json.loads((published / "croissant.json").read_text())
    assert metadata["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert metadata["license"] == "https://creativecommons.org/licenses/by-nc-sa/4.0/"
    import hashlib

    import pyarrow.parquet as pq

    files = {one["@id"]: one for one in metadata["distribution"]}
    for name, one in files.items():
        assert one["sha256"] == hashlib.sha256((published / name).read_bytes()).hexdigest()
    for records in metadata["recordSet"]:
        columns = set(pq.read_schema(published / f"data/{records['@id']}.parquet").names)
        named = {field["source"]["extract"]["column"] for field in records["field"]}
        assert columns - named == {"objects", "steps"}
        assert named <= columns
        assert {field["source"]["fileObject"]["@id"] for field in records["field"]} <= files.keys()


def test_croissants_own_library_reads_it(published, folder):
    mlcroissant = pytest.importorskip("mlcroissant", reason="a peer: it brings type stubs that change what mypy sees")
    dataset = mlcroissant.Dataset(jsonld=str(published / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    first = next(iter(dataset.records("train")))
    rows = {row.row_id: row for row, _ in folder.rows()}
    assert rows[first["train/row_id"].decode()].question == first["train/question"].decode()
    assert first["train/image"].size == (40, 40)


def test_shards_are_read_by_webdataset_and_are_the_same_twice(published, folder, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    paths = sorted((published / "shards").glob("*.tar"))
    for path in paths:
        with tarfile.open(path) as shard:
            assert len(shard.getnames()) <= 4
    rows = {}
    for sample in webdataset.WebDataset([str(path) for path in paths], shardshuffle=False).decode("pil"):
        about = sample["json"]
        assert sample["png"].size == (about["width"], about["height"])
        rows |= {row["row_id"]: (row, about["split"]) for row in about["rows"]}
    wanted = {row.row_id: row for row, _ in folder.rows()}
    assert rows.keys() == wanted.keys()
    assert all(row == wanted[name].model_dump(mode="json") for name, (row, _) in rows.items())
    assert all(split == wanted[name].split for name, (_, split) in rows.items())
    publish(folder, tmp_path / "again", ABOUT, published="2026-01-31", shards=2)
    for path in paths:
        assert (tmp_path / "again" / "shards" / path.name).read_bytes() == path.read_bytes()


def test_annotations_hold_no_picture_and_find_theirs(folder, release, tmp_path):
    """Under other names, one written anew as another file with the same pixels."""
    assert not list(release.rglob("*.png"))
    assert b"PNG" not in b"".join(path.read_bytes() for path in (release / "data").iterdir())
    local = tmp_path / "local" / "deep"
    local.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.images.rglob("*.png"))):
        if number == 0:
            Image.open(path).convert("RGB").save(local / "other.bmp")
        else:
            shutil.copyfile(path, local / f"picture-{number}.png")
    (local / "notes.txt").write_text("no picture")
    (local / "broken.png").write_bytes(b"no picture")
    whole = rejoin(release, tmp_path / "local", tmp_path / "whole")
    assert not check(whole, decode=True).reasons
    assert whole.rows_file.read_bytes() == folder.rows_file.read_bytes()
    assert whole.finished().counts["rows"] == folder.finished().counts["rows"]


def test_missing_pictures_are_counted_or_left_out(folder, release, tmp_path):
    local = tmp_path / "local"
    local.mkdir()
    paths = sorted(folder.images.rglob("*.png"))
    for path in paths[2:]:
        shutil.copyfile(path, local / path.name)
    with pytest.raises(ValueError, match=f"2 of {len(paths)} pictures are not in .*; first: {paths[0].name}"):
        rejoin(release, local, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    part = rejoin(release, local, tmp_path / "part", leave_out=True)
    assert not check(part).reasons
    gone = {record.image_id for record in folder.records() if record.file in {path.name for path in paths[:2]}}
    kept = [row.row_id for row, _ in folder.rows() if row.image_id not in gone]
    assert [row.row_id for row, _ in part.rows()] == kept
    assert f"without 2 of {len(paths)} pictures" in part.card_file.read_text()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="pictures are not in"):
        rejoin(release, tmp_path / "empty", tmp_path / "none", leave_out=True)


def test_damaged_releases_and_wrong_folders_are_refused(folder, release, published, tmp_path):
    with pytest.raises(FileNotFoundError, match="no release of annotations"):
        rejoin(published, folder.images, tmp_path / "a")
    with pytest.raises(NotADirectoryError, match="must hold the pictures"):
        rejoin(release, tmp_path / "nowhere", tmp_path / "a")
    with pytest.raises(ValueError, match="is not empty"):
        rejoin(release, folder.images, release)
    with pytest.raises(ValueError, match="did not finish"):
        DataSetFolder(release).finished()
    lines = (release / "pictures.jsonl").read_text().splitlines()
    for line in ('{"file": "../x.png", "bytes": 1, "sha256": "a"}', lines[0], "{"):
        (release / "pictures.jsonl").write_text("\n".join([*lines, line]) + "\n")
        with pytest.raises(ValueError, match=rf"pictures\.jsonl: line {len(lines) + 1}"):
            rejoin(release, folder.images, tmp_path / "a")
    (release / "pictures.jsonl").write_text("\n".join(lines) + "\n")
    (release / "rows.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"rows\.jsonl is missing or differs from its hash"):
        rejoin(release, folder.images, tmp_path / "a")


def test_wrong_requests_are_refused(folder, published, tmp_path):
    for changes, said in (
        ({"licence": "cc-by-4"}, "no licence 'cc-by-4'"),
        ({"licence": "other"}, "needs licence_link"),
        ({"name": "chest boxes"}, "must be letters"),
    ):
        with pytest.raises(ValueError, match=said):
            About(**{"name": "x", "licence": "mit", **changes})
    with pytest.raises(ValueError, match="is not empty"):
        publish(folder, published, ABOUT, published="2026-01-31")
    with pytest.raises(ValueError, match="shards hold the pictures"):
        publish(folder, tmp_path / "a", ABOUT, published="2026-01-31", shards=1, annotations_only=True)
    assert not (tmp_path / "a").exists()
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        publish(DataSetFolder(tmp_path), tmp_path / "a", ABOUT, published="2026-01-31")


def test_the_commands(folder, tmp_path, capsys):
    words = ["--name", "chest-boxes", "--licence", "cc-by-4.0", "--json"]
    assert (
        main(["medclm", "publish", str(folder.path), "--out", str(tmp_path / "a"), "--annotations-only", *words]) == 0
    )
    assert json.loads(capsys.readouterr().out)["splits"]
    joined = [
        "medclm",
        "rejoin",
        str(tmp_path / "a"),
        "--images",
        str(folder.images),
        "--out",
        str(tmp_path / "b"),
        "--quiet",
    ]
    assert main(joined) == 0
    assert main(["medclm", "check", str(tmp_path / "b"), "--quiet"]) == 0
    assert main(["medclm", "publish", str(folder.path), "--out", str(tmp_path / "c"), *words, "--date", "May"]) != 0
    assert "2026-01-31, got 'May'" in capsys.readouterr().err
    assert (
        main(["medclm", "publish", str(folder.path), "--out", str(tmp_path / "c"), "--name", "x", "--licence", "cc"])
        != 0
    )
    assert "no licence 'cc'" in capsys.readouterr().err


@given(rows=st.integers(0, 10**8))
def test_sizes(rows):
    low, _, high = size_category(rows).replace("K", "000").replace("M", "000000").partition("<n<")
    if high:
        assert int(low) <= rows < int(high)
    else:
        assert (rows < 1000) if low.startswith("n<") else rows >= 10**7


def test_every_licence_has_a_place_or_a_name():
    for licence in LICENCES:
        about = About(name="x", licence=licence, licence_link="https://example.org" if licence == "other" else "")
        assert about.licence_url.startswith("https://") or about.licence_url == licence
        if licence.startswith("cc-by"):
            assert about.licence_url.startswith("https://creativecommons.org/licenses/by")
