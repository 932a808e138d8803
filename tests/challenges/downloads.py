"""Miniature downloads in the layouts of the real ones, with their quirks: tiny volumes whose labels can be learned."""

import json
from pathlib import Path

import nibabel
import numpy as np

BRATS_AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])  # ITK origin (0, -239, 0)
SEQUENCES = ("t1", "t1ce", "t2", "flair")


def blocks(rng, shape, values):
    """A label map `[X, Y, Z]` in which each value fills a block of its own."""
    cells = np.array(np.meshgrid(range(4), range(4), range(2), indexing="ij")).reshape(3, -1).T
    steps = np.array(shape) // (4, 4, 2)
    labels = np.zeros(shape, np.uint8)
    for value, cell in zip(values, rng.permutation(cells)[: len(values)], strict=True):
        start = cell * steps
        stop = start + np.maximum(steps - rng.integers(0, 2, 3), 1)
        labels[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = value
    return labels


def nested(rng, shape, values):
    """Boxes in one another, the outermost with the first value, none at the edge of the image."""
    labels = np.zeros(shape, np.uint8)
    low = np.array([1 + rng.integers(0, max(s // 8, 1)) for s in shape])
    high = np.array([s - 1 - rng.integers(0, max(s // 8, 1)) for s in shape])
    for value in values:
        labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
        step = np.where(high - low > 2, np.maximum((high - low) // 5, 1), 0)
        low, high = low + step, high - step
    return labels


def image_of(rng, labels):
    return (labels * 100.0 + rng.normal(0, 15, labels.shape)).round().astype(np.int16)


def affine_of(rng, flip=(-1, -1, 1), spacing=None):
    """Another voxel size and origin for each case."""
    spacing = rng.uniform((0.6, 0.6, 2.0), (0.9, 0.9, 4.0)) if spacing is None else spacing
    affine = np.diag([*(np.array(flip) * spacing), 1.0])
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return affine


def save(path, array, affine, *, sform_only=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, affine)
    image.set_sform(affine, code=1)
    image.set_qform(None if sform_only else affine, code=0 if sform_only else 1)
    nibabel.save(image, path)


def junk(folder, name):
    """What macOS leaves in archives."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"._{name}").write_bytes(b"\x00\x05\x16\x07 AppleDouble")
    (folder / ".DS_Store").write_bytes(b"\x00")


class Download:
    """A download: `cases` holds the label map (the challenge's values) and affine of each case by its source id."""

    def __init__(self, root, seed, shape):
        self.root, self.shape = Path(root), shape
        self.rng = np.random.default_rng(seed)
        self.cases = {"train": {}, "val": {}, "test": {}}

    def add(self, split, identifier, labels, affine):
        self.cases[split][identifier] = (labels, affine)
        return labels, affine

    def truth(self, identifier):
        return next(cases[identifier] for cases in self.cases.values() if identifier in cases)


def btcv(root, train=3, test=2, shape=(12, 12, 6), seed=0):
    d = Download(root, seed, shape)
    top = d.root / "Abdomen" / "RawData"
    numbers = [*range(1, 11), *range(21, 41)][:train], range(61, 61 + test)
    for split, folder, ids in (("train", "Training", numbers[0]), ("test", "Testing", numbers[1])):
        for n in ids:
            values = list(range(1, 14))
            if n % 3 == 2:
                values.remove(4)  # some patients have no gallbladder
            labels, affine = d.add(split, f"img{n:04d}", blocks(d.rng, shape, values), affine_of(d.rng, (-1, 1, 1)))
            save(top / folder / "img" / f"img{n:04d}.nii.gz", image_of(d.rng, labels), affine)
            if split == "train":
                save(top / folder / "label" / f"label{n:04d}.nii.gz", labels, affine)
        junk(top / folder / "img", f"img{next(iter(ids)):04d}.nii.gz")
    junk(d.root / "__MACOSX" / "RawData", "img0001.nii.gz")
    return d


def _brats_case(d, folder, name, split, ending=".nii.gz", label_name=None):
    labels, affine = d.add(split, name, nested(d.rng, d.shape, (2, 1, 4)), BRATS_AFFINE)
    for sequence in SEQUENCES:
        save(folder / name / f"{name}_{sequence}{ending}", image_of(d.rng, labels), affine)
    if split == "train":
        save(folder / name / (label_name or f"{name}_seg{ending}"), labels, affine)


def brats2019(root, train=3, val=2, shape=(16, 16, 10), seed=0):
    d = Download(root, seed, shape)
    training = d.root / "MICCAI_BraTS_2019_Data_Training"
    for n in range(train):
        grade, site = ("HGG", "CBICA_AA") if n % 2 else ("LGG", "TCIA01_1")
        _brats_case(d, training / grade, f"BraTS19_{site}{n}_1", "train")
    for n in range(val):
        _brats_case(d, d.root / "MICCAI_BraTS_2019_Data_Validation", f"BraTS19_CBICA_V{n:02d}_1", "val")
    for name in ("name_mapping.csv", "survival_data.csv"):
        (training / name).write_text("Grade,BraTS_2019_subject_ID\n")
    return d


def brats2020(root, train=3, val=2, shape=(16, 16, 10), seed=0, ending=".nii"):
    """As in the copies on Kaggle: not compressed, and one label map with another name."""
    d = Download(root, seed, shape)
    training = d.root / "BraTS2020_TrainingData" / "MICCAI_BraTS2020_TrainingData"
    for n in [*range(1, train), 355]:
        alias = f"W39_1998.09.19_Segm{ending}" if n == 355 else None
        _brats_case(d, training, f"BraTS20_Training_{n:03d}", "train", ending, alias)
    for n in range(1, val + 1):
        folder = d.root / "BraTS2020_ValidationData" / "MICCAI_BraTS2020_ValidationData"
        _brats_case(d, folder, f"BraTS20_Validation_{n:03d}", "val", ending)
    (training / "survival_info.csv").write_text("Brats20ID,Age\n")
    return d


def brats2021(root, train=3, val=2, shape=(16, 16, 10), seed=0):
    d = Download(root, seed, shape)
    for n in range(train + val):
        part = "Training" if n < train else "Validation"
        folder = d.root / f"RSNA_ASNR_MICCAI_BraTS2021_{part}Data"
        _brats_case(d, folder, f"BraTS2021_{n:05d}", "train" if n < train else "val")
    return d


def _brats_task(task, values):
    """BraTS since 2023: names with hyphens, 3 for the enhancing tumour; `values` by year."""

    def download(root, train=3, val=2, shape=(16, 16, 10), seed=0, year=2023):
        d = Download(root, seed, shape)
        for n in range(train + val):
            split, part = ("train", "Training") if n < train else ("val", "Validation")
            name = f"BraTS-{task}-{n:05d}-000"
            folder = d.root / f"ASNR-MICCAI-BraTS{year}-{task}-Challenge-{part}Data" / name
            labels, affine = d.add(split, name, nested(d.rng, shape, values(year)), BRATS_AFFINE)
            for sequence in ("t1n", "t1c", "t2w", "t2f"):
                save(folder / f"{name}-{sequence}.nii.gz", image_of(d.rng, labels), affine)
            if split == "train":
                save(folder / f"{name}-seg.nii.gz", labels, affine)
        return d

    return download


brats_gli = _brats_task("GLI", lambda year: (2, 1, 3) if year == 2023 else (2, 1, 3, 4))
brats_men = _brats_task("MEN", lambda year: (2, 1, 3))
brats_met = _brats_task("MET", lambda year: (2, 1, 3) if year < 2025 else (2, 1, 3, 4))
brats_ped = _brats_task("PED", lambda year: (2, 1, 3) if year == 2023 else (4, 2, 1, 3))
brats_ssa = _brats_task("SSA", lambda year: (2, 1, 3))


def kits23(root, train=3, test=1, shape=(10, 16, 16), seed=0):
    d = Download(root, seed, shape)
    for n in [*range(train - 1), 400, *range(600, 600 + test)]:
        split = "train" if n < 600 else "test"
        affine = np.array([[0, 0, -0.8, 0], [0, -0.8, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])
        labels, _ = d.add(split, f"case_{n:05d}", nested(d.rng, shape, (1, 3, 2)), affine)
        folder = d.root / "kits23" / "dataset" / f"case_{n:05d}"
        save(folder / "imaging.nii.gz", image_of(d.rng, labels), affine, sform_only=True)
        if split == "train":
            save(folder / "segmentation.nii.gz", labels, affine, sform_only=True)
    return d


def _flare(year, labels):
    def download(root, train=3, val=2, shape=(16, 16, 6), seed=0):
        d = Download(root, seed, shape)
        for n in range(1, train + val + 1):
            split, name = ("train", f"FLARE{year}_Tr_{n:04d}") if n <= train else ("val", f"FLARETs_{n - train:04d}")
            images, masks = ("images", "labels") if split == "train" else ("Validation", None)
            array, affine = d.add(split, name, blocks(d.rng, shape, range(1, labels + 1)), affine_of(d.rng))
            save(d.root / f"FLARE{year}" / images / f"{name}_0000.nii.gz", image_of(d.rng, array), affine)
            if masks:
                save(d.root / f"FLARE{year}" / masks / f"{name}.nii.gz", array, affine)
        name = f"FLARE{year}" + "_Un_0001_0000.nii.gz"
        save(d.root / "UnlabeledCase" / name, np.zeros(shape, np.int16), np.eye(4))
        return d

    return download


flare22 = _flare(22, 13)
flare23 = _flare(23, 14)


def kits19(root, train=3, test=2, shape=(10, 16, 16), seed=0):
    d = Download(root, seed, shape)
    (d.root / "data").mkdir(parents=True)
    (d.root / "data" / "kits.json").write_text("[]")
    for n in [*range(train), *range(210, 210 + test)]:
        split = "train" if n < 210 else "test"
        spacing = d.rng.uniform(0.7, 0.9)
        # The first array axis runs along -z; no qform, zero origin.
        affine = np.array([[0, 0, -spacing, 0], [0, -spacing, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])
        labels, _ = d.add(split, f"case_{n:05d}", nested(d.rng, shape, (1, 2)), affine)
        folder = d.root / "data" / f"case_{n:05d}"
        save(folder / "imaging.nii.gz", image_of(d.rng, labels), affine, sform_only=True)
        if split == "train":
            save(folder / "segmentation.nii.gz", labels, affine, sform_only=True)
    return d


def lits17(root, train=3, test=2, shape=(16, 16, 10), seed=0, identity=()):
    """`identity`: image numbers whose headers hold no geometry, though their label map's does."""
    d = Download(root, seed, shape)
    deep = d.root / "media" / "nas" / "01_Datasets" / "CT" / "LITS"
    for n in range(train):
        affine = np.eye(4) if n == 28 else affine_of(d.rng)
        labels, _ = d.add("train", f"volume-{n}", nested(d.rng, shape, (1, 2)), affine)
        folder = deep / ("Training Batch 1" if n < 28 else "Training Batch 2")
        save(folder / f"volume-{n}.nii", image_of(d.rng, labels), np.eye(4) if n in identity else affine)
        save(folder / f"segmentation-{n}.nii", labels.astype(np.int16), affine)
    for n in range(test):
        labels, affine = d.add("test", f"test-volume-{n}", nested(d.rng, shape, (1, 2)), affine_of(d.rng))
        save(d.root / "LITS-Challenge-Test-Data" / f"test-volume-{n}.nii", image_of(d.rng, labels), affine)
    return d


SHEAR = np.array([[1, 0.02, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def amos22(root, train=3, val=2, test=1, mr=1, shape=(12, 12, 6), seed=0, old_layout=False):
    """With MR cases; the second training case has axes that are not at right angles."""
    d = Download(root, seed, shape)
    top = d.root / "amos22"
    sets = [("train", "Tr", 1, train), ("val", "Ts" if old_layout else "Va", 200, val)]
    sets += [] if old_layout else [("test", "Ts", 300, test)]
    for split, suffix, first, count in sets:
        ids = [*range(first, first + count), *range(510 + first, 510 + first + (mr if count else 0))]
        for n in ids:
            affine = affine_of(d.rng) @ SHEAR if n == 2 else affine_of(d.rng)
            labels, _ = d.add(split, f"amos_{n:04d}", blocks(d.rng, shape, range(1, 16)), affine)
            save(top / f"images{suffix}" / f"amos_{n:04d}.nii.gz", image_of(d.rng, labels), affine, sform_only=n == 2)
            if suffix in ("Tr", "Va"):
                save(top / f"labels{suffix}" / f"amos_{n:04d}.nii.gz", labels, affine, sform_only=n == 2)
    if not old_layout:
        (top / "labelsTs").mkdir()
    names = ("task1_dataset.json", "task2_dataset.json") if old_layout else ("dataset.json", "readme.md")
    for name in names:
        (top / name).write_text("{}")
    return d


# folder, prefix, number of values, channels, all test ids
MSD = {
    "Task01_BrainTumour": ("BRATS", 3, ("FLAIR", "T1w", "t1gd", "T2w"), 266),
    "Task02_Heart": ("la", 1, ("MRI",), 10),
    "Task03_Liver": ("liver", 2, ("CT",), 70),
    "Task04_Hippocampus": ("hippocampus", 2, ("MRI",), 130),
    "Task05_Prostate": ("prostate", 2, ("T2", "ADC"), 16),
    "Task06_Lung": ("lung", 1, ("CT",), 32),
    "Task07_Pancreas": ("pancreas", 2, ("CT",), 139),
    "Task08_HepaticVessel": ("hepaticvessel", 2, ("CT",), 140),
    "Task09_Spleen": ("spleen", 1, ("CT",), 20),
    "Task10_Colon": ("colon", 1, ("CT",), 64),
}
LEFT_OUT = {
    "Task03_Liver": [141, 156, 160, 161, 162, 164, 167, 182, 189, 190],
    "Task08_HepaticVessel": [247],
}


def msd_task(root, folder, train=2, test=None, shape=(12, 12, 6), seed=0):
    """One task; test ids are not contiguous, and hold the cases that are to be left out. `test` None: all of them."""
    prefix, n_labels, channels, n_test = MSD[folder]
    d = Download(root, seed, shape)
    top = d.root / folder
    left_out = LEFT_OUT.get(folder, [])
    n_test = n_test if test is None else test + len(left_out)
    ids = [n for n in range(400, 400 + 3 * n_test, 2) if n not in left_out][: n_test - len(left_out)] + left_out
    for split, suffix, numbers in (("train", "Tr", range(1, 3 * train, 3)), ("test", "Ts", ids)):
        for n in numbers:
            name = f"{prefix}_{n:03d}"
            labels, affine = d.add(split, name, nested(d.rng, shape, range(1, n_labels + 1)), affine_of(d.rng))
            stack = [image_of(d.rng, labels) for _ in channels]
            image = np.stack(stack, -1) if len(channels) > 1 else stack[0]
            save(top / f"images{suffix}" / f"{name}.nii.gz", image, affine)
            if split == "train":
                kind = np.float32 if folder == "Task10_Colon" else np.uint8
                save(top / f"labels{suffix}" / f"{name}.nii.gz", labels.astype(kind), affine)
        junk(top / f"images{suffix}", f"{prefix}_001.nii.gz")
    junk(top / "labelsTr", f"{prefix}_001.nii.gz")
    names = {"0": "background", **{str(k): f"structure {k}" for k in range(1, n_labels + 1)}}
    training = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in d.cases["train"]]
    description = {
        "name": folder[7:],
        "relase": "1.0 04/05/2018",  # misspelled as in the real files
        "tensorImageSize": "4D" if len(channels) > 1 else "3D",
        "modality": {str(k): name for k, name in enumerate(channels)},
        "labels": names,
        "numTraining": len(training),
        "numTest": len(ids),
        "training": training,
        "test": [f"./imagesTs/{n}.nii.gz" for n in d.cases["test"]],
    }
    (top / "dataset.json").write_text(json.dumps(description))
    return d
