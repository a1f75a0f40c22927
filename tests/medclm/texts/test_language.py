"""English of the texts: every class name of the table, and many that it does not have, in every template."""

from __future__ import annotations

import random
import re

import pytest

from tests.medclm.samples import host, lesion, record
from trimtab.medclm.findings import FINDINGS
from trimtab.medclm.texts import asks
from trimtab.medclm.texts.reasoning import steps
from trimtab.medclm.texts.template import QUESTIONS, _words
from trimtab.medclm.texts.wording import indefinite, is_counted, regions, seed_text, shown

EXPECTED = {  # class name: (with article, plural or what is counted)
    "lung opacity": ("a lung opacity", "lung opacities"), "Lung cavity": ("a lung cavity", "lung cavities"),
    "Pulmonary fibrosis": ("pulmonary fibrosis", "regions of pulmonary fibrosis"),
    "Nodule/Mass": ("a nodule/mass", "nodules/masses"), "ILD": ("ILD", "regions of ILD"), "RBC": ("an RBC", "RBCs"),
    "Other lesion": ("another lesion", "other lesions"), "Diffuse Nodule": ("a diffuse nodule", "diffuse nodules"),
    "Pleural_Thickening": ("pleural thickening", "regions of pleural thickening"), "Edema": ("edema", "regions of edema"),
    "COVID-19": ("COVID-19", "regions of COVID-19"), "bronchiectasis": ("bronchiectasis", "regions of bronchiectasis"),
    "metastasis": ("a metastasis", "metastases"), "abscess": ("an abscess", "abscesses"),
    "lymph node": ("a lymph node", "lymph nodes"), "hemorrhage": ("a hemorrhage", "hemorrhages"),
    "soft exudates": ("soft exudates", "regions of soft exudates"), "MA": ("an MA", "MAs"), "ulcer": ("an ulcer", "ulcers"),
    "adenocarcinoma": ("an adenocarcinoma", "adenocarcinomas"), "pus": ("pus", "regions of pus"),
    "carcinoma in situ": ("a carcinoma in situ", "carcinomas in situ"), "nodes": ("nodes", "regions of nodes"),
    "ground-glass opacities": ("ground-glass opacities", "regions of ground-glass opacities"),
    "ground glass opacity": ("a ground glass opacity", "ground glass opacities"), "hernia": ("a hernia", "hernias"),
    "Lung Opacity": ("a lung opacity", "lung opacities"), "tooth": ("a tooth", "teeth"), "calculus": ("a calculus", "calculi"),
    "calculi": ("calculi", "regions of calculi"), "thrombus": ("a thrombus", "thrombi"), "polyp": ("a polyp", "polyps"),
    "Pneumothorax": ("a pneumothorax", "pneumothoraces"), "Unilateral mass": ("a unilateral mass", "unilateral masses"),
    "X-ray artefact": ("an X-ray artefact", "X-ray artefacts"), "Platelets": ("platelets", "regions of platelets"),
    "PICC line": ("a PICC line", "PICC lines"), "biopsy": ("a biopsy", "biopsies"),
    "Kerley B line": ("a Kerley B line", "Kerley B lines"),
    "ureteral stone": ("a ureteral stone", "ureteral stones"), "bulla": ("a bulla", "bullae"),
    "HPV lesion": ("an HPV lesion", "HPV lesions"),
    "mediastinum lesion": ("a mediastinum lesion", "mediastinum lesions"), "vertebra": ("a vertebra", "vertebrae"),
    "LungOpacity": ("a lung opacity", "lung opacities"), "POLYP": ("a polyp", "polyps"), "hepatomegaly": ("hepatomegaly", None),
    "Cardiomegaly": ("cardiomegaly", None), "Aortic enlargement": ("aortic enlargement", None),
}  # fmt: skip
NAMES = sorted(
    {*EXPECTED, *(name for one in FINDINGS for name in (one.name, *one.spellings))} - {"Other lesion", "other lesion"}
)


@pytest.mark.parametrize("label", EXPECTED)
def test_articles_and_plurals_are_those_of_a_dictionary(label):
    one, many = EXPECTED[label]
    assert indefinite(label) == one
    assert is_counted(label) == (many is not None)
    if many is not None:
        assert regions(label) == many
        assert regions(label, 2) == f"2 {many}"


def _images(label):
    """One lesion; two of one class with one of another; the other way round; a fallback; bones; the heart."""
    small, large, far = (0.1, 0.1, 0.2, 0.2), (0.1, 0.4, 0.4, 0.7), (0.6, 0.2, 0.7, 0.5)
    other = "consolidation" if shown(label) != "consolidation" else "nodule"
    yield record(lesion(1, label, large, host(zone="upper zone")))
    yield record(
        lesion(1, label, small, host()),
        lesion(2, label, large, host()),
        lesion(3, other, far, host("left lung", "left")),
    )
    yield record(lesion(1, label, large, host()), lesion(2, other, far, host("left lung", "left")))
    yield record(
        lesion(1, other, small, host()), lesion(2, other, large, host()), lesion(3, label, far, host("ribs", "left"))
    )
    yield record(lesion(1, label, (0.45, 0.4, 0.6, 0.6), host("heart", "left", fallback=True)))
    yield record(lesion(1, label, (0.45, 0.4, 0.55, 0.6), host("heart", "midline")))


def _texts(label):
    """Every wording of every question, with its reasoning by several choices, and the seed sentences."""
    for image in _images(label):
        for one in (None, *image.lesions):
            yield seed_text(image, one)
            for stage in ("easy", "medium"):
                for ask in asks(image, one, stage, {label, "mass", "consolidation"}):
                    words = _words(image, one, ask)
                    yield from (text.format(**words) for text in QUESTIONS[f"{ask.kind}/{ask.variant}"])
                    for seed in range(3):
                        yield from steps(image, one, ask, stage, random.Random(seed))


WRONG = {
    "two articles": r"\b(?:an?|the) (?:an?|the)\b",
    "plural in -ys": r"[b-df-hj-np-tv-z]ys\b",
    "double plural": r"(?:sses|ses|calculi|bullae|thrombi|xes|ies|ss)s\b|sises\b|\bregions? of regions?|masss|glasses",
    "wrong plural": r"thoraxes\b|tooths\b|calculuses|thrombuses",
    "article before a plural": r"\ban? (?:\w+ )?(?:exudates|drusen|nodules|opacities|nodes|masses|calculi)\b",
    "article before no countable": r"\ban? (?:consolidation|edema|fibrosis|emphysema|atelectasis|cardiomegaly|pneumonia|pus)\b",
    "counted state": r"(?:regions?|largest) of (?:the )?(?:cardiomegaly|scoliosis|\w+ enlargement|mediastinal shift)",
    "number": r"\b1 regions\b|\b[2-9] region\b|\b[2-9] (?:nodule|mass|opacity|fracture) ",
    "an before a consonant": r"\ban (?![aeiou]|[AEFHILMNORSX](?:[A-Z]|-))",
    "a before a vowel": r"\ba (?=[aeiou])(?!uni|ure|uro|use)|\ba (?=[AEFHILMNORSX](?:[A-Z]|-))",
    "side of the picture": r"which is on the patient's",
    "naked noun": r"\b(?:sign of|Can) (?:nodule|mass|lung opacity|pleural effusion|fracture|hernia)\b",
    "ribs": r"ribs (?:is|holds)\b",
}
CAPITAL = re.compile(r"(?<![.:?!] )(?<!^)\b[A-Z][a-z]+\b")


@pytest.mark.parametrize("label", NAMES)
def test_every_template_reads_well_with_every_class_name(label):
    texts = set(_texts(label))
    assert len(texts) > 60
    for text in texts:
        for what, pattern in WRONG.items():
            assert not re.search(pattern, text), (what, text)
        capitals = [found for found in CAPITAL.findall(text) if found not in ("Kerley",)]
        assert not [word for word in capitals if word.lower() in label.lower() or word == "Left"], text
        assert text[0].isupper() or text[0] == "[" or text[0].isdigit(), text


def test_one_of_each_is_not_called_the_largest_of_several():
    image = record(
        lesion(1, "pleural effusion", (0.1, 0.4, 0.4, 0.7), host()),
        lesion(2, "consolidation", (0.6, 0.2, 0.7, 0.5), host()),
    )
    ask = next(a for a in asks(image, image.lesions[0], "medium", ()) if a.variant == "area")
    questions = {text.format(**_words(image, image.lesions[0], ask)) for text in QUESTIONS["compare/area"]}
    assert questions == {
        "Which covers the larger box, the pleural effusion or the consolidation?",
        "Which has the larger box here, the pleural effusion or the consolidation?",
    }


def test_counts_list_every_box_they_count():
    image = next(image for image in _images("nodule") if len(image.lesions) == 3)
    ask = next(a for a in asks(image, image.lesions[0], "medium", ()) if a.variant == "number")
    text = " ".join(steps(image, image.lesions[0], ask, "medium", random.Random(0)))
    first, second = "[0.1000, 0.1000, 0.2000, 0.2000]", "[0.1000, 0.4000, 0.4000, 0.7000]"
    third = "[0.6000, 0.2000, 0.7000, 0.5000]"
    assert f"I count 2 nodules at {first} and {second}, and 1 region of consolidation at {third}." in text
