"""Reviews of a set and the agreement of two reviewers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from tests.medclm.samples import source
from trimtab.cli import main
from trimtab.cli.medclm.use import write_view
from trimtab.medclm.building import build
from trimtab.medclm.reviews import agreement, identity_of, load_review


def write(path, marks, *, of="a" * 32, reviewer="", comments=None, images=None):
    """A review as the viewer exports it, of rows "r0", "r1" ...; None marks nothing."""
    comments = comments or {}
    judgements = [
        {"row": f"r{n}", "image": (images or {}).get(n, f"{n}.png"), "mark": mark or "", "comment": comments.get(n, "")}
        for n, mark in enumerate(marks)
        if mark or n in comments
    ]
    review = {
        "schema": "trimtab.medclm.review/1",
        "set": of,
        "title": "chest",
        "rows": len(marks),
        "reviewer": reviewer,
    }
    path.write_text(json.dumps({**review, "judgements": judgements}))
    return path


def drawn(number, seed):
    generator = np.random.default_rng(seed)
    first = generator.choice(["accepted", "rejected"], number, p=[0.7, 0.3])
    second = np.where(generator.random(number) < 0.8, first, generator.choice(["accepted", "rejected"], number))
    return first.tolist(), second.tolist()


def test_kappa_is_scikit_learns_and_its_interval_draws_images(tmp_path):
    first, second = drawn(200, 0)
    one, two = (load_review(write(tmp_path / f"{n}.json", marks)) for n, marks in enumerate((first, second)))
    found = agreement(one, two)
    assert found.kappa == pytest.approx(cohen_kappa_score(first, second))
    assert found.agreement == pytest.approx(np.mean(np.array(first) == second))
    assert sum(found.table.values()) == found.rows == 200
    assert len(found.disagreements) == sum(a != b for a, b in zip(first, second, strict=True))
    generator = np.random.default_rng(1)
    again = []
    for _ in range(400):
        rows = generator.integers(0, 200, 200)
        again.append(cohen_kappa_score(np.array(first)[rows], np.array(second)[rows]))
    assert (found.low, found.high) == (
        pytest.approx(np.percentile(again, 2.5), abs=0.05),
        pytest.approx(np.percentile(again, 97.5), abs=0.05),
    )
    of_one = [
        load_review(write(tmp_path / f"{n}.json", marks, images=dict.fromkeys(range(200), "a")))
        for n, marks in enumerate((first, second))
    ]
    assert agreement(*of_one).low is None


def test_only_rows_that_both_marked_count_and_one_mark_for_all_has_no_kappa(tmp_path):
    one = load_review(write(tmp_path / "1.json", ["accepted", "accepted", None, "rejected"], comments={2: "blurred"}))
    two = load_review(write(tmp_path / "2.json", ["accepted", "accepted", "accepted", None]))
    found = agreement(one, two)
    assert (found.rows, found.only, found.agreement, found.kappa) == (2, (1, 1), 1.0, None)
    three = load_review(write(tmp_path / "3.json", [None, None, None, None]))
    with pytest.raises(ValueError, match="no marked row in common"):
        agreement(one, three)


def test_the_command_says_how_far_two_agree_and_where_not(tmp_path, capsys):
    marks = ["accepted", "accepted", "rejected", "rejected"]
    one = write(tmp_path / "ann.json", marks, reviewer="Ann")
    two = write(tmp_path / "ben.json", [*marks[:3], "accepted"], reviewer="Ben", comments={3: "a scar, no mass"})
    assert main(["medclm", "reviews", str(one), str(two)]) == 0
    said = capsys.readouterr().out
    assert "chest: 75.0 % of marks agree; Cohen's kappa 0.50" in said
    assert "r3: Ann rejected; Ben accepted (a scar, no mass)" in said
    assert main(["medclm", "reviews", str(one), str(two), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kappa"], found["table"]["rejected, accepted"]) == (0.5, 1)
    assert found["disagreements"] == [
        {"row": "r3", "mark 1": "rejected", "mark 2": "accepted", "comment 1": "", "comment 2": "a scar, no mass"}
    ]


def test_a_review_of_another_set_is_refused(tmp_path, capsys):
    data = build(source(tmp_path / "source", images=4), tmp_path / "set").folder
    own = identity_of(data)
    assert len(own) == 32
    assert f'"set":"{own}"' in write_view(data).read_text()
    one, two, other = (write(tmp_path / f"{n}.json", ["accepted"], of=of) for n, of in enumerate((own, own, "c" * 32)))
    assert main(["medclm", "reviews", str(one), str(two), "--data", str(data.path)]) == 0
    for words in (
        [one, other],
        [one, other, "--data", data.path],
        [other, other.with_name("2.json"), "--data", data.path],
    ):
        assert main(["medclm", "reviews", *map(str, words)]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert "2.json is a review of another set, 'chest' (cccccccc)" in said
    assert "was given twice" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no review"),
        ('{"schema": "trimtab.medclm.audit/1"}', "is no review"),
        (None, "row 'r0' is judged twice"),
        ("mark", "accepted"),
    ],
)
def test_a_file_that_is_no_review_is_named(tmp_path, text, message):
    file = write(tmp_path / "r.json", ["accepted"])
    whole = json.loads(file.read_text())
    if text is None:
        whole["judgements"] *= 2
        text = json.dumps(whole)
    if text == "mark":
        whole["judgements"][0]["mark"] = "perhaps"
        text = json.dumps(whole)
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_review(file)
    assert "r.json" in str(caught.value)
