"""LiTS17: liver and liver lesions in CT; its scores count lesions too (see `lesions`)."""

from pathlib import PurePosixPath

from nnunet_ext.challenges.facts import Challenge, Conventions, Files, Metrics, Submission
from nnunet_ext.challenges.lesions import LESION, LIVER, case_measure, totals


def split(case: str, path: PurePosixPath, names: frozenset[str]) -> str | None:
    """By name: volume-0 to volume-130 are for training, test-volume-0 to test-volume-69 for the test."""
    number = int(case.rpartition("-")[2])
    if case.startswith("test-"):
        return "test" if number < 70 else None
    return "train" if number < 131 else None


LITS17 = Challenge(
    name="lits17",
    title="LiTS17",
    dataset_id=29,
    dataset_name="LiTS17",
    channels=("CT",),
    labels={"background": 0, "liver": LIVER, "lesion": LESION},
    regions={"liver": (LIVER, LESION), "lesion": (LESION,)},
    files=(
        Files(r"(?P<case>(?:test-)?volume-\d+)\.nii(?:\.gz)?"),
        Files(r"segmentation-(?P<number>\d+)\.nii(?:\.gz)?", "volume-{number}", channel=None),
    ),
    layout="Training Batch 1/volume-0.nii and segmentation-0.nii, Training Batch 2/..., test-volume-0.nii",
    split=split,
    counts={"train": 131, "test": 70},
    known={
        "train": tuple(f"volume-{number}" for number in range(131)),
        "test": tuple(f"test-volume-{number}" for number in range(70)),
    },
    submission=Submission(
        prediction=r"(?:test-volume-|test-segmentation-|test_)(?P<id>\d+)",
        name="test-segmentation-{id}",
        accepted=range(70),
        ending=".nii",
        upload="CodaLab has taken no uploads since 2022, and the test labels are not public.",
        expects={LIVER: "the scorer gives no liver score to a case without value 1 (liver)"},
    ),
    metrics=Metrics(
        structures={"liver": (LIVER, LESION), "lesion": (LESION,)},
        measures=("dice",),
        conventions=Conventions("perfect", surface="voxels"),
        case_measure=case_measure,
        totals=totals,
        notes=(
            "No lesion in both masks: lesion Dice 1. No liver (value 1) in the prediction: liver Dice 0. Surface "
            "distances and volume difference of an empty mask are 9001, and are 9001 if no lesion was detected.",
        ),
    ),
    identity_header=True,
    reference="https://competitions.codalab.org/competitions/17094",
)
