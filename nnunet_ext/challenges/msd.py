"""Medical Segmentation Decathlon: ten tasks, one archive with a folder per task."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from nnunet_ext.challenges.facts import Challenge, Files, Metrics, Submission


@dataclass(frozen=True)
class Task:
    """One row of the table: names, prefix of the files, channels, labels, cases, and the tolerance of the NSD in mm."""

    folder: str
    prefix: str
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    training: int
    test: int
    tolerance: float
    left_out: tuple[int, ...] = ()
    may_be_empty: bool = False

    @property
    def number(self) -> int:
        """1 to 10."""
        return int(self.folder[4:6])


_CT, _MRI = ("CT",), ("MRI",)
# Left out: test cases that the organisers ask not to submit.
LIVER = (141, 156, 160, 161, 162, 164, 167, 182, 189, 190)
TASKS = (
    Task(
        "Task01_BrainTumour",
        "BRATS",
        ("FLAIR", "T1w", "t1gd", "T2w"),
        ("edema", "non-enhancing tumor", "enhancing tumour"),
        484,
        266,
        5,
    ),
    Task("Task02_Heart", "la", _MRI, ("left atrium",), 20, 10, 4),
    Task("Task03_Liver", "liver", _CT, ("liver", "cancer"), 131, 70, 7, LIVER),
    Task("Task04_Hippocampus", "hippocampus", _MRI, ("Anterior", "Posterior"), 260, 130, 1),
    Task("Task05_Prostate", "prostate", ("T2", "ADC"), ("PZ", "TZ"), 32, 16, 4),
    Task("Task06_Lung", "lung", _CT, ("cancer",), 63, 32, 2, may_be_empty=True),
    Task("Task07_Pancreas", "pancreas", _CT, ("pancreas", "cancer"), 281, 139, 5),
    Task("Task08_HepaticVessel", "hepaticvessel", _CT, ("Vessel", "Tumour"), 303, 140, 3, (247,)),
    Task("Task09_Spleen", "spleen", _CT, ("spleen",), 41, 20, 3),
    Task("Task10_Colon", "colon", _CT, ("colon cancer primaries",), 126, 64, 4, may_be_empty=True),
)


def split(case: str, path: PurePosixPath, names: frozenset[str]) -> str | None:
    """By the name of the folder."""
    return {"imagesTr": "train", "labelsTr": "train", "imagesTs": "test"}.get(path.parent.name)


def _challenge(task: Task) -> Challenge:
    labels = {"background": 0, **{name: value for value, name in enumerate(task.labels, 1)}}
    return Challenge(
        name=f"msd task {task.number}",
        title=f"MSD {task.folder}",
        dataset_id=task.number,
        dataset_name=task.folder[7:],
        channels=task.channels,
        labels=labels,
        files=(
            Files(rf"images(?:Tr|Ts)/(?P<case>{task.prefix}_\d+)\.nii\.gz"),
            Files(rf"labelsTr/(?P<case>{task.prefix}_\d+)\.nii\.gz", channel=None),
        ),
        layout=f"{task.folder}/imagesTr/{task.prefix}_001.nii.gz, labelsTr, imagesTs, dataset.json",
        split=split,
        counts={"train": task.training, "test": task.test},
        submission=Submission(
            prediction=rf"(?P<id>{task.prefix}_\d+)",
            name="{id}",
            numeric=False,
            left_out=tuple(f"{task.prefix}_{number}" for number in task.left_out),
            folder=f"{task.folder}/",
            upload="Upload the archive at decathlon-10.grand-challenge.org; look first whether submissions are open.",
            empty="warn" if task.may_be_empty else "error",
        ),
        metrics=Metrics(
            structures={name: (value,) for name, value in labels.items() if value},
            measures=("dice", "nsd"),
            tolerance=task.tolerance,
        ),
        reference="http://medicaldecathlon.com",
    )


MSD: dict[int | None, Challenge] = {task.number: _challenge(task) for task in TASKS}
