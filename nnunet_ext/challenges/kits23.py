"""KiTS23: kidneys, tumours and cysts in CT (github.com/neheller/kits23)."""

from pathlib import PurePosixPath

from nnunet_ext.challenges.facts import Challenge, Conventions, Files, Metrics, Submission

TRAINING = (*range(300), *range(400, 589))
STRUCTURES = {"kidney and mass": (1, 2, 3), "mass": (2, 3), "tumor": (2,)}
# mm; by the organisers from the differences between annotators (kits23/configuration/labels.py)
TOLERANCES = {"kidney and mass": 1.0330772532390826, "mass": 1.1328796488598762, "tumor": 1.1498198361434828}


def split(case: str, path: PurePosixPath, names: frozenset[str]) -> str | None:
    """By number: the training cases are known, all others would be test cases."""
    return "train" if int(case.removeprefix("case_")) in TRAINING else "test"


KITS23 = Challenge(
    name="kits23",
    title="KiTS23",
    dataset_id=220,
    dataset_name="KiTS2023",
    channels=("CT",),
    labels={"background": 0, "kidney": 1, "tumor": 2, "cyst": 3},
    regions=STRUCTURES,
    regions_class_order=(1, 3, 2),
    files=(
        Files(r"(?P<case>case_\d{5})/imaging\.nii(?:\.gz)?"),
        Files(r"(?P<case>case_\d{5})/segmentation\.nii(?:\.gz)?", channel=None),
    ),
    layout="dataset/case_00000/imaging.nii.gz and segmentation.nii.gz; imaging.nii.gz comes with: kits23_download_data",
    split=split,
    counts={"train": len(TRAINING), "test": None},
    known={"train": tuple(f"case_{number:05d}" for number in TRAINING)},
    submission=Submission(
        prediction=r"case_(?P<id>\d{5})",
        name="case_{id:05d}",
        upload="No open upload is known; the archive holds what kits23/check_submission_folder.py accepts.",
    ),
    metrics=Metrics(
        structures=STRUCTURES,
        measures=("dice", "nsd"),
        tolerance=TOLERANCES,
        conventions=Conventions("perfect"),
        notes=("In neither mask: Dice and NSD 1. The challenge ranks by the averages over cases and structures.",),
    ),
    reference="https://github.com/neheller/kits23",
)
