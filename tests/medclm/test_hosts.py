from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.medclm.pictures import image_record
from trimtab.medclm.hosts import assign_hosts
from trimtab.medclm.records import Box, HostDecision
from trimtab.medclm.rules import HostRules, host_rules


def masks_of(**areas: tuple[int, int, int, int]) -> dict[str, Any]:
    """Organ -> mask 80 x 100, set in x0, y0, x1, y1."""
    found = {}
    for name, (x0, y0, x1, y1) in areas.items():
        mask = np.zeros((80, 100), dtype=bool)
        mask[y0:y1, x0:x1] = True
        found[name.replace("_", " ")] = mask
    return found


def box(x0: int, y0: int, x1: int, y1: int) -> Box:
    return Box.of_pixels(x0, y0, x1, y1, width=100, height=80)


def decide(lesion: Box, masks: dict[str, Any], label: str = "nodule", **rules: Any) -> tuple[HostDecision, Any]:
    record = assign_hosts(image_record(lesion, label=label), masks, HostRules(**rules))
    found = record.lesions[0]
    assert found.host is not None
    return found.host, found


EIGHTHS = st.integers(0, 8 * 12)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_scores_are_the_areas_counted_on_a_finer_grid(data: st.DataObject) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=144, max_size=144))).reshape(12, 12)
    (x0, x1), (y0, y1) = (sorted(data.draw(st.lists(EIGHTHS, min_size=2, max_size=2, unique=True))) for _ in range(2))
    fine = mask.repeat(8, axis=0).repeat(8, axis=1)
    covered = np.zeros_like(fine)
    covered[y0:y1, x0:x1] = True
    both, area = (fine & covered).sum(), covered.sum()
    rows, columns = np.nonzero(fine)
    around = np.zeros_like(fine)
    if rows.size:
        around[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    expected = {
        "inside_fraction": both / area,
        "mask_iou": both / (fine | covered).sum(),
        "box_iou": (around & covered).sum() / (around | covered).sum(),
    }
    lesion = Box(x0=x0 / 96, y0=y0 / 96, x1=x1 / 96, y1=y1 / 96)
    for rule, score in expected.items():
        record = image_record(lesion, size=(12, 12))
        host = assign_hosts(record, {"organ": mask}, HostRules(rule=rule, minimum=1e-6, reach=1.0)).lesions[0].host  # type: ignore[arg-type]
        assert host is not None
        assert host.score == pytest.approx(score if rows.size else 0.0, abs=1e-8)


def test_a_small_nodule_in_a_large_lung_next_to_a_rib() -> None:
    """Inside fraction names the lung; both overlap rules prefer the smaller rib, which the nodule only touches."""
    masks = masks_of(right_lung=(5, 5, 45, 75), rib=(5, 40, 45, 44))
    lesion = box(20, 38, 26, 44)
    assert decide(lesion, masks)[0].organ == "right lung"
    assert decide(lesion, masks)[0].score == 1.0
    assert decide(lesion, masks, rule="mask_iou")[0].organ == "rib"
    assert decide(lesion, masks, rule="box_iou")[0].organ == "rib"


def test_the_most_specific_organ_that_holds_half_wins() -> None:
    parents = {"right upper lobe": "right lung", "right lung": "thorax", "heart": "thorax"}
    masks = masks_of(thorax=(0, 0, 100, 80), right_lung=(5, 5, 45, 75), right_upper_lobe=(5, 5, 45, 30))
    assert decide(box(10, 22, 20, 36), masks, parents=parents)[0].organ == "right upper lobe"
    assert decide(box(10, 24, 20, 37), masks, parents=parents)[0].organ == "right lung", "the lobe holds 6 of 13 rows"
    assert decide(box(10, 24, 20, 37), masks)[0].organ == "right lung", (
        "without parents the higher score, then the name"
    )
    assert decide(box(80, 24, 90, 37), masks, parents=parents)[0].organ == "thorax"
    host, lesion = decide(box(10, 22, 20, 36), masks, parents=parents)
    assert host.runners_up[0] == ("right lung", 1.0)
    assert "most specific allowed organ that holds at least 50%" in host.reason
    assert lesion.area_fraction == pytest.approx(80 / (40 * 25))
    assert not host.fallback


def test_equal_scores_go_to_the_more_specific_organ_then_to_the_first_by_name() -> None:
    masks = masks_of(b=(0, 0, 50, 80), a=(0, 0, 50, 80), c=(0, 0, 50, 80))
    lesion = box(10, 10, 20, 20)
    assert decide(lesion, masks)[0].organ == "a"
    assert decide(lesion, dict(reversed(masks.items())))[0].organ == "a"
    assert decide(lesion, masks, rule="mask_iou", parents={"c": "b"})[0].organ == "c"


def test_the_allow_list_holds_for_the_organs_inside_an_allowed_one() -> None:
    parents = {"right upper lobe": "right lung"}
    masks = masks_of(heart=(0, 0, 60, 80), right_upper_lobe=(0, 0, 50, 80))
    lesion = box(10, 10, 20, 20)
    assert decide(lesion, masks, allowed={"nodule": ("right lung",)}, parents=parents)[0].organ == "right upper lobe"
    assert decide(lesion, masks, allowed={"nodule": ("heart",)}, parents=parents)[0].organ == "heart"
    host, found = decide(lesion, masks, allowed={"nodule": ("liver",)})
    assert (host.organ, found.flags) == ("unknown", ("host_unknown",))
    assert "none of the organs in the image (heart, right upper lobe) is allowed" in host.reason


def test_the_nearest_organ_is_a_flagged_fallback_within_reach() -> None:
    masks = masks_of(heart=(0, 0, 20, 80), liver=(60, 0, 80, 80))
    host, found = decide(box(24, 30, 30, 40), masks)
    assert (host.organ, host.fallback, host.score, found.flags) == ("heart", True, 0.0, ("host_fallback",))
    assert "heart is the nearest, 3.12% of the diagonal away" in host.reason
    host, found = decide(box(35, 30, 40, 40), masks)
    assert (host.organ, host.fallback, found.flags, found.area_fraction) == ("unknown", False, ("host_unknown",), None)
    assert "beyond the reach of 5.00%" in host.reason
    assert decide(box(35, 30, 40, 40), masks, reach=0.2)[0].organ == "heart"


def test_a_box_half_in_and_half_out_touches_and_falls_back() -> None:
    masks = masks_of(heart=(0, 0, 20, 80))
    host, _ = decide(box(16, 30, 30, 40), masks, reach=0.0)
    assert (host.organ, host.fallback) == ("heart", True)
    assert host.score == pytest.approx(4 / 14)


def test_without_masks_the_host_is_unknown() -> None:
    host, found = decide(box(16, 30, 30, 40), masks_of(heart=(0, 0, 0, 0)))
    assert (host.organ, found.flags, host.reason) == ("unknown", ("host_unknown",), "the image has no organ masks")


@settings(max_examples=25, deadline=None)
@given(st.permutations(["a", "b", "c", "d"]), st.integers(0, 2**32 - 1))
def test_the_order_of_the_masks_does_not_matter(order: list[str], seed: int) -> None:
    generator = np.random.default_rng(seed)
    masks = {name: generator.random((8, 10)) < 0.6 for name in "abcd"}
    record = image_record(Box(x0=0.13, y0=0.2, x1=0.71, y1=0.9))
    assert assign_hosts(record, masks) == assign_hosts(record, {name: masks[name] for name in order})


def test_a_coarse_mask_gives_the_same_decision_as_a_fine_one() -> None:
    coarse = np.zeros((8, 10), dtype=bool)
    coarse[2:6, 1:5] = True
    fine = coarse.repeat(10, axis=0).repeat(10, axis=1)
    record = image_record(box(13, 27, 58, 66))
    one, other = (assign_hosts(record, {"heart": mask}).lesions[0] for mask in (coarse, fine))
    assert one.host == other.host
    assert one.area_fraction == pytest.approx(other.area_fraction)


def test_masks_and_rules_that_cannot_be_used_are_refused() -> None:
    record = image_record(box(1, 1, 5, 5))
    with pytest.raises(ValueError, match="must be bool"):
        assign_hosts(record, {"heart": np.zeros((80, 100))})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="of one size"):
        assign_hosts(record, {"heart": np.ones((80, 100), dtype=bool), "liver": np.ones((8, 10), dtype=bool)})
    with pytest.raises(ValueError, match="circle: a -> b -> a"):
        HostRules(parents={"a": "b", "b": "a"})
    with pytest.raises(ValueError, match=r"minimum must lie in \(0, 1\]"):
        HostRules(minimum=0)
    with pytest.raises(ValueError, match="reach must lie in"):
        HostRules(reach=2)
    with pytest.raises(ValueError, match="there are general, chest, retina"):
        host_rules("knee")
    assert host_rules("chest", "box_iou").rule == "box_iou"
