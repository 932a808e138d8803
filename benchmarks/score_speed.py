"""`nnunet_ext score` of a large case: time and memory, against another checkout and against surface-distance.

    python benchmarks/score_speed.py [--before CHECKOUT] [--surface-distance FOLDER] [--rounds 5] [--output FILE]

Writes one pair of label maps, 512x512x300 voxels of 0.8x0.8x1.5 mm with 13 organ-like structures (seeded), as .nii.gz.
Each measurement is a process of its own in one thread, and all take turns: processor seconds of the whole case (read,
check, Dice, HD95, NSD at 1 mm) and its peak resident memory. FOLDER holds google-deepmind's package `surface_distance`;
it is given the same cropped masks, structure by structure.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZE, SPACING = (512, 512, 300), (0.8, 0.8, 1.5)
LABELS = range(1, 14)
MEASURES = ("dice", "hd95", "nsd")


def write_case(folder):
    """`prediction.nii.gz` and `reference.nii.gz`."""
    import nibabel
    import numpy as np
    from scipy import ndimage

    rng = np.random.default_rng(0)
    noise = [
        ndimage.zoom(ndimage.gaussian_filter(rng.normal(size=(24, 24, 16)), 1), (22, 22, 20), order=1) for _ in "ab"
    ]
    noise = [(field / field.std())[: SIZE[0], : SIZE[1], : SIZE[2]].astype(np.float32) for field in noise]
    maps = [np.zeros(SIZE, np.uint8) for _ in "ab"]
    grid = [np.arange(n, dtype=np.float32) / n for n in SIZE]
    for label in LABELS:
        radius = 0.25 * 0.82**label + 0.02
        centre, axes = rng.uniform(radius, 1 - radius, 3), radius * rng.uniform(0.8, 1.2, 3)
        squares = [((g - c) / a) ** 2 for g, c, a in zip(grid, centre, axes, strict=True)]
        distance = np.sqrt(squares[0][:, None, None] + squares[1][None, :, None] + squares[2][None, None, :])
        distance += 0.08 * noise[0]
        maps[0][distance < 1] = label
        maps[1][distance + 0.04 * noise[1] < 1] = label
    for name, array in zip(("reference", "prediction"), maps, strict=True):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([*SPACING, 1])), Path(folder) / f"{name}.nii.gz")


def with_nnunet_ext(folder, surface):
    """This or another checkout, whichever stands first on the path."""
    from nnunet_ext.challenges.metrics import structure_scores

    structures = {f"organ {label}": (label,) for label in LABELS}
    try:
        from nnunet_ext.challenges.facts import Conventions, Metrics
        from nnunet_ext.challenges.score import CasePair, score_case
        from nnunet_ext.challenges.scoring import Scoring

        metrics = Metrics(structures, MEASURES, conventions=Conventions(surface=surface))
        scoring = Scoring("speed", metrics)
    except ImportError:  # before the definition of surfaces could be chosen
        from nnunet_ext.challenges.score import CasePair, Scoring, score_case

        scoring = Scoring("speed", structures, MEASURES)
    assert structure_scores
    pair = CasePair("case", folder / "prediction.nii.gz", folder / "reference.nii.gz", scoring)
    return {name: list(values.values()) for name, values in score_case(pair)["structures"].items()}


def with_surface_distance(folder):
    import nibabel
    import numpy as np
    import surface_distance as package

    maps = [np.asarray(nibabel.load(folder / f"{name}.nii.gz").dataobj) for name in ("prediction", "reference")]
    scores = {}
    for label in LABELS:
        ours, theirs = (labels == label for labels in maps)
        dice = package.compute_dice_coefficient(theirs, ours)
        distances = package.compute_surface_distances(theirs, ours, SPACING)
        hd95 = package.compute_robust_hausdorff(distances, 95)
        scores[f"organ {label}"] = [dice, hd95, package.compute_surface_dice_at_tolerance(distances, 1.0)]
    return scores


def measure(name, folder):
    start = time.process_time()
    if name == "surface-distance":
        scores = with_surface_distance(folder)
    else:
        scores = with_nnunet_ext(folder, "elements" if name.endswith("elements") else "voxels")
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "scores": scores}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout of this repository")
    parser.add_argument("--surface-distance", type=Path, metavar="FOLDER")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "score_speed.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return write_case(args.one[1]) if args.one[0] == "write" else measure(args.one[0], Path(args.one[1]))
    paths = {"now, voxels": ROOT, "now, elements": ROOT}
    if args.before:
        paths["before, voxels"] = args.before.resolve()
    if args.surface_distance:
        paths["surface-distance"] = args.surface_distance.resolve()
    runs = {name: [] for name in paths}
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: the largest memory of a parent is handed down to its children.
        subprocess.run([sys.executable, __file__, "--one", "write", folder], check=True)
        for number in range(args.rounds):
            for name in list(paths)[number % len(paths) :] + list(paths)[: number % len(paths)]:
                environment = {**os.environ, "PYTHONPATH": str(paths[name]), "OMP_NUM_THREADS": "1"}
                command = [sys.executable, __file__, "--one", name, folder]
                done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(
                    f"{number} {name}: {runs[name][-1]['seconds']:.2f} s, {runs[name][-1]['peak_mb']:.0f} MB",
                    flush=True,
                )
    rows = {
        name: {
            "seconds": statistics.median(run["seconds"] for run in of_one),
            "peak_mb": statistics.median(run["peak_mb"] for run in of_one),
        }
        for name, of_one in runs.items()
    }
    for name, row in rows.items():
        opponent = "now, elements" if name in ("now, elements", "surface-distance") else "now, voxels"
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(runs[name], runs[opponent], strict=True)]
        row["ratio"], row["against"] = statistics.median(ratios), opponent
    same = [("surface-distance", "now, elements"), ("before, voxels", "now, voxels")]
    differences = {
        f"{a} and {b}": max(
            abs(x - y) for key, values in runs[a][0]["scores"].items()
            for x, y in zip(values, runs[b][0]["scores"][key], strict=True)
        )
        for a, b in same if a in runs
    }  # fmt: skip
    result = {
        "case": f"{'x'.join(map(str, SIZE))} voxels, {len(LABELS)} structures, {' + '.join(MEASURES)}",
        "rounds": args.rounds,
        "median": rows,
        "largest difference": differences,
        "software": {name: version(name) for name in ("numpy", "scipy", "nibabel")},
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
