"""Codes and colours of segments, by the names that models give to their labels."""

import colorsys
import hashlib
import re
from dataclasses import dataclass
from typing import Any

PRIVATE = "99NNUNETEXT"  # the scheme of names without a code; 99 is for private ones
SIDES = {"left": "Left", "right": "Right"}

# Name without spaces, side and plural -> keyword in pydicom's SNOMED CT, RGB. Colours are distinct, and near to what
# atlases use where there is a habit.
ANATOMY: dict[str, tuple[str, tuple[int, int, int]]] = {
    "adrenalgland": ("AdrenalGland", (244, 186, 150)),
    "aorta": ("Aorta", (224, 60, 49)),
    "bladder": ("Bladder", (222, 194, 92)),
    "urinarybladder": ("Bladder", (222, 194, 92)),
    "bone": ("Bone", (241, 226, 190)),
    "brain": ("Brain", (226, 180, 170)),
    "colon": ("Colon", (197, 140, 92)),
    "duodenum": ("Duodenum", (255, 170, 90)),
    "esophagus": ("Esophagus", (211, 171, 143)),
    "oesophagus": ("Esophagus", (211, 171, 143)),
    "femur": ("Femur", (232, 214, 160)),
    "gallbladder": ("Gallbladder", (120, 170, 70)),
    "heart": ("Heart", (206, 70, 80)),
    "hippocampus": ("Hippocampus", (110, 190, 200)),
    "inferiorvenacava": ("InferiorVenaCava", (70, 120, 200)),
    "postcava": ("InferiorVenaCava", (70, 120, 200)),
    "kidney": ("Kidney", (185, 102, 83)),
    "liver": ("Liver", (170, 90, 50)),
    "lung": ("Lung", (140, 190, 230)),
    "pancreas": ("Pancreas", (249, 180, 111)),
    "prostate": ("Prostate", (230, 158, 140)),
    "smallintestine": ("SmallIntestine", (205, 167, 142)),
    "spinalcord": ("SpinalCord", (244, 214, 49)),
    "spleen": ("Spleen", (157, 108, 162)),
    "stomach": ("Stomach", (216, 132, 105)),
    "trachea": ("Trachea", (182, 228, 255)),
}
ABNORMAL: dict[str, tuple[str, tuple[int, int, int]]] = {
    "cyst": ("Cyst", (205, 205, 100)),
    "edema": ("Edema", (140, 224, 228)),
    "oedema": ("Edema", (140, 224, 228)),
    "lesion": ("Lesion", (255, 90, 160)),
    "necrosis": ("Necrosis", (130, 130, 70)),
    "neoplasm": ("Neoplasm", (144, 238, 60)),
    "tumor": ("Neoplasm", (144, 238, 60)),
    "tumour": ("Neoplasm", (144, 238, 60)),
}


@dataclass(frozen=True)
class Concept:
    """What a segment is: codes as `(value, scheme, meaning)`, and the colour that is recommended for it."""

    category: tuple[str, str, str]
    kind: tuple[str, str, str]
    side: tuple[str, str, str] | None
    colour: tuple[int, int, int]  # RGB, 0 to 255


def concept_of(name: str, number: int) -> Concept:
    """The concept of a label's name; what has no code gets a private one, and the colour of its number.

    Only a name that is, apart from its side, exactly one of the tables' has a code of SNOMED CT: "liver tumor" could
    be coded in several ways, and a code that is nearly right is wrong.
    """
    words = re.findall(r"[a-z0-9]+", name.lower())
    sides = [word for word in words if word in SIDES]
    key = "".join(word for word in words if word not in SIDES)
    table = next((t for t in (ANATOMY, ABNORMAL) if key in t or key.removesuffix("s") in t), None)
    plain = re.fullmatch(r"[A-Za-z0-9 _.-]+", name)  # not "prostate/uterus", nor letters that were left out here
    if table is None or not plain or len(sides) > 1:
        return Concept(_sct("SpatialAndRelationalConcept"), _private(name), None, colour_of(number))
    keyword, colour = table[key] if key in table else table[key.removesuffix("s")]
    category = "AnatomicalStructure" if table is ANATOMY else "MorphologicallyAbnormalStructure"
    if sides:  # the two of a pair can be told apart
        colour = _shaded(colour, 0.8 if sides[0] == "left" else 1.0)
    return Concept(_sct(category), _sct(keyword), _sct(SIDES[sides[0]]) if sides else None, colour)


def colour_of(number: int) -> tuple[int, int, int]:
    """A colour for each number from 1: hues by the golden ratio, so that neighbours differ."""
    hue, lightness = (number * 0.618034) % 1, (0.55, 0.4, 0.7)[number % 3]
    red, green, blue = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.8))
    return red, green, blue


def _shaded(colour: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    red, green, blue = (round(share * part) for part in colour)
    return red, green, blue


def _sct(keyword: str) -> tuple[str, str, str]:
    from pydicom.sr.codedict import codes

    code: Any = getattr(codes.SCT, keyword)
    return code.value, code.scheme_designator, code.meaning


def _private(name: str) -> tuple[str, str, str]:
    """A code of at most 16 characters, the same for the same name in every file."""
    value = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    if value != name or len(value) > 16:
        value = f"{value[:7]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return value, PRIVATE, text_of(name)


def text_of(name: str) -> str:
    """A name as DICOM's short texts may hold it: 64 characters, no backslash, no control characters."""
    return re.sub(r"[\x00-\x1f\x7f]+", " ", name.replace("\\", "/")).strip()[:64] or "unnamed"
