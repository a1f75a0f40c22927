"""What the commands that cost say beforehand, against what they then do; and that they leave nothing."""

import json

import pytest

from tests.medclm.audit.served import seer, served
from tests.medclm.samples import source
from tests.medclm.training.blobs import blob_set
from trimtab.cli import main
from trimtab.medclm.building import build


def told(capsys, *words):
    assert main(["medclm", *map(str, words), "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def given(tmp_path):
    options = source(tmp_path / "source", images=24)
    words = ("--detections", options.detections, "--images", options.images, "--organs", tmp_path / "source" / "organs")
    return options, ("build", *words, "--anatomy", "chest", "--modality", "chest X-ray", "--out", tmp_path / "out")


def test_a_build_says_what_it_would_read_and_write(given, tmp_path, capsys):
    options, words = given
    before = files(tmp_path)
    found = told(capsys, *words)
    assert files(tmp_path) == before
    made = build(options, tmp_path / "made").statistics
    assert (found["images"], found["lesions"]) == (made["images"], made["lesions"])
    assert found["classes"] == ["mass", "nodule", "pleural effusion"]
    assert found["rows, about"] == pytest.approx(made["rows"], rel=0.2)
    assert [part["times"] for part in found["parts"]] == [found["images"], found["rows, about"]]
    assert all(part["seconds"] > 0 for part in found["parts"])
    assert main(["medclm", *map(str, words), "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "classes: mass, nodule, pleural effusion" in said
    assert "nothing was written" in said


def test_a_build_by_a_server_says_how_many_requests_and_asks_none(given, capsys):
    _, words = given
    with served(seer) as server:
        found = told(capsys, *words, "--generator", "chat", "--chat.model", "m", "--chat.base-url", server.url)
        assert not server.bodies
    assert found["requests"].startswith(f"about {found['rows, about']:,} to m at {server.url}")
    assert [part["what"] for part in found["parts"]] == ["images read, hosted, copied"]


def test_a_finished_build_and_a_strange_folder(given, tmp_path, capsys):
    options, words = given
    build(options, tmp_path / "out")
    found = told(capsys, *words)
    assert (found["there already"], found["parts"]) == ("a finished set: nothing would be done", [])
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "x").write_text("")
    assert main(["medclm", *map(str, words[:-1]), str(tmp_path / "strange"), "--dry-run"]) == 2
    assert "is not empty and holds no data set" in capsys.readouterr().err


def test_a_training_says_its_steps_and_keeps_nothing(given, tmp_path, capsys):
    pytest.importorskip("trl")
    options, _ = given
    data = build(options.model_copy(update={"fractions": (0.6, 0.2, 0.2)}), tmp_path / "set").folder.path
    before = files(tmp_path)
    words = (
        "train",
        data,
        "--out",
        tmp_path / "run",
        "--steps",
        "41",
        "--epochs",
        "10",
        "--batch",
        "4",
        "--pretrain",
        "7",
    )
    found = told(capsys, *words)
    assert files(tmp_path) == before
    assert [(part["what"], part["times"]) for part in found["parts"]] == [
        ("epochs of the vision tower", 7), ("steps of 4 rows", 40),
    ]  # fmt: skip
    assert 0 < found["seconds"] < 3600
    assert main(["medclm", "train", str(data), "--out", str(tmp_path / "r"), "--model", "some/llava", "--dry-run"]) == 2
    assert "downloads nothing for it" in capsys.readouterr().err


def test_a_finished_run_has_no_step_left(tmp_path, capsys):
    pytest.importorskip("trl")
    data = blob_set(tmp_path / "set", images=24)
    words = (
        "train",
        data,
        "--out",
        tmp_path / "run",
        "--steps",
        "4",
        "--epochs",
        "2",
        "--batch",
        "4",
        "--pretrain",
        "0",
    )
    assert main(["medclm", *map(str, words), "--quiet"]) == 0
    capsys.readouterr()
    found = told(capsys, *words)
    assert (found["there already"], [part["times"] for part in found["parts"]]) == ("a finished run", [0])


def test_an_audit_counts_what_is_not_kept_and_asks_nothing(tmp_path, capsys):
    data, out = blob_set(tmp_path / "set", images=24), tmp_path / "out"
    with served(seer) as server:
        words = ("audit", "tiny", "--server", server.url, "--data", data, "--out", out)
        found = told(capsys, *words)
        assert (server.bodies, out.exists()) == ([], False)
        assert (found["questions"], found["kept"], found["left"]) == (16, 0, found["requests"])
        assert found["tokens"] > found["left"]
        few = (*words, "--limit", "4")
        assert main(["medclm", *map(str, few), "--quiet"]) == 0
        capsys.readouterr()
        assert told(capsys, *few)["left"] == 0
        after = told(capsys, *words)
        assert after["kept"] == len(server.bodies)
        assert after["left"] == found["requests"] - after["kept"] > 0
        assert main(["medclm", *map(str, words), "--quiet"]) == 0
        assert len(server.bodies) == found["requests"]  # as was said
        capsys.readouterr()
        assert main(["medclm", *map(str, words), "--dry-run"]) == 0
        assert "0 would be asked for" in capsys.readouterr().out
