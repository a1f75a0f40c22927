"""Class names: one table of findings with their spellings, their grammar, and where they lie."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from trimtab.medclm.english import plural_of

Grammar = Literal["one", "mass", "state", "many"]
"""one: "a nodule", "nodules". mass: "consolidation", "regions of consolidation". state: of an organ as a whole, such as
"cardiomegaly", never counted. many: a class name that is a plural, "hard exudates"."""

LUNGS = ("left lung", "right lung")
BONES = (
    "ribs", "spine", "sternum", "left clavicle", "right clavicle", "left scapula", "right scapula", "left humerus",
    "right humerus",
)  # fmt: skip
RETINA_PARTS = tuple(f"{a} {b} retina" for a in ("superior", "inferior") for b in ("temporal", "nasal"))
_PLACES: Mapping[str, tuple[str, ...]] = {
    "lungs": LUNGS,
    "lungs or mediastinum": (*LUNGS, "mediastinum"),
    "pleural space": (*LUNGS, "diaphragm"),
    "pleura": (*LUNGS, "diaphragm"),
    "heart": ("heart",),
    "heart or mediastinum": ("heart", "mediastinum", "aorta"),
    "aorta": ("aorta", "mediastinum"),
    "hila": ("left hilum", "right hilum", "mediastinum", "heart"),
    "mediastinum": ("mediastinum", "trachea", "left hilum", "right hilum", "aorta", "heart"),
    "diaphragm": ("diaphragm", "mediastinum", "heart"),
    "soft parts": (*LUNGS, "mediastinum", "heart", "aorta", "trachea", "left hilum", "right hilum", "diaphragm"),
    "bones": BONES,
    "clavicles": ("left clavicle", "right clavicle"),
    "ribs": ("ribs",),
    "spine": ("spine",),
    "retina": (*RETINA_PARTS, "retina"),
    "none": (),
}
"""Where the findings of a row of the tables lie -> the organs that may hold them; "none": no one organ does."""

# name | grammar | place | other spellings. The findings of VinDr-CXR, NIH ChestX-ray14, RSNA, ChestX-Det and CheXpert.
_CHEST = """
nodule | one | lungs | pulmonary nodule, lung nodule, solitary nodule, solitary pulmonary nodule
mass | one | lungs or mediastinum | lung mass, pulmonary mass
nodule/mass | one | lungs or mediastinum | mass/nodule, nodule or mass, nodule and mass
diffuse nodule | one | lungs | diffuse nodular opacity
lung lesion | one | lungs | pulmonary lesion
lung tumor | one | lungs | lung tumour, pulmonary tumor
consolidation | mass | lungs | lung consolidation, pulmonary consolidation
lung opacity | one | lungs | opacity, pulmonary opacity, airspace opacity, air space opacity, lung opacification
ground-glass opacity | one | lungs | GGO, ground glass
infiltration | mass | lungs | infiltrate, lung infiltrate, pulmonary infiltrate, pulmonary infiltration
atelectasis | mass | lungs | lobar atelectasis
pneumonia | mass | lungs | bronchopneumonia
COVID-19 pneumonia | mass | lungs | COVID-19, COVID, COVID19
tuberculosis | mass | lungs | TB, pulmonary tuberculosis
edema | mass | lungs | oedema, pulmonary edema, pulmonary oedema, lung edema
emphysema | mass | lungs | pulmonary emphysema
fibrosis | mass | lungs | pulmonary fibrosis, lung fibrosis
interstitial lung disease | mass | lungs | ILD
chronic obstructive pulmonary disease | mass | lungs | COPD
bronchiectasis | mass | lungs |
lung cavity | one | lungs | cavity, cavitation, pulmonary cavity
lung cyst | one | lungs | cyst, pulmonary cyst
calcification | one | soft parts |
pleural effusion | one | pleural space | effusion
pneumothorax | one | pleural space |
pleural thickening | mass | pleura |
pleural abnormality | one | pleura | pleural other, pleural lesion
cardiomegaly | state | heart | enlarged heart, cardiac enlargement
cardiomediastinal enlargement | state | heart or mediastinum | enlarged cardiomediastinum
aortic enlargement | state | aorta | enlarged aorta
aortic tortuosity | state | aorta | tortuous aorta
pulmonary artery enlargement | state | hila | enlarged PA, enlarged pulmonary artery
mediastinal shift | state | mediastinum |
mediastinum lesion | one | mediastinum | mediastinal lesion
pneumomediastinum | mass | mediastinum |
pneumoperitoneum | mass | none |
subcutaneous emphysema | mass | none |
hernia | one | diaphragm | hiatal hernia, hiatus hernia, diaphragmatic hernia
fracture | one | bones | bone fracture
rib fracture | one | ribs |
clavicle fracture | one | clavicles | clavicular fracture
bone lesion | one | bones |
scoliosis | state | spine |
support device | one | none | medical device
foreign object | one | none | foreign body
unspecified lesion | one | none | other lesion
unspecified disease | one | none | other disease
"""
# The findings of IDRiD, e-ophtha, DIARETDB and FGADR.
_RETINA = """
hard exudates | many | retina | hard exudate, EX
soft exudates | many | retina | soft exudate, SE
cotton wool spot | one | retina | cotton-wool spot, CWS
microaneurysm | one | retina | MA
hemorrhage | one | retina | haemorrhage, retinal hemorrhage, HE, HEM
neovascularization | mass | retina | neovascularisation, NV
intraretinal microvascular abnormality | one | retina | IRMA
drusen | many | retina | druse
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the table.

    Attributes:
        name: as it stands in records and texts.
        grammar: how it is counted, see `Grammar`.
        anatomy: "chest" or "retina".
        place: a key such as "lungs" or "pleural space".
        organs: the organs that may hold it; empty where no one organ does (a device, "other lesion").
        spellings: other names of it.
    """

    name: str
    grammar: Grammar
    anatomy: str
    place: str
    organs: tuple[str, ...]
    spellings: tuple[str, ...]


def _rows(anatomy: str, table: str) -> list[Finding]:
    found = []
    for line in table.strip().splitlines():
        name, grammar, place, spellings = (cell.strip() for cell in line.split("|"))
        others = tuple(one.strip() for one in spellings.split(",") if one.strip())
        found.append(Finding(name, grammar, anatomy, place, _PLACES[place], others))  # type: ignore[arg-type]
    return found


FINDINGS: tuple[Finding, ...] = (*_rows("chest", _CHEST), *_rows("retina", _RETINA))
"""Every finding that is known by name."""

_NAMES = "Kerley Crohn Barrett Bochdalek Morgagni Hodgkin Paget Schmorl Ewing Kaposi Meckel"
_PROPER = frozenset(_NAMES.split())
_SIDE = re.compile(r"\b(?:left|right|bilateral)(?:[ -]sided)?\b ?", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z][a-z])")


@lru_cache(maxsize=4096)
def tidied(label: str) -> str:
    """A class name as it stands inside a sentence: single spaces, no underscores, no capitals but those of acronyms and names.

    A word in capitals is an acronym if it has a digit, at most three letters, or stands beside words in small letters.

    >>> tidied("Pleural_Thickening"), tidied("Nodule / Mass"), tidied("NODULE"), tidied("RBC"), tidied("COVID-19")
    ('pleural thickening', 'nodule/mass', 'nodule', 'RBC', 'COVID-19')
    """
    text = " ".join(_CAMEL.sub(" ", label).replace("_", " ").split())
    text = re.sub(r"\s*/\s*", "/", text)
    exact = _named().get(_key(text))
    if exact is not None and exact.name.lower() == text.lower():
        return exact.name
    loud = not any(letter.islower() for letter in text)

    def small(found: re.Match[str]) -> str:
        word = found[0]
        letters = re.sub(r"[^A-Za-z]", "", word)
        capitals = sum(letter.isupper() for letter in letters)
        numbered = capitals > 1 and any(map(str.isdigit, word))
        if word in _PROPER or word.startswith("X-") or numbered or len(letters) == 1 < len(text):
            return word
        if capitals > 1 and (len(letters) <= 3 or not loud):  # RBC, mRNA, PICC line, RBCs
            return word
        return word.lower()

    return re.sub(r"[^\s/]+", small, text)


@lru_cache(maxsize=4096)
def finding_of(label: str) -> Finding | None:
    """The finding that a class name means, whatever its case, number, side or spelling; None where the table has none.

    >>> [finding_of(label).name for label in ("Effusion", "NODULES", "Nodule/Mass", "left pleural effusion", "Infiltrate")]
    ['pleural effusion', 'nodule', 'nodule/mass', 'pleural effusion', 'infiltration']
    >>> finding_of("zebra stripe") is None
    True
    """
    key = _key(_CAMEL.sub(" ", label))
    return _named().get(key) or _named().get(_key(_SIDE.sub("", key)))


def side_in(label: str) -> str | None:
    """The side that a class name holds: "left", "right", "bilateral", or None.

    >>> side_in("Left_pleural_effusion"), side_in("nodule"), side_in("right-sided nodule")
    ('left', None, 'right')
    """
    found = re.search(r"\b(left|right|bilateral)\b", _key(label))
    return found[1] if found else None


def _key(label: str) -> str:
    """What two spellings of one name have in common."""
    return " ".join(re.sub(r"[^a-z0-9/]+", " ", label.lower()).replace("/", " / ").split())


@lru_cache(maxsize=1)
def _named() -> dict[str, Finding]:
    """Key of each name, spelling, and plural of these -> finding."""
    found: dict[str, Finding] = {}
    for finding in FINDINGS:
        for spelling in (finding.name, *finding.spellings):
            for text in (spelling, plural_of(spelling)):
                other = found.setdefault(_key(text), finding)
                if other is not finding:
                    raise AssertionError(f"{text!r} means {other.name!r} and {finding.name!r}")
    return found
