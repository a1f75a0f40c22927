"""Plans: stages, partners of Hard rows, balance."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.medclm.samples import LABELS, host, lesion, record, two_classes
from trimtab.medclm.planning import Planner


def _stream(images=200, share=4):
    """One nodule in most images (of two patients' worth each), mass in every `share`-th."""
    for number in range(images):
        label = "mass" if number % share == 0 else "nodule"
        one = lesion(1, label, (0.1, 0.2, 0.3, 0.4), host(), lesion_id=f"{number}/1", image_id=str(number))
        yield record(one, image=str(number), patient=f"p{number // 2}")


def test_easy_rows_for_every_lesion_and_one_medium_row_a_class():
    rows = list(Planner(LABELS).rows(two_classes()))
    easy = [row for row in rows if row.stage == "easy"]
    assert len(easy) <= 3
    assert {row.lesion.lesion_id for row in easy} == {"i/1", "i/2", "i/3"}
    medium = [row for row in rows if row.stage == "medium"]
    assert {row.lesion.label for row in medium if row.lesion} == {"nodule", "mass"}
    assert sum(row.lesion is None for row in medium) == 1


def test_hard_rows_are_partners_of_another_patient_of_the_same_class():
    planner = Planner(LABELS, stages=("hard",))
    patients = {}
    partners = 0
    for image in _stream():
        for row in planner.rows(image):
            if row.lesion is not None:
                partners += 1
                assert row.anchor is not None
                assert row.anchor.label == row.lesion.label
                assert patients[row.anchor.lesion_id] != image.patient
        patients |= {one.lesion_id: image.patient for one in image.lesions}
    assert partners > 50
    assert planner.left_out["hard: no other patient with this class yet"] >= 2


def test_no_answer_exceeds_its_cap_when_balanced_and_does_when_not():
    def shares(balance):
        planner = Planner(("mass", "nodule"), stages=("medium",), balance=balance)
        answers = {}
        for image in _stream(400, share=10):
            for row in planner.rows(image):
                answers.setdefault(row.ask.key, Counter())[row.ask.answer] += 1
        return {key: max(found.values()) / found.total() for key, found in answers.items() if found.total() >= 40}

    assert max(shares(True).values()) < 0.63
    assert max(shares(False).values()) > 0.8


@settings(max_examples=20, deadline=None)
@example(97436545, 46, 0.9)
@given(st.integers(0, 2**31), st.integers(5, 60), st.sampled_from([0.6, 0.9]))
def test_small_groups_and_whole_types_have_no_answer_above_four_in_five(seed, images, cap):
    """In every split, however small: of five or more questions alike (or of one type), at most 80 % have one answer."""
    chance = np.random.default_rng(seed)
    planner = Planner(LABELS, cap=cap, seed=seed)
    answers = {}
    for number in range(images):
        split = str(chance.choice(["train", "validation", "test"], p=[0.8, 0.1, 0.1]))
        lesions = [
            lesion(
                n, str(chance.choice(LABELS, p=[0.8, 0.1, 0.1])), (0.1, 0.1 + 0.2 * n, 0.2 + 0.1 * n, 0.2 + 0.2 * n),
                host(*[("right lung", "right"), ("left lung", "left")][int(chance.random() < 0.1)]), lesion_id=f"{number}/{n}",
                image_id=str(number),
            )
            for n in range(int(chance.integers(1, 4)))
        ]  # fmt: skip
        for row in planner.rows(record(*lesions, image=str(number), split=split)):
            for like in (row.ask.key, row.ask.kind):
                answers.setdefault((split, row.stage, like), Counter())[row.ask.answer] += 1
    for like, found in answers.items():
        if found.total() >= 5:
            assert max(found.values()) / found.total() <= max(cap, 0.8), like


def test_a_cap_of_one_asks_all():
    planner = Planner(("nodule",), stages=("medium",), cap=1.0)
    rows = [row for image in _stream(30, share=1000) for row in planner.rows(image)]
    assert len(rows) >= 30
    assert not planner.left_out


def test_every_negative_keeps_a_row_and_yes_is_asked_where_negatives_say_no():
    planner = Planner(("nodule",), stages=("medium", "hard"))
    asked, kinds = {}, Counter()
    for number, image in enumerate(_stream(200, share=1000)):
        images = [image.model_copy(update={"image_id": f"n{number}", "lesions": ()})] if number % 2 else [image]
        for one in images:
            asked[one.image_id] = list(planner.rows(one))
            kinds.update((row.ask.kind, row.ask.answer) for row in asked[one.image_id])
    assert all(rows for name, rows in asked.items() if name.startswith("n"))
    assert 0.6 < kinds["present", "yes"] / kinds["present", "no"] < 1.6


def test_plans_repeat():
    first, second = (
        [list(planner.rows(image)) for image in _stream(40)] for planner in (Planner(LABELS), Planner(LABELS))
    )
    assert first == second


def test_state_does_not_grow_with_the_images():
    planner = Planner(LABELS)
    sizes = []
    for number, image in enumerate(_stream(1200)):
        list(planner.rows(image))
        if number in (599, 1199):
            sizes.append((len(planner._anchors), len(planner._answers), len(planner._kinds)))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("options", [{"cap": 0.0}, {"cap": 1.5}, {"stages": ()}, {"stages": ("harder",)}])
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=r"cap|stages"):
        Planner(LABELS, **options)
