"""BTCV, "Beyond the Cranial Vault": 13 abdominal organs in CT (Synapse syn3193805)."""

from pathlib import PurePosixPath

from nnunet_ext.challenges.facts import Challenge, Conventions, Files, Metrics, Submission

LABELS = {
    "background": 0,
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "esophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior vena cava": 9,
    "portal and splenic vein": 10,
    "pancreas": 11,
    "right adrenal gland": 12,
    "left adrenal gland": 13,
}
TRAINING = (*range(1, 11), *range(21, 41))
TESTING = range(61, 81)


def split(case: str, path: PurePosixPath, names: frozenset[str]) -> str | None:
    """By number: 1 to 10 and 21 to 40 are for training, 61 to 80 for the test."""
    number = int(case.removeprefix("img"))
    return "train" if number in TRAINING else "test" if number in TESTING else None


BTCV = Challenge(
    name="btcv",
    title="BTCV abdomen",
    dataset_id=17,
    dataset_name="BTCV",
    channels=("CT",),
    labels=LABELS,
    files=(
        Files(r"img(?P<number>\d{4})\.nii(?:\.gz)?", "img{number}"),
        Files(r"label(?P<number>\d{4})\.nii(?:\.gz)?", "img{number}", channel=None),
    ),
    layout="RawData/Training/img/img0001.nii.gz, RawData/Training/label/label0001.nii.gz, "
    "RawData/Testing/img/img0061.nii.gz",
    split=split,
    counts={"train": 30, "test": 20},
    known={
        "train": tuple(f"img{number:04d}" for number in TRAINING),
        "test": tuple(f"img{number:04d}" for number in TESTING),
    },
    submission=Submission(
        prediction=r"(?:img|label|ABD_)0*(?P<id>\d+)",
        name="label{id:04d}",
        upload="Upload the archive to a Synapse project of yours and submit it to the evaluation queue of syn3193805. "
        "Names and layout are not documented; --name and --folder change them.",
    ),
    metrics=Metrics(
        structures={name: (value,) for name, value in LABELS.items() if value},
        measures=("dice", "hd95", "hausdorff", "assd"),
        conventions=Conventions(surface="voxels"),
        notes=("Some patients lack the right kidney or the gallbladder: such a structure is left out of the means.",),
    ),
    reference="https://www.synapse.org/Synapse:syn3193805",
)
