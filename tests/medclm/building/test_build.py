"""Builds: resumed to the row, flat, refused where the source changed, alike whoever runs them."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.medclm.samples import source
from trimtab.cli import main
from trimtab.files import alone
from trimtab.medclm.building import DataSetFolder, build
from trimtab.medclm.building.checking import check
from trimtab.medclm.building.preparing import OnText
from trimtab.medclm.texts import TemplateGenerator


def _texts(out: Path) -> dict[str, str]:
    return {
        name: (out / name).read_text() for name in ("rows.jsonl", "records.jsonl", "rejected.jsonl", "statistics.json")
    }


class Stop(Exception):  # noqa: N818
    """Stands for a kill."""


def _stopping(step, number):
    def progress(now, done):
        if now == step and done == number:
            raise Stop

    return progress


def test_a_build_is_whole_and_passes_its_check(tmp_path):
    build(source(tmp_path / "source"), tmp_path / "out")
    folder = DataSetFolder(tmp_path / "out")
    report = check(folder, decode=True)
    assert report.reasons == {}
    assert report.images == 12
    assert not folder.work.exists()
    rows = [row for row, _ in folder.rows()]
    assert {row.stage for row in rows} == {"easy", "medium", "hard"}
    assert {row.host.organ for row in rows if row.host} >= {"left lung", "right lung"}
    patients = {}
    for record in folder.records():
        assert patients.setdefault(record.patient, record.split) == record.split
    negatives = {record.image_id for record in folder.records() if not record.lesions}
    assert negatives
    assert negatives <= {row.image_id for row in rows}
    priors = folder.statistics()["priors"]
    assert all(prior["unseen, box numbers read"] is not None for prior in priors.values() if prior["unseen rows"])
    card = folder.card_file.read_text()
    assert "| text with box numbers, unseen rows |" in card
    assert card.startswith("---\n")
    assert f"{len(rows):,} rows" in card


@pytest.mark.parametrize("stop", [("images", 1), ("images", 7), ("rows", 1), ("rows", 20), ("finish", 1)])
def test_a_stopped_build_goes_on_to_the_same_bytes(tmp_path, stop):
    options = source(tmp_path / "source")
    build(options, tmp_path / "whole")
    with pytest.raises(Stop):
        build(options, tmp_path / "out", progress=_stopping(*stop))
    work = tmp_path / "out" / "work"
    for journal in work.glob("*.jsonl"):  # a line cut off by the kill
        with journal.open("a") as handle:
            handle.write('{"row": {"cut')
    build(options, tmp_path / "out")
    assert _texts(tmp_path / "out") == _texts(tmp_path / "whole")


def test_lines_lost_from_a_finished_journal_are_made_again(tmp_path):
    options = source(tmp_path / "source")
    build(options, tmp_path / "whole")
    with pytest.raises(Stop):
        build(options, tmp_path / "out", progress=_stopping("rows", 1))
    journal = tmp_path / "out" / "work" / "prepared.jsonl"
    assert journal.with_suffix(".done").is_file()
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]) + lines[-2][:-5])
    build(options, tmp_path / "out")
    assert _texts(tmp_path / "out") == _texts(tmp_path / "whole")


def test_a_damaged_line_inside_a_journal_is_named(tmp_path):
    options = source(tmp_path / "source")
    with pytest.raises(Stop):
        build(options, tmp_path / "out", progress=_stopping("rows", 1))
    journal = tmp_path / "out" / "work" / "prepared.jsonl"
    lines = journal.read_text().splitlines()
    lines[2] = lines[2][:20]
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"prepared\.jsonl: line 3 is damaged"):
        build(options, tmp_path / "out")


def test_going_on_writes_no_row_twice(tmp_path):
    class Counting(TemplateGenerator):
        calls = 0

        def generate(self, *arguments, **named):
            Counting.calls += 1
            return super().generate(*arguments, **named)

    options = source(tmp_path / "source")
    build(options, tmp_path / "whole", Counting())
    all_rows = Counting.calls
    Counting.calls = 0
    with pytest.raises(Stop):
        build(options, tmp_path / "out", Counting(), progress=_stopping("rows", 10))
    build(options, tmp_path / "out", Counting())
    assert Counting.calls == all_rows


def test_a_source_that_changes_is_refused(tmp_path):
    options = source(tmp_path / "source")
    with pytest.raises(Stop):
        build(options, tmp_path / "out", progress=_stopping("images", 3))
    document = json.loads(options.detections.read_text())
    document["annotations"].pop()
    options.detections.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="detections changed since the build began"):
        build(options, tmp_path / "out")


def test_other_options_and_foreign_folders_are_refused(tmp_path):
    options = source(tmp_path / "source")
    build(options, tmp_path / "out")
    with pytest.raises(ValueError, match="seed was 0, is 1"):
        build(options.model_copy(update={"seed": 1}), tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        build(options, tmp_path / "other")


def test_faulty_images_are_reported_and_the_others_kept(tmp_path):
    options = source(tmp_path / "source")
    broken = options.images / "003.png"
    broken.write_bytes(broken.read_bytes()[:-300])  # the header still reads
    (options.images / "005.png").unlink()
    (tmp_path / "source" / "organs" / "006.json").unlink()
    result = build(options, tmp_path / "out")
    reasons = result.statistics["rejected by reason"]
    assert reasons["image is unreadable"] == 1
    assert reasons["image is missing"] == 1
    assert reasons["organ file is missing"] == 1
    assert result.statistics["images"] == 10  # without masks an image is kept, its hosts unknown
    assert any("003.png" in str(one) for one in result.folder.rejected())


def test_nothing_usable_is_an_error_that_names_the_first_fault(tmp_path):
    options = source(tmp_path / "source", images=2)
    for image in options.images.iterdir():
        image.unlink()
    with pytest.raises(ValueError, match=r"nothing usable is left.*image is missing"):
        build(options, tmp_path / "out")


def test_parquet_opens_with_datasets_and_shows_the_images(tmp_path):
    import datasets

    build(source(tmp_path / "source"), tmp_path / "out")
    files = {path.stem: str(path) for path in (tmp_path / "out" / "data").glob("*.parquet")}
    found = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    rows = list(DataSetFolder(tmp_path / "out").rows())
    assert sum(part.num_rows for part in found.values()) == len(rows)
    first = next(iter(found.values()))[0]
    assert first["image"].size == (40, 40)
    start, end = first["answer_span"]
    assert first["target"][start:end] == first["answer"]
    assert first["prompt"].startswith(first["question"] + " ")


def test_check_finds_what_was_changed_by_hand(tmp_path):
    build(source(tmp_path / "source"), tmp_path / "out")
    out = tmp_path / "out"
    lines = (out / "rows.jsonl").read_text().splitlines()
    row = json.loads(next(line for line in lines if json.loads(line)["question_type"] == "present"))
    wrong = {**row, "answer": "no" if row["answer"] == "yes" else "yes"}
    wrong["target"] = row["target"][: row["spans"]["answer"][0]] + wrong["answer"]
    wrong["spans"]["answer"][1] = len(wrong["target"])
    at = next(n for n, line in enumerate(lines) if json.loads(line)["row_id"] == row["row_id"])
    lines[at] = json.dumps(wrong)
    (out / "rows.jsonl").write_text("\n".join(lines) + "\n")
    next((out / "images").iterdir()).unlink()
    reasons = check(DataSetFolder(out)).reasons
    assert reasons["file differs from its hash in the manifest"] == 1
    assert reasons["yes or no disagrees with the record"] == 1
    assert reasons["image is missing"] == 1


@pytest.mark.slow
def test_processes_give_the_same_bytes(tmp_path):
    options = source(tmp_path / "source", images=40)
    build(options, tmp_path / "one", workers=1)
    build(options, tmp_path / "two", workers=2)
    assert _texts(tmp_path / "one") == _texts(tmp_path / "two")


@pytest.mark.slow
def test_ray_gives_the_same_rows(tmp_path):
    pytest.importorskip("ray")
    import ray

    options = source(tmp_path / "source", images=40)
    build(options, tmp_path / "local")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        build(options, tmp_path / "ray", launcher="ray")
    finally:
        ray.shutdown()
    here, there = (sorted(_texts(tmp_path / name)["rows.jsonl"].splitlines()) for name in ("local", "ray"))
    assert here == there


@dataclass(frozen=True)
class StuckOn(OnText):
    """Never done with an image on one node, which leaves word that it has begun; the others begin after it."""

    node: str
    word: Path

    def __call__(self, item: str) -> str:
        import ray

        if ray.get_runtime_context().get_node_id() == self.node:
            self.word.touch()
            time.sleep(600)
        for _ in range(2400):  # two minutes: the others are not done before it has begun, however busy the machine
            if self.word.exists():
                break
            time.sleep(0.05)
        return super().__call__(item)


@pytest.mark.slow
def test_a_build_on_two_nodes_ends_with_the_same_rows_though_one_is_killed_at_its_images(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    options = source(tmp_path / "source", images=40)
    build(options, tmp_path / "local")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    word = tmp_path / "begun"
    killed = threading.Event()

    def kill():
        while not word.exists():
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)
        killed.set()

    monkeypatch.setattr("trimtab.medclm.building.launchers.BLOCK", 4)
    monkeypatch.setattr(
        sys.modules["trimtab.medclm.building.build"], "OnText", lambda one: StuckOn(one, node.node_id, word)
    )
    try:
        threading.Thread(target=kill, daemon=True).start()
        build(options, tmp_path / "ray", launcher="ray", address=cluster.address)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert killed.is_set()
    assert _texts(tmp_path / "ray") == _texts(tmp_path / "local")


def test_an_address_of_a_cluster_that_does_not_answer_is_refused_before_anything_is_written(tmp_path, capsys):
    options = source(tmp_path / "source")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{one.getsockname()[1]}"
    with pytest.raises(ValueError, match=f"no Ray cluster answers at {address}"):
        build(options, tmp_path / "out", launcher="ray", address=address)
    with pytest.raises(ValueError, match="address 'a:1' is of a Ray cluster; give launcher ray"):
        build(options, tmp_path / "out", address="a:1")
    words = ["--detections", str(options.detections), "--images", str(options.images), "--out", str(tmp_path / "out")]
    assert main(["medclm", "build", *words, "--launcher", "ray", "--address", "nowhere"]) == 2
    assert "HOST:PORT, auto or local, got 'nowhere'" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_second_build_into_one_folder_is_refused_by_name(tmp_path):
    options = source(tmp_path / "source")
    with alone(tmp_path / "out", "x"), pytest.raises(ValueError, match=r"another process is building into .*out; wait"):
        build(options, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    build(options, tmp_path / "out")
