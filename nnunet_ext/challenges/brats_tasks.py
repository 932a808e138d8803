"""BraTS since 2023: gliomas, meningiomas, metastases, children, Sub-Saharan Africa; a table for each year's labels.

Names of files and values of labels: synapse.org/brats; lesion-wise rules: github.com/rachitsaluja/BraTS-2023-Metrics,
for meningiomas also BraTS-2024-Metrics, whose rules for them are the same.
"""

from nnunet_ext.challenges.brats import split_by_folder
from nnunet_ext.challenges.facts import Challenge, Conventions, Files, Metrics, Submission
from nnunet_ext.challenges.lesionwise import PENALTY, LesionMeasure, Rule

CHANNELS = {"t1n": "T1n", "t1c": "T1c", "t2w": "T2w", "t2f": "T2f"}
YEARS = (2023, 2024, 2025, 2026)
TUMOR = {"background": 0, "non-enhancing tumor core": 1, "FLAIR hyperintensity": 2, "enhancing tumor": 3}
TREATED = {**TUMOR, "resection cavity": 4}
CHILDREN = {"background": 0, "enhancing tumor": 1, "non-enhancing tumor": 2, "cystic component": 3, "edema": 4}
REGIONS = {"whole tumor": (1, 2, 3), "tumor core": (1, 3), "enhancing tumor": (3,)}
# Labels -> regions in nnU-Net's order, the values that their own voxels get, and the structures that are scored.
KINDS = {
    "tumor": (TUMOR, REGIONS, (2, 1, 3), REGIONS),
    "treated": (
        TREATED,
        {**REGIONS, "resection cavity": (4,)},
        (2, 1, 3, 4),
        {
            **REGIONS,
            "non-enhancing tumor core": (1,),
            "FLAIR hyperintensity": (2,),
            "resection cavity": (4,),
        },
    ),
    "children": (
        CHILDREN,
        {"whole tumor": (1, 2, 3, 4), "tumor core": (1, 2, 3), "enhancing tumor": (1,), "cystic component": (3,)},
        (4, 2, 1, 3),
        {
            "whole tumor": (1, 2, 3, 4),
            "tumor core": (1, 2, 3),
            "enhancing tumor": (1,),
            "non-enhancing tumor": (2,),
            "cystic component": (3,),
            "edema": (4,),
        },
    ),
}
RULES = {
    ("gli", 2023): Rule(3, 50),
    ("men", 2023): Rule(1, 50),
    ("met", 2023): Rule(1, 2),
    ("ped", 2023): Rule(3, 50),
    ("ssa", 2023): Rule(3, 50),
    ("men", 2024): Rule(1, 50),
}
TITLES = {
    "gli": "gliomas",
    "men": "meningiomas",
    "met": "metastases",
    "ped": "tumours of children",
    "ssa": "gliomas, Sub-Saharan Africa",
}
COUNTS = {("gli", 2023): {"train": 1251, "val": 219}}  # others are not known for sure
FIRST_ID = 230


def kind_of(task: str, year: int) -> str:
    """Which labels a task has in a year."""
    if task == "ped" and year >= 2024:
        return "children"
    if task == "gli" and year >= 2024 or task == "met" and year >= 2025:
        return "treated"
    return "tumor"


def _metrics(task: str, year: int) -> Metrics:
    structures = KINDS[kind_of(task, year)][3]
    measures, conventions = ("dice", "hd95", "sensitivity", "specificity"), Conventions("perfect", "inf")
    rule = RULES.get((task, year))
    if rule is not None:
        return Metrics(
            structures,
            measures,
            conventions=conventions,
            case_measure=LesionMeasure(structures, rule),
            notes=(
                f"Lesion-wise: reference lesions grow by {rule.steps} voxels and count above {rule.smallest:g} mm^3; "
                f"missed and invented lesions have Dice 0 and HD95 {PENALTY:g} mm.",
            ),
        )
    return Metrics(
        structures,
        measures,
        conventions=conventions,
        notes=(f"The lesion-wise numbers of {year} have other rules than those of 2023 and are not computed here.",),
    )


def _challenge(number: int, task: str, year: int) -> Challenge:
    labels, regions, order, _ = KINDS[kind_of(task, year)]
    code = rf"BraTS-{task.upper()}-\d{{5}}-\d{{3}}"
    folder, ending = rf"(?P<case>{code})/(?P=case)", r"\.nii(?:\.gz)?"
    counts: dict[str, int | None] = {"train": None, "val": None, "test": None}
    return Challenge(
        name=f"brats-{task} {year}",
        title=f"BraTS {year}, {TITLES[task]}",
        dataset_id=FIRST_ID + number,
        dataset_name=f"BraTS{year}_{task.upper()}",
        channels=tuple(CHANNELS.values()),
        labels=labels,
        regions=regions,
        regions_class_order=order,
        files=(
            *(Files(f"{folder}-{name}{ending}", channel=channel) for channel, name in enumerate(CHANNELS)),
            Files(f"{folder}-seg{ending}", channel=None),
        ),
        layout=f"...TrainingData/BraTS-{task.upper()}-00000-000/BraTS-{task.upper()}-00000-000-t1n.nii.gz (and -t1c, "
        "-t2w, -t2f, -seg), ...ValidationData/",
        split=split_by_folder,
        counts={**counts, **COUNTS.get((task, year), {})},
        submission=Submission(
            prediction=rf"(?P<id>{code})",
            name="{id}",
            numeric=False,
            splits=("val", "test"),
            empty="warn",
            upload="Upload the archive to your Synapse project and submit it to the task's queue (synapse.org/brats).",
        ),
        metrics=_metrics(task, year),
        reference="https://www.synapse.org/brats",
    )


BRATS_TASKS: dict[str, dict[int | None, Challenge]] = {
    f"brats-{task}": {year: _challenge(10 * place + row, task, year) for row, year in enumerate(YEARS)}
    for place, task in enumerate(TITLES)
}
