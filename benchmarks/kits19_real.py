"""`nnunet_ext export` and `score` on real KiTS19 segmentations, against independent computations.

    git clone https://github.com/neheller/kits19
    python benchmarks/kits19_real.py kits19/data [--cases 24] [--output FILE]

The predictions are the organisers' segmentations, displaced by a voxel along two axes and with a part of the tumors
lost (seeded). `score` is compared with SimpleITK's overlap measures; `export`, for which the cases get the numbers of
test cases, with the voxels and the geometry that SimpleITK reads from the archive. Times are processor seconds of the
commands.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm


def prediction_of(labels, rng):
    """Displaced by a voxel; one tumor in three is half lost."""
    array = np.roll(sitk.GetArrayFromImage(labels), (1, 1), (0, 1))
    if rng.random() < 1 / 3:
        places = np.argwhere(array == 2)
        array[tuple(places[: len(places) // 2].T)] = 1
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(labels)
    return image


def dice_of(ours, theirs, lowest):
    """By SimpleITK, of all labels from `lowest` on."""
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(sitk.Cast(ours >= lowest, sitk.sitkUInt8), sitk.Cast(theirs >= lowest, sitk.sitkUInt8))
    return overlap.GetDiceCoefficient(1)


def command(*words):
    """Runs a command; its processor seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "nnunet_ext", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder data of the clone")
    parser.add_argument("--cases", type=int, default=24, help="the smallest files (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "kits19_real.json")
    args = parser.parse_args()
    sources = sorted(args.data.glob("case_*/segmentation.nii.gz"), key=lambda path: path.stat().st_size)[: args.cases]
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("predictions", "labels", "submitted", "images"):
            (root / name).mkdir()
        expected = {}
        for number, source in enumerate(tqdm(sources, unit="case")):
            name = source.parent.name
            labels = sitk.ReadImage(str(source))
            ours = prediction_of(labels, rng)
            sitk.WriteImage(ours, str(root / "predictions" / f"{name}.nii.gz"))
            (root / "labels" / f"{name}.nii.gz").symlink_to(source.resolve())
            sitk.WriteImage(ours, str(root / "submitted" / f"case_{210 + number:05d}.nii.gz"))
            (root / "images" / f"case_{210 + number:05d}_0000.nii.gz").symlink_to(source.resolve())
            expected[name] = [dice_of(ours, labels, 1), dice_of(ours, labels, 2)]
        measured = {"score": command("score", "kits19", root / "predictions", root / "labels", "-np", 1)}
        scores = json.loads((root / "predictions" / "scores.json").read_text(encoding="utf-8"))
        worst = max(
            abs(case["structures"][name]["dice"] - value)
            for case in scores["cases"]
            for name, value in zip(("kidney and tumor", "tumor"), expected[case["case"]], strict=True)
        )
        composite = abs(scores["totals"]["composite"] - np.mean(list(expected.values())))
        archive = root / "predictions.zip"
        words = ("--images", root / "images", "-o", archive, "--subset", "-np", 1)
        measured["export"] = command("export", "kits19", root / "submitted", *words)
        equal = 0
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(root / "unpacked")
        for number, source in enumerate(sources):
            file = sitk.ReadImage(str(root / "unpacked" / f"prediction_{210 + number:05d}.nii.gz"))
            ours = sitk.ReadImage(str(root / "submitted" / f"case_{210 + number:05d}.nii.gz"))
            image = sitk.ReadImage(str(source))
            places = [(i.GetOrigin(), i.GetSpacing(), i.GetDirection(), i.GetSize()) for i in (file, image)]
            same = np.array_equal(sitk.GetArrayFromImage(file), sitk.GetArrayFromImage(ours))
            equal += same and places[0] == places[1]
    voxels = [int(np.prod(sitk.ReadImage(str(source)).GetSize())) for source in sources]
    result = {
        "cases": len(sources),
        "voxels": sum(voxels),
        "mean": scores["mean"],
        "composite": scores["totals"]["composite"],
        "largest difference of a Dice": worst,
        "difference of the composite": float(composite),
        "files of the archive with equal voxels and geometry": equal,
        "seconds": measured,
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    assert worst < 1e-9 and composite < 1e-9 and equal == len(sources)


if __name__ == "__main__":
    main()
