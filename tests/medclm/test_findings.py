"""Class names of the public chest sets: each finds its row of the table, and the organs that may hold it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from tests.medclm.pictures import image_record
from tests.medclm.samples import source
from trimtab.medclm import rules
from trimtab.medclm.building import DataSetFolder, build
from trimtab.medclm.findings import BONES, FINDINGS, LUNGS, finding_of, side_in, tidied
from trimtab.medclm.hosts import assign_hosts
from trimtab.medclm.records import Box
from trimtab.medclm.rules import HostRules, host_rules

VINDR = (
    "Aortic enlargement, Atelectasis, Calcification, Cardiomegaly, Clavicle fracture, Consolidation, Edema, Emphysema, "
    "Enlarged PA, ILD, Infiltration, Lung Opacity, Lung cavity, Lung cyst, Mediastinal shift, Nodule/Mass, Pleural effusion, "
    "Pleural thickening, Pneumothorax, Pulmonary fibrosis, Rib fracture, Other lesion, COPD, Lung tumor, Pneumonia, "
    "Tuberculosis, Other diseases"
)
NIH = (
    "Atelectasis, Cardiomegaly, Effusion, Infiltrate, Infiltration, Mass, Nodule, Pneumonia, Pneumothorax, Consolidation, "
    "Edema, Emphysema, Fibrosis, Pleural_Thickening, Hernia"
)
RSNA = "lung opacity, Lung Opacity, pneumonia"
CHESTX_DET = (
    "Atelectasis, Calcification, Cardiomegaly, Consolidation, Diffuse Nodule, Effusion, Emphysema, Fibrosis, Fracture, Mass, "
    "Nodule, Pleural Thickening, Pneumothorax"
)
CHEXPERT = (
    "Enlarged Cardiomediastinum, Cardiomegaly, Lung Lesion, Lung Opacity, Edema, Consolidation, Pneumonia, Atelectasis, "
    "Pneumothorax, Pleural Effusion, Pleural Other, Fracture, Support Devices, Airspace Opacity"
)
NAMES = sorted({name for text in (VINDR, NIH, RSNA, CHESTX_DET, CHEXPERT) for name in text.split(", ")})
WITHOUT_ORGAN = {"Other lesion", "Other diseases", "Support Devices"}


@pytest.mark.parametrize("name", NAMES)
def test_every_finding_of_the_public_sets_is_listed_and_has_its_organs(name):
    chest = host_rules("chest")
    assert chest.lists(name)
    assert (chest.organs_of(name) == ()) == (name in WITHOUT_ORGAN)
    for spelling in (name.lower(), name.upper(), name.replace(" ", "_"), name.title().replace(" ", "")):
        assert chest.class_of(spelling) == chest.class_of(name)


@pytest.mark.parametrize(
    ("name", "organs"),
    [
        *((name, LUNGS) for name in ("Nodule", "ILD", "Infiltrate", "Lung cavity", "COPD", "Airspace Opacity")),
        ("Nodule/Mass", (*LUNGS, "mediastinum")), ("Fracture", BONES), ("Rib fracture", ("ribs",)),
        ("Clavicle fracture", ("left clavicle", "right clavicle")),
        ("Effusion", (*LUNGS, "diaphragm")), ("Pneumothorax", (*LUNGS, "diaphragm")), ("Cardiomegaly", ("heart",)),
        ("Aortic enlargement", ("aorta", "mediastinum")),
    ],
)  # fmt: skip
def test_findings_lie_where_they_lie(name, organs):
    assert host_rules("chest").organs_of(name) == organs


def test_spellings_of_the_sets_meet_in_one_class():
    groups = [
        ("Effusion", "Pleural effusion", "Pleural Effusion", "pleural_effusions", "Left pleural effusion"),
        ("Nodule", "nodules", "NODULE", "pulmonary nodule"), ("Nodule/Mass", "nodule / mass", "Nodules/Masses"),
        ("Edema", "Pulmonary oedema"), ("Fibrosis", "Pulmonary fibrosis"), ("Lung Opacity", "lung opacities", "opacity"),
        ("Infiltrate", "Infiltration"), ("Support Devices", "support device"), ("hard_exudates", "Hard Exudate", "EX"),
    ]  # fmt: skip
    for group in groups:
        assert len({finding_of(name).name for name in group}) == 1, group
    assert len({finding_of(group[0]).name for group in groups}) == len(groups)


def test_the_names_of_the_table_stand_as_they_are():
    for finding in FINDINGS:
        assert tidied(finding.name) == finding.name
        assert finding_of(finding.name) is finding
        assert side_in(finding.name) is None


def _decided(label, rules):
    lung, rib = np.zeros((400, 400), bool), np.zeros((400, 400), bool)
    lung[60:340, 40:180] = True
    rib[195:207, 50:170] = True
    record = image_record(Box(x0=0.30, y0=0.49, x1=0.36, y1=0.515), size=(400, 400), label=label)
    return assign_hosts(record, {"right lung": lung, "ribs": rib}, rules).lesions[0]


@pytest.mark.parametrize(
    "label", ["Nodule", "NODULES", "Nodule/Mass", "Effusion", "Pneumothorax", "Lung Opacity", "ILD"]
)
def test_a_small_box_on_a_rib_goes_to_the_lung_however_it_is_spelt(label):
    assert _decided(label, host_rules("chest")).host.organ == "right lung"


def test_a_fracture_there_goes_to_the_ribs():
    assert _decided("Fracture", host_rules("chest")).host.organ == "ribs"


def test_an_unknown_name_is_not_hosted_by_luck_and_warns_once(monkeypatch):
    monkeypatch.setattr(rules, "_WARNED", set())
    with pytest.warns(UserWarning, match="no organ is known for the classes 'zebra stripe'"):
        lesion = _decided("zebra stripe", host_rules("chest"))
    assert (lesion.host.organ, lesion.flags) == ("unknown", ("host_unknown",))
    assert lesion.host.reason == "the class 'zebra stripe' is not in the allow-list"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _decided("zebra stripe", host_rules("chest"))
        assert _decided("zebra stripe", host_rules("general")).host.organ in ("right lung", "ribs")
        assert _decided("zebra stripe", host_rules("chest", allowed={"Zebra_Stripe": ("ribs",)})).host.organ == "ribs"
        other = _decided("Other lesion", host_rules("chest"))
    assert (other.host.organ, other.host.reason) == ("unknown", "a finding of this class has no one host organ")


def test_a_side_in_the_class_name_that_the_box_contradicts_leaves_the_host_unknown():
    right, wrong = (_decided(f"{side} nodule", host_rules("chest")) for side in ("Right", "Left"))
    assert (right.host.organ, right.host.side, right.flags) == ("right lung", "right", ())
    assert (wrong.host.organ, wrong.host.side, wrong.flags) == ("unknown", None, ("host_unknown", "side_conflict"))
    assert "says left" in wrong.host.reason


def test_an_own_entry_stands_before_the_presets_and_keeps_its_name():
    own = host_rules("chest", allowed={"effusion": ("heart",)})
    assert own.organs_of("Pleural Effusion") == ("heart",)
    assert own.class_of("Pleural Effusion") == "effusion"
    assert own.organs_of("Nodule") == LUNGS
    assert HostRules(allowed={"knee effusion": ("knee",)}).class_of("Knee_Effusion") == "knee effusion"
    with pytest.raises(ValueError, match="'general' have no allow-list"):
        host_rules("general", allowed={"nodule": LUNGS})


def test_a_built_set_names_its_classes_by_the_table(tmp_path):
    options = source(tmp_path / "source")
    text = options.detections.read_text().replace('"effusion"', '"Pleural_Effusions"').replace('"mass"', '"Zebra"')
    options.detections.write_text(text)
    with pytest.warns(UserWarning, match="classes 'Zebra'"):
        build(options, tmp_path / "out")
    folder = DataSetFolder(tmp_path / "out")
    statistics = folder.statistics()
    assert set(statistics["lesions by class"]) == {"nodule", "zebra", "pleural effusion"}
    names = {"Pleural_Effusions": "pleural effusion", "Zebra": "zebra", "nodule": "nodule"}
    assert statistics["classes by name of the source"] == names
    for record in folder.records():
        for lesion in record.lesions:
            assert (lesion.host.organ == "unknown") == (lesion.label == "zebra")
