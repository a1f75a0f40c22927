"""`trimtab medclm audit` as a user types it, and its page."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image

from tests.medclm.audit.served import seer, served
from tests.medclm.training.blobs import blob_set
from trimtab.cli import main
from trimtab.report.medclm.audit import render_audit


@pytest.fixture
def blobs(tmp_path):
    return blob_set(tmp_path / "set", images=24)


def asked(*words):
    return main(["medclm", "audit", *map(str, words)])


def test_a_served_model_leaves_results_replies_and_a_page(blobs, tmp_path, capsys):
    out = tmp_path / "out"
    with served(seer) as server:
        words = ("tiny", "--server", server.url, "--data", blobs, "--out", out, "--claimed", "0.9")
        assert asked(*words) == 0
        before, said = len(server.bodies), capsys.readouterr().out
        assert asked(*words, "--json") == 0
        assert len(server.bodies) == before  # nothing is paid twice
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((out / "audit.json").read_text())
    assert "The answers hang on the pictures: 100.0 %" in said
    assert "claimed" in said
    assert (summary["boxes"], summary["form"], summary["n"]) == ("unit", "explained", 16)
    page = (out / "audit.html").read_text()
    for text in (
        "claimed 90.0 %",
        "Visual Reliance Score",
        "on a grey one",
        "The blob is seen at",
        "compare only what one harness",
    ):
        assert text in page
    (out / "predictions.jsonl").write_text("[")
    with pytest.raises(ValueError, match=r"predictions\.jsonl"):
        render_audit(out)


def test_a_question_set_of_others_is_asked_with_reasoning(tmp_path, capsys):
    """PMC-VQA's layout, two figures, no training file."""
    folder = tmp_path / "pmc"
    (folder / "images").mkdir(parents=True)
    with (folder / "test.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["Figure_path", "Question", "Choice A", "Choice B", "Choice C", "Choice D", "Answer"])
        for name, side in (("a.png", "left"), ("b.png", "right")):
            Image.new("RGB", (16, 16), (9, 9, 9)).save(folder / "images" / name)
            out.writerow([name, "Where?", "A: left", "B: right", "C: both", "D: none", "AB"[side == "right"]])
    with served(lambda prompt, _: "It is seen. So it is left. Answer: A" if "sentences" in prompt else "x") as server:
        words = (
            "--server",
            server.url,
            "--data",
            folder,
            "--questions",
            "pmc_vqa",
            "--out",
            tmp_path / "out",
            "--json",
        )
        assert asked("tiny", *words) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["n"], summary["ask"], summary["left_out"]["majority guess"]) == (
        2,
        "reasoning",
        "there are no training questions",
    )
    rows = {row["rule"]: row["value"] for row in summary["measures"] if row["group"] == "all"}
    assert (rows["vrs.1"], rows["hvrr.1"]) == (0, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("MODEL", "--data", "SET"), "say with --out"),
        (("MODEL", "--out", "OUT"), "say with --data"),
        (("MODEL", "--data", "SET", "--out", "OUT"), "is no folder with a model"),
        (("MODEL", "--data", "NONE", "--out", "OUT"), "NONE"),
        (("MODEL", "--data", "SET", "--out", "OUT", "--split", "validation"), "no rows of the splits validation"),
        (("MODEL", "--data", "SET", "--out", "OUT", "--claimed", "63"), "--claimed must lie in"),
        (("MODEL", "--data", "SET", "--out", "OUT", "--boxes", "pixels"), "--boxes must be one of"),
        (("MODEL", "--data", "SET", "--out", "OUT", "--questions", "slake"), "test.json"),
    ],
)
def test_what_cannot_be_audited_is_said_in_one_line_and_nothing_is_written(blobs, tmp_path, capsys, words, message):
    places = {"SET": blobs, "OUT": tmp_path / "OUT", "MODEL": tmp_path / "MODEL", "NONE": tmp_path / "NONE"}
    assert asked(*(places.get(word, word) for word in words)) == 2
    said = capsys.readouterr().err
    assert message in said.replace("\n", " ")
    assert not (tmp_path / "OUT").exists()
