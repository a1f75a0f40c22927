"""Plurals, articles and mass nouns of medical English, for class names that nobody listed."""

from __future__ import annotations

import re

_IRREGULAR = {
    "metastasis": "metastases", "stenosis": "stenoses", "diagnosis": "diagnoses", "prosthesis": "prostheses",
    "anastomosis": "anastomoses", "exostosis": "exostoses", "atelectasis": "atelectases", "pelvis": "pelves",
    "calculus": "calculi", "thrombus": "thrombi", "embolus": "emboli", "bronchus": "bronchi", "villus": "villi",
    "nucleus": "nuclei", "bacillus": "bacilli", "fungus": "fungi", "hilus": "hila", "hilum": "hila", "ilium": "ilia",
    "diverticulum": "diverticula", "septum": "septa", "bacterium": "bacteria", "ovum": "ova", "acetabulum": "acetabula",
    "bulla": "bullae", "vertebra": "vertebrae", "fistula": "fistulae", "fovea": "foveae", "papilla": "papillae",
    "thorax": "thoraces", "pneumothorax": "pneumothoraces", "hemothorax": "hemothoraces",
    "hydropneumothorax": "hydropneumothoraces", "matrix": "matrices", "varix": "varices", "cortex": "cortices",
    "apex": "apices", "phalanx": "phalanges", "foramen": "foramina", "lumen": "lumina", "ganglion": "ganglia",
    "mitochondrion": "mitochondria", "criterion": "criteria", "focus": "foci", "locus": "loci", "nevus": "nevi",
    "naevus": "naevi", "tooth": "teeth", "foot": "feet", "person": "persons", "calf": "calves", "druse": "drusen",
    "scar": "scars", "fibula": "fibulae", "scapula": "scapulae", "areola": "areolae", "macula": "maculae",
}  # fmt: skip
_PLURALS = frozenset(_IRREGULAR.values())
_SINGULAR_WORDS = "pus pancreas lens herpes ascites diabetes pons caries biceps rickets gas"
_MASS_WORDS = (
    "air fluid blood pus gas tissue edema oedema emphysema empyema pneumonia tuberculosis cancer disease ascites erythema "
    "cyanosis swelling thickening scarring blunting narrowing widening glass bleeding lymphadenopathy enlargement congestion "
    "collapse shift tortuosity herpes diabetes caries covid inflammation infection fat"
)
_MASS_ENDS = "fibrosis itis emia aemia ectasis iasis pathy trophy plasia malacia necrosis ation"
_SINGULAR_IN_S, _MASS = frozenset(_SINGULAR_WORDS.split()), frozenset(_MASS_WORDS.split())
_MASS_ENDINGS = tuple(_MASS_ENDS.split())
_AFTER_HEAD = re.compile(r"\s+(?:in|of|with|without|at|on|due)\s.*$")
_LETTERS_AN = "AEFHILMNORSX"
_SPOKEN_YOU = re.compile(r"(?:uni(?!n|m)|us[eu]|ut[ei]|ure|uro|eu|ubi|one\b|once\b)", re.IGNORECASE)
_ACRONYM = re.compile(r"[A-Z]{2,}s?\b")


def head_of(text: str) -> str:
    """The noun of a phrase that is counted.

    >>> head_of("carcinoma in situ"), head_of("lung opacity"), head_of("nodule/mass")
    ('carcinoma', 'opacity', 'mass')
    """
    return re.split(r"[\s/-]", _AFTER_HEAD.sub("", text.strip()))[-1]


def is_plural_noun(text: str) -> bool:
    """Whether the head of a phrase is a plural already.

    >>> is_plural_noun("hard exudates"), is_plural_noun("calculi"), is_plural_noun("abscess"), is_plural_noun("RBCs")
    (True, True, False, True)
    """
    head = head_of(text)
    if _ACRONYM.fullmatch(head):
        return head.endswith("s")
    word = head.lower()
    if word in _PLURALS:
        return True
    return word.endswith("s") and not word.endswith(("ss", "is", "us")) and word not in _SINGULAR_IN_S


def is_mass_noun(text: str) -> bool:
    """Whether the head of a phrase takes no article and is not counted.

    >>> is_mass_noun("pleural thickening"), is_mass_noun("pulmonary fibrosis"), is_mass_noun("COVID-19"), is_mass_noun("cyst")
    (True, True, True, False)
    """
    head = head_of(text).lower()
    named = text.lower().split("-")[0] in _MASS
    return named or head in _MASS or head.endswith(_MASS_ENDINGS)


def plural_of(text: str) -> str:
    """The plural of a phrase: of its head, of both sides of a slash or an "or".

    >>> [plural_of(text) for text in ("lung opacity", "mass", "nodule/mass", "carcinoma in situ", "metastasis", "RBC", "tooth")]
    ['lung opacities', 'masses', 'nodules/masses', 'carcinomas in situ', 'metastases', 'RBCs', 'teeth']
    """
    rest = _AFTER_HEAD.search(text)
    if rest:
        return plural_of(text[: rest.start()]) + rest[0]
    parts = re.split(r"(/| or | and )", text)
    if len(parts) > 1:
        return "".join(part if number % 2 else plural_of(part) for number, part in enumerate(parts))
    start, word = text[: -len(head_of(text))], head_of(text)
    if is_plural_noun(text):
        return text
    return start + _plural_word(word)


def _plural_word(word: str) -> str:
    lower = word.lower()
    if re.fullmatch(r"[A-Z]{2,}", word):
        return f"{word}s"
    if lower in _IRREGULAR:
        return word[0] + _IRREGULAR[lower][1:]
    if lower.endswith("y") and lower[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    if lower.endswith("sis"):
        return f"{word[:-2]}es"
    return f"{word}es" if lower.endswith(("s", "x", "ch", "sh", "z")) else f"{word}s"


def with_article(text: str) -> str:
    """A noun with "a" or "an", by the sound it begins with.

    >>> [with_article(text) for text in ("ulcer", "uniform mass", "RBC", "MA", "ureter stone", "X-ray", "other lesion")]
    ['an ulcer', 'a uniform mass', 'an RBC', 'an MA', 'a ureter stone', 'an X-ray', 'another lesion']
    """
    word = re.split(r"[\s/-]", text)[0]
    if word.lower() == "other":
        return f"an{text}"
    if _ACRONYM.fullmatch(word) or len(word) == 1:
        return f"{'an' if word[0].upper() in _LETTERS_AN else 'a'} {text}"
    spoken = word.lower().startswith(("hour", "honest", "heir")) or word[:1].lower() in "aeiou"
    return f"{'an' if spoken and not _SPOKEN_YOU.match(word) else 'a'} {text}"
