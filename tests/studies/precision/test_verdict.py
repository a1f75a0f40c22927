"""The verdict of each number format, by runs whose answer is known."""

from __future__ import annotations

from tests.report.precision_factory import precision_study
from trimtab.studies.precision.verdict import dead_layers, verdict_words, verdicts


def test_formats_train_train_with_help_or_die_where() -> None:
    found = {one.format: one for one in verdicts(precision_study())}
    assert found["e4m3"].words == "trains"
    assert found["e2m1"].words == "trains with MX scales"
    assert found["e2m1"].label == "e2m1, mx"
    assert found["e2m1"].plainly == "dies in first and 2 more"  # plainly 70 % of every layer's gradient dies
    assert found["int4"].words.startswith("dies in")
    assert found["e5m2"].words == "dies in first and 2 more"
    assert not found["e5m2"].trains
    text = verdict_words(precision_study(), list(found.values()))
    assert text == (
        "Within 2 points of full precision (90.0 %): e4m3 trains as it is; e2m1 trains with MX scales; int4 and e5m2 do not."
    )


def test_a_layers_loss_is_the_median_over_seeds() -> None:
    assert {layer.name: layer.dead for layer in dead_layers(precision_study().of("e4m3"))}["first.weight"] == 1 - 0.99
