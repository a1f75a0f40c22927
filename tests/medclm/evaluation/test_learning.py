"""A model that looks learns where the blob is; one that was taught with the wrong pictures does not."""

import json

import pytest

from tests.medclm.training.blobs import blob_set
from trimtab.cli.medclm import run
from trimtab.medclm.training.options import TrainOptions
from trimtab.medclm.training.run import train

STEPS = 400


def accuracy(folder, system="model"):
    rows = json.loads((folder / "evaluation.json").read_text())["systems"][system]["rows"]
    return next(row["value"] for row in rows if (row["group"], row["rule"]) == ("all", "closed.1"))


@pytest.mark.slow
def test_blob_left_or_right_is_learnt_and_not_from_shuffled_pictures(tmp_path):
    options = TrainOptions(
        steps=STEPS, epochs=10, batch=16, lr=5e-3, warmup=0.1, schedule="mixed", save_every=STEPS, seed=1, pretrain=0
    )
    held_out = blob_set(tmp_path / "held-out", images=120, seed=9)
    for name, shuffled in (("right", False), ("shuffled", True)):
        data = blob_set(tmp_path / name, images=300, shuffled=shuffled)
        train(data, tmp_path / f"{name}-run", options)
        assert (
            run(["evaluate", str(tmp_path / f"{name}-run"), "--data", str(held_out), "--stages", "hard", "--quiet"])
            == 0
        )
    assert accuracy(tmp_path / "right-run") > 0.9
    assert accuracy(tmp_path / "shuffled-run") < 0.7
    assert accuracy(tmp_path / "right-run", "text only") < 0.7
    assert accuracy(tmp_path / "right-run", "majority") < 0.7


def test_an_evaluation_of_a_short_run_writes_all_files(tmp_path, capsys):
    data = blob_set(tmp_path / "set", images=18)
    train(data, tmp_path / "run", TrainOptions(steps=2, epochs=2, batch=2, lr=2e-3, save_every=2, pretrain=0))
    assert run(["evaluate", str(tmp_path / "run"), "--json", "--limit", "5"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["systems"]) == ["model", "text only", "majority"]
    assert printed["n"] == 5
    assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == 5
    page = (tmp_path / "run" / "report.html").read_text()
    for text in (
        "Stages over time",
        "Losses by stage",
        "Held-out questions: 5, split test",
        "blob x picture",
        "data:image/jpeg",
    ):
        assert text in page
    assert run(["evaluate", str(tmp_path / "run"), "--export", "vlmevalkit", "--quiet"]) == 0
    with pytest.raises(FileNotFoundError, match="say --data"):
        run(["evaluate", str(tmp_path / "other")])
