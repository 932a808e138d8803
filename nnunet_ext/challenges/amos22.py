"""AMOS22: 15 abdominal organs; task 1 is CT, task 2 CT and MR together."""

import re
from pathlib import PurePosixPath

from nnunet_ext.challenges.facts import Challenge, Files, Metrics, Submission
from nnunet_ext.errors import ConfigurationError

LABELS = {
    "background": 0,
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gall bladder": 4,
    "esophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "postcava": 9,
    "pancreas": 10,
    "right adrenal gland": 11,
    "left adrenal gland": 12,
    "duodenum": 13,
    "bladder": 14,
    "prostate/uterus": 15,
}
LAST_KNOWN_CT = 410
LAST_CT = 500  # the readme's "< 500" is off by one: case 500 is CT
FOLDERS = {"imagesTr": "train", "labelsTr": "train", "imagesVa": "val", "labelsVa": "val", "imagesTs": "test"}


def split_task2(case: str, path: PurePosixPath, names: frozenset[str]) -> str | None:
    """By the name of the folder, but for imagesTs.

    It held the validation cases in the challenge's own days, and holds the test cases since.

    Raises:
        ConfigurationError: imagesTs is there and nothing tells which of both.
    """
    if path.parent.name != "imagesTs":
        return FOLDERS.get(path.parent.name)
    if {"imagesVa", "labelsVa", "labelsTs"} & names or any(_is_later_ct(name) for name in names):
        return "test"
    if {"task1_dataset.json", "task2_dataset.json"} & names:
        return "val"
    raise ConfigurationError(
        "imagesTs of AMOS22 holds the test cases, but in the download of 2022 the validation cases, and nothing here "
        "tells which: unpack imagesVa too, or task1_dataset.json of the old download."
    )


def _is_later_ct(name: str) -> bool:
    """A CT of the test cases: the numbers of training and validation CTs end at 410."""
    match = re.fullmatch(r"amos_(\d{4})\.nii(\.gz)?", name)
    return match is not None and LAST_KNOWN_CT < int(match[1]) <= LAST_CT


def split_task1(case: str, path: PurePosixPath, names: frozenset[str]) -> str | None:
    """The same without MR cases."""
    return split_task2(case, path, names) if int(case.removeprefix("amos_")) <= LAST_CT else None


def _task(number: int) -> Challenge:
    ct_only = number == 1
    return Challenge(
        name=f"amos22 task {number}",
        title=f"AMOS22 task {number} ({'CT' if ct_only else 'CT and MR'})",
        dataset_id=217 + number,
        dataset_name=f"AMOS2022_task{number}",
        # A channel named CT would be normalized as CT, which is wrong for MR.
        channels=("CT",) if ct_only else ("CT or MR",),
        labels=LABELS,
        files=(
            Files(r"images(?:Tr|Va|Ts)/(?P<case>amos_\d{4})\.nii(?:\.gz)?"),
            Files(r"labels(?:Tr|Va)/(?P<case>amos_\d{4})\.nii(?:\.gz)?", channel=None),
        ),
        layout="amos22/imagesTr/amos_0001.nii.gz, labelsTr, imagesVa, labelsVa, imagesTs",
        split=split_task1 if ct_only else split_task2,
        counts={"train": 200, "val": 100, "test": 200} if ct_only else {"train": 240, "val": 120, "test": 240},
        submission=Submission(
            prediction=r"amos_(?P<id>\d{4})",
            name="amos_{id:04d}",
            accepted=range(1, LAST_CT + 1) if ct_only else None,
            splits=("val", "test"),
            folder="results/",
            upload="Upload the archive at amos22.grand-challenge.org. In which form predictions of the test cases are "
            "taken since the challenge ended is not documented.",
        ),
        metrics=Metrics(
            structures={name: (value,) for name, value in LABELS.items() if value},
            measures=("dice", "nsd"),
            notes=(
                "Which NSD the challenge computes, and its tolerance, are not known: surface elements and 1 mm are "
                "guesses that --surface and --tolerance replace.",
            ),
        ),
        reader="NibabelIOWithReorient",  # SimpleITK refuses some of the headers
        reference="https://zenodo.org/records/7262581",
    )


AMOS22: dict[int | None, Challenge] = {1: _task(1), 2: _task(2)}
