"""FLARE22 and FLARE23: 13 abdominal organs in CT, FLARE23 with lesions (github.com/JunMa11/FLARE)."""

from pathlib import PurePosixPath
from typing import Any

import numpy as np

from nnunet_ext.challenges.facts import Challenge, Conventions, Files, Metrics, Submission

# mm, in the order of the label values from 1
TOLERANCES = {
    "liver": 5.0,
    "right kidney": 3.0,
    "spleen": 3.0,
    "pancreas": 5.0,
    "aorta": 2.0,
    "inferior vena cava": 2.0,
    "right adrenal gland": 2.0,
    "left adrenal gland": 2.0,
    "gallbladder": 2.0,
    "esophagus": 3.0,
    "stomach": 5.0,
    "duodenum": 7.0,
    "left kidney": 3.0,
    "lesion": 2.0,
}
# Scored from the first to the last but one of the slices in which the reference has them, as the scorer does it.
IN_LABELLED_SLICES = ("aorta", "inferior vena cava", "esophagus")
MEASURES = ("dice", "nsd")
CONVENTIONS = Conventions("perfect", nsd_from_dice=0.2)


def case_measure(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> dict[str, Any]:
    """Dice and NSD of the long structures, whose annotation may end before the image does; label maps `[X, Y, Z]`."""
    from nnunet_ext.challenges.metrics import structure_scores

    scores: dict[str, Any] = {}
    for name in IN_LABELLED_SLICES:
        value = list(TOLERANCES).index(name) + 1
        slices = np.flatnonzero((reference == value).any((0, 1)))
        if len(slices) and (prediction == value).any():
            span = slice(slices[0], slices[-1])
            ours, theirs = (np.ascontiguousarray(labels[:, :, span]) for labels in (prediction, reference))
            limit = TOLERANCES[name]
            scores |= structure_scores(
                ours, theirs, spacing, {name: (value,)}, MEASURES, tolerance=limit, conventions=CONVENTIONS
            )
    return {"structures": scores}


def split(case: str, path: PurePosixPath, names: frozenset[str]) -> str | None:
    """By folder and name; images without any annotation are left out."""
    folders = "/".join(path.parts[:-1]).lower()
    if "unlabel" in folders:
        return None
    if "ts" in case.lower().removeprefix("flare"):
        return "test" if "test" in folders else "val"
    return "train"


def _challenge(year: int, labels: int, train: int | None, dataset_id: int) -> Challenge:
    names = list(TOLERANCES)[:labels]
    values = {name: (value,) for value, name in enumerate(names, 1)}
    return Challenge(
        name=f"flare{year}",
        title=f"FLARE{year}",
        dataset_id=dataset_id,
        dataset_name=f"FLARE20{year}",
        channels=("CT",),
        labels={"background": 0, **{name: value for value, name in enumerate(names, 1)}},
        files=(
            Files(r"(?P<case>FLARE\w*?\d{4})_0000\.nii(?:\.gz)?"),
            Files(r"labels?\w*/(?P<case>FLARE\w*?\d{4})\.nii(?:\.gz)?", channel=None),
        ),
        layout=f"images/FLARE{year}_Tr_0001_0000.nii.gz, labels/FLARE{year}_Tr_0001.nii.gz, "
        "Validation/FLARETs_0001_0000.nii.gz",
        split=split,
        counts={"train": train, "val": None, "test": None},
        submission=Submission(
            prediction=r"(?P<id>FLARE\w*?\d{4})",
            name="{id}",
            numeric=False,
            splits=("val", "test"),
            upload="The challenge takes algorithm containers: nnunet_ext container MODEL_FOLDER --layout flare.",
        ),
        metrics=Metrics(
            structures=values,
            measures=MEASURES,
            tolerance={name: TOLERANCES[name] for name in names},
            conventions=CONVENTIONS,
            case_measure=case_measure,
            notes=(
                "In neither mask: Dice and NSD 1. NSD is 0 where Dice is below 0.2. Aorta, vena cava and esophagus are "
                "scored from the first to the last but one slice in which the reference has them.",
            ),
        ),
        reference=f"https://flare{year}.grand-challenge.org",
    )


FLARE22 = _challenge(22, 13, 50, 222)
FLARE23 = _challenge(23, 14, None, 223)
