"""BraTS 2019 to 2021: brain tumours in four MR sequences, scored on three nested regions."""

import re
from pathlib import PurePosixPath

from nnunet_ext.challenges.facts import Challenge, Conventions, Files, Metrics, Submission

CHANNELS = {"t1": "T1", "t1ce": "T1ce", "t2": "T2", "flair": "Flair"}
# nnU-Net wants consecutive values, so that edema (2) and necrosis (1) change places and 4 becomes 3.
LABELS = {"background": 0, "edema": 1, "necrosis and non-enhancing tumor": 2, "enhancing tumor": 3}
REGIONS = {"whole tumor": (1, 2, 3), "tumor core": (2, 3), "enhancing tumor": (3,)}
TO_CHALLENGE = {1: 2, 2: 1, 3: 4}
VALUE_HINTS = {
    3: "3 is nnU-Net's value for the enhancing tumor; BraTS has 4 there, and would count 3 in no region",
}
UPLOAD = (
    "Upload the archive, or its files, to the CBICA Image Processing Portal (ipp.cbica.upenn.edu); whether it still "
    "takes this challenge is not known."
)
METRICS = Metrics(
    structures={"whole tumor": (1, 2, 4), "tumor core": (1, 4), "enhancing tumor": (4,)},
    measures=("dice", "hd95", "sensitivity", "specificity"),
    conventions=Conventions("perfect", "voxel diagonal", surface="voxels"),
    notes=(
        "Empty in both masks: Dice, sensitivity and specificity 1, HD95 0. Empty in one: Dice 0, HD95 the diagonal "
        "of the image in voxels (373.1287 for 240x240x155).",
    ),
)


def split_by_folder(case: str, path: PurePosixPath, names: frozenset[str]) -> str | None:
    """By the nearest telling folder: case names are alike in all sets."""
    for folder in reversed([part.lower() for part in path.parts[:-2]]):
        if folder in ("hgg", "lgg") or "training" in folder:
            return "train"
        if re.search("(?<![a-z])val", folder):
            return "val"
        if re.search("(?<![a-z])test", folder):
            return "test"
    return "train"


def split_2020(case: str, path: PurePosixPath, names: frozenset[str]) -> str | None:
    """By name."""
    return {"Training": "train", "Validation": "val", "Testing": "test"}[case.split("_")[1]]


def _files(case: str, alias: tuple[Files, ...] = ()) -> tuple[Files, ...]:
    # The file repeats the name of its folder.
    ending = r"\.nii(?:\.gz)?"
    images = tuple(
        Files(rf"(?P<case>{case})/(?P=case)_{sequence}{ending}", channel=channel)
        for channel, sequence in enumerate(CHANNELS)
    )
    return (*images, Files(rf"(?P<case>{case})/(?P=case)_seg{ending}", channel=None), *alias)


BRATS2019 = Challenge(
    name="brats2019",
    title="BraTS 2019",
    dataset_id=43,
    dataset_name="BraTS2019",
    channels=tuple(CHANNELS.values()),
    labels=LABELS,
    regions=REGIONS,
    to_challenge=TO_CHALLENGE,
    files=_files(r"BraTS19_[^/]+"),
    layout="MICCAI_BraTS_2019_Data_Training/HGG/BraTS19_CBICA_AAB_1/BraTS19_CBICA_AAB_1_t1.nii.gz (and _t1ce, _t2, "
    "_flair, _seg), MICCAI_BraTS_2019_Data_Validation/BraTS19_.../",
    split=split_by_folder,
    counts={"train": 335, "val": 125, "test": 166},
    submission=Submission(
        prediction=r"(?:HGG__|LGG__)?(?P<id>BraTS19_.+)",
        name="{id}",
        numeric=False,
        splits=("val", "test"),
        missing="warn",
        upload=UPLOAD,
    ),
    metrics=METRICS,
    value_hints=VALUE_HINTS,
    reference="https://www.med.upenn.edu/cbica/brats2019/data.html",
)

BRATS2020 = Challenge(
    name="brats2020",
    title="BraTS 2020",
    dataset_id=82,
    dataset_name="BraTS2020",
    channels=tuple(CHANNELS.values()),
    labels=LABELS,
    regions=REGIONS,
    to_challenge=TO_CHALLENGE,
    files=_files(
        r"BraTS20_(?:Training|Validation|Testing)_\d{3}",
        # The label of this case has another name in the copies on Kaggle.
        (Files(r"(?P<case>BraTS20_Training_355)/W39_1998\.09\.19_Segm\.nii(?:\.gz)?", channel=None),),
    ),
    layout="MICCAI_BraTS2020_TrainingData/BraTS20_Training_001/BraTS20_Training_001_t1.nii.gz (and _t1ce, _t2, "
    "_flair, _seg), MICCAI_BraTS2020_ValidationData/BraTS20_Validation_001/",
    split=split_2020,
    counts={"train": 369, "val": 125, "test": 166},
    known={
        "train": tuple(f"BraTS20_Training_{number:03d}" for number in range(1, 370)),
        "val": tuple(f"BraTS20_Validation_{number:03d}" for number in range(1, 126)),
    },
    submission=Submission(
        prediction=r"(?P<id>BraTS20_(?:Validation|Testing)_\d{3})",
        name="{id}",
        numeric=False,
        splits=("val", "test"),
        missing="warn",
        upload=UPLOAD,
    ),
    metrics=METRICS,
    value_hints=VALUE_HINTS,
    reference="https://www.med.upenn.edu/cbica/brats2020/data.html",
)

BRATS2021 = Challenge(
    name="brats2021",
    title="BraTS 2021",
    dataset_id=137,
    dataset_name="BraTS2021",
    channels=tuple(CHANNELS.values()),
    labels=LABELS,
    regions=REGIONS,
    to_challenge=TO_CHALLENGE,
    files=_files(r"BraTS2021_\d{5}"),
    layout="RSNA_ASNR_MICCAI_BraTS2021_TrainingData/BraTS2021_00000/BraTS2021_00000_t1.nii.gz (and _t1ce, _t2, _flair, "
    "_seg), RSNA_ASNR_MICCAI_BraTS2021_ValidationData/BraTS2021_00001/",
    split=split_by_folder,
    counts={"train": 1251, "val": 219, "test": None},
    submission=Submission(
        prediction=r"(?P<id>BraTS2021_\d{5})",
        name="{id}",
        numeric=False,
        splits=("val", "test"),
        upload="Upload the archive to your Synapse project and submit it to the queue of BraTS 2021, if it is open.",
    ),
    metrics=METRICS,
    value_hints=VALUE_HINTS,
    reference="https://www.synapse.org/brats",
)
