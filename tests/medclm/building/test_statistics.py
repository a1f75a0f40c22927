"""How far a guess gets: counted by hand."""

from __future__ import annotations

from tests.medclm.samples import host, lesion, record
from trimtab.medclm.building.statistics import Statistics
from trimtab.medclm.texts import TemplateGenerator, asks


def _row(number, x, stage, kind, split):
    image = record(
        lesion(1, "nodule", (x, 0.2, x + 0.1, 0.3), host(*(("right lung", "right") if x < 0.5 else ("left lung", "left")))),
        image=str(number), split=split,
    )  # fmt: skip
    image = image.model_copy(
        update={"lesions": tuple(one.model_copy(update={"image_id": str(number)}) for one in image.lesions)}
    )
    one = next(a for a in asks(image, image.lesions[0], stage, ("nodule",)) if a.kind == kind)
    return TemplateGenerator().generate(image, image.lesions[0], stage, 0, one)


def test_box_numbers_tell_sides_that_the_words_do_not():
    statistics = Statistics()
    for number in range(20):
        statistics.add_row(
            _row(number, 0.1 + 0.01 * number if number < 9 else 0.6 + 0.01 * number, "easy", "side", "train")
        )
    for number, x in enumerate((0.12, 0.15, 0.18, 0.75), start=100):
        statistics.add_row(_row(number, x, "easy", "side", "test"))
        statistics.add_row(_row(number, x, "medium", "present", "test"))
    found = statistics.priors()["side"]
    assert found["train"] is not None
    assert found["unseen, box numbers read"] == 1.0
    assert found["unseen"] < 1.0
    present = statistics.priors()["present"]
    assert present["unseen"] == present["unseen, box numbers read"] == 0.0  # never asked in training, no box to read
    everything = statistics.priors()["all"]
    assert everything["unseen, box numbers read"] == 0.5
