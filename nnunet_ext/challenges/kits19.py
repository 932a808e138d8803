"""KiTS19: kidneys and kidney tumours in CT (github.com/neheller/kits19)."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from nnunet_ext.challenges.facts import Challenge, Files, Metrics, Submission

FIRST_TEST_CASE, CASES = 210, 300


def split(case: str, path: PurePosixPath, names: frozenset[str]) -> str | None:
    """By number: below 210 is for training."""
    number = int(case.removeprefix("case_"))
    return "train" if number < FIRST_TEST_CASE else "test" if number < CASES else None


def totals(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The challenge's score: per case the average of kidney and tumor Dice, then the mean over all cases.

    Kidney means label >= 1, tumor means label 2 (kits19.grand-challenge.org, "rules"; the repository's
    starter_code/evaluation.py).
    """
    import numpy as np

    names = ("kidney and tumor", "tumor")
    dice = [[case["structures"][name].get("dice", float("nan")) for name in names] for case in cases]
    scores = [sum(pair) / 2 for pair in dice]
    return {"composite": float(np.mean(scores)) if scores else float("nan")}


KITS19 = Challenge(
    name="kits19",
    title="KiTS19",
    dataset_id=64,
    dataset_name="KiTS19",
    channels=("CT",),
    labels={"background": 0, "kidney": 1, "tumor": 2},
    regions={"kidney and tumor": (1, 2), "tumor": (2,)},
    files=(
        Files(r"(?P<case>case_\d{5})/imaging\.nii(?:\.gz)?"),
        Files(r"(?P<case>case_\d{5})/segmentation\.nii(?:\.gz)?", channel=None),
    ),
    layout="data/case_00000/imaging.nii.gz and segmentation.nii.gz to data/case_00299/imaging.nii.gz; imaging.nii.gz "
    "comes with: python -m starter_code.get_imaging",
    split=split,
    counts={"train": FIRST_TEST_CASE, "test": CASES - FIRST_TEST_CASE},
    known={
        "train": tuple(f"case_{number:05d}" for number in range(FIRST_TEST_CASE)),
        "test": tuple(f"case_{number:05d}" for number in range(FIRST_TEST_CASE, CASES)),
    },
    submission=Submission(
        prediction=r"(?:case|prediction)_(?P<id>\d{5})",
        name="prediction_{id:05d}",
        accepted=range(FIRST_TEST_CASE, CASES),
        upload="Upload the archive, named predictions.zip, at kits19.grand-challenge.org, with a manuscript in PDF.",
    ),
    metrics=Metrics(
        structures={"kidney and tumor": (1, 2), "tumor": (2,)},
        measures=("dice",),
        totals=totals,
        notes=(
            "A case without prediction counts as all background. Dice of two empty masks is not defined, and then the "
            "composite is not either.",
        ),
    ),
    value_hints={3: "3 is the cyst of KiTS21 and KiTS23; convert those with kits23"},
    reference="https://github.com/neheller/kits19",
)
