"""An independent judge of archives. It knows what is written about the challenges and nothing of nnunet_ext."""

import gzip
import zipfile

import nibabel
import numpy as np
import SimpleITK as sitk

LIVER_LEFT_OUT = ("141", "156", "160", "161", "162", "164", "167", "182", "189", "190")

# name of the challenge: (name of a submitted file from its case, allowed values, number of files)
RULES = {
    "amos22-1": (lambda case: f"results/{case}.nii.gz", range(16), 100),
    "amos22-2": (lambda case: f"results/{case}.nii.gz", range(16), 120),
    "btcv": (lambda case: f"label{case[-4:]}.nii.gz", range(14), 20),
    "brats2019": (lambda case: f"{case}.nii.gz", (0, 1, 2, 4), 125),
    "brats2020": (lambda case: f"{case}.nii.gz", (0, 1, 2, 4), 125),
    "kits19": (lambda case: f"prediction_{case[-5:]}.nii.gz", range(3), 90),
    "brats2021": (lambda case: f"{case}.nii.gz", (0, 1, 2, 4), 219),
    **{
        f"brats-{task}-{year}": (lambda case: f"{case}.nii.gz", range(4 + more), 219)
        for task, year, more in (
            ("gli", 2023, 0),
            ("gli", 2024, 1),
            ("men", 2023, 0),
            ("met", 2025, 1),
            ("ped", 2024, 1),
            ("ssa", 2026, 0),
        )
    },
    "flare22": (lambda case: f"{case}.nii.gz", range(14), 50),
    "flare23": (lambda case: f"{case}.nii.gz", range(15), 100),
    "kits23": (lambda case: f"{case}.nii.gz", range(4), 110),
    "lits17": (lambda case: f"test-segmentation-{case.rpartition('-')[2]}.nii", range(3), 70),
}
MSD_VALUES = {"01": 3, "02": 1, "03": 2, "04": 2, "05": 2, "06": 1, "07": 2, "08": 2, "09": 1, "10": 1}


class Rejected(AssertionError):
    pass


def require(condition, text):
    if not condition:
        raise Rejected(text)


def judge(challenge, archive, references, official=True):
    """Accepts `archive` or raises `Rejected`.

    Args:
        references: path of the original image of each case that must be in the archive.
        official: the number of cases must be the challenge's.

    Returns:
        `{case: array}` of the submitted label maps.
    """
    name_of, values, count = RULES[challenge]
    if official:
        require(len(references) == count, f"{len(references)} cases, the challenge has {count}")
    expected = {name_of(case): (case, path) for case, path in references.items()}
    return _judge_files(archive, expected, {name: values for name in expected})


def judge_msd(archive, references, tasks=tuple(MSD_VALUES)):
    """The same for the decathlon; `references` by task folder and case."""
    expected, values = {}, {}
    require(sorted(folder[4:6] for folder in references) == sorted(tasks), "all ten task folders are needed")
    for folder, cases in references.items():
        for case, path in cases.items():
            number = case.rpartition("_")[2]
            if folder == "Task03_Liver" and number in LIVER_LEFT_OUT or case == "hepaticvessel_247":
                continue
            name = f"{folder}/{case}.nii.gz"
            expected[name] = (case, path)
            values[name] = range(MSD_VALUES[folder[4:6]] + 1)
    return _judge_files(archive, expected, values)


def _judge_files(archive, expected, values):
    with zipfile.ZipFile(archive) as opened:
        require(opened.testzip() is None, "the archive is damaged")
        names = opened.namelist()
        require(len(names) == len(set(names)), "a name is there twice")
        require(set(names) == set(expected), f"wrong files: {sorted(set(names) ^ set(expected))[:5]}")
        return {expected[n][0]: _judge_file(n, opened.read(n), expected[n][1], values[n]) for n in names}


def _judge_file(name, data, reference, values):
    if name.endswith(".gz"):
        require(data[:2] == b"\x1f\x8b", f"{name} is not compressed")
        data = gzip.decompress(data)
    require(data[:4] == (348).to_bytes(4, "little"), f"{name} is not a NIfTI file")
    require(data[344:348] == b"n+1\0", f"{name} is not a single NIfTI file")
    image = nibabel.Nifti1Image.from_bytes(data)
    original = nibabel.load(reference)
    require(image.ndim == 3, f"{name} is not 3D")
    require(image.shape == original.shape[:3], f"{name} has another shape")
    require(image.header.get_data_dtype() == np.uint8, f"{name} is not uint8")
    require(np.array_equal(image.affine, original.affine), f"{name} has another affine")
    for field in ("qform_code", "sform_code"):
        require(image.header[field] == original.header[field], f"{name} has another {field}")
    array = np.asarray(image.dataobj)
    require(set(np.unique(array)) <= set(values), f"{name} holds other values")
    return array


def itk_geometry(path):
    """As the BraTS evaluation compares it, without any tolerance."""
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection()


def member_to_file(archive, name, path):
    with zipfile.ZipFile(archive) as opened:
        path.write_bytes(opened.read(name))
    return path
