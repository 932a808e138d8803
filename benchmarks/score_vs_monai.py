"""Dice, HD95 and NSD of label maps: nnunet_ext against MONAI and surface-distance, case by case in one thread.

    python benchmarks/score_vs_monai.py [--cases 100] [--size 128] [--surface-distance FOLDER] [--output FOLDER]

Generates pairs of label maps with five organ-like structures (seeded), computes the three measures of every structure
with all, who take turns, checks that they agree, and reports wall-clock times, and processor times for when the machine
is not idle. By boundary voxels it is compared with MONAI, whose label maps are one-hot tensors, with and without making
these; by surface elements with google-deepmind's `surface_distance`, if FOLDER holds it. The masks are in memory:
reading files costs all the same.
"""

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage
from tqdm import tqdm

from nnunet_ext.challenges.facts import Conventions
from nnunet_ext.challenges.metrics import structure_scores
from nnunet_ext.discovery.devices import processor

STRUCTURES = {f"organ {value}": (value,) for value in range(1, 6)}
RADII = (0.30, 0.18, 0.12, 0.08, 0.05)  # half axes of the organs, relative to the size of the image
MEASURES = ("dice", "hd95", "nsd")
TOLERANCE = 2.0


def smooth_noise(rng, size, scale):
    """A smooth random field of deviation 1, made on a coarse grid."""
    coarse = rng.normal(size=(size // scale + 3,) * 3)
    field = ndimage.zoom(ndimage.gaussian_filter(coarse, 1), scale, order=1)[:size, :size, :size]
    return (field / field.std()).astype(np.float32)


def make_pair(rng, size):
    """A reference of five warped ellipsoids, and a prediction that differs from it along the surfaces."""
    grid = np.mgrid[:size, :size, :size].astype(np.float32) / size
    wobble, error = smooth_noise(rng, size, 8), smooth_noise(rng, size, 8)
    reference, prediction = np.zeros((size,) * 3, np.uint8), np.zeros((size,) * 3, np.uint8)
    for value, radius in enumerate(RADII, 1):
        centre = rng.uniform(radius, 1 - radius, 3).astype(np.float32)
        axes = radius * rng.uniform(0.8, 1.2, 3).astype(np.float32)
        distance = np.sqrt(sum(((grid[k] - centre[k]) / axes[k]) ** 2 for k in range(3))) + 0.08 * wobble
        reference[distance < 1] = value
        prediction[distance + 0.06 * error < 1] = value
    return prediction, reference


def clocks():
    """Wall-clock and processor time."""
    return np.array([time.perf_counter(), time.process_time()])


def with_nnunet_ext(prediction, reference, spacing, surface):
    start, kept = clocks(), {"tolerance": TOLERANCE, "conventions": Conventions(surface=surface)}
    scores = structure_scores(prediction, reference, spacing, STRUCTURES, MEASURES, **kept)
    seconds = clocks() - start
    return seconds, np.array([[values[key] for key in MEASURES] for values in scores.values()])


def one_hot(labels):
    return torch.from_numpy(np.stack([labels == value for value in range(1, 6)])[None].astype(np.float32))


def with_monai(prediction, reference, spacing):
    start = clocks()
    ours, theirs = one_hot(prediction), one_hot(reference)
    converted = clocks()
    dice = compute_dice(ours, theirs, ignore_empty=False)
    hd95 = compute_hausdorff_distance(ours, theirs, include_background=True, percentile=95, spacing=spacing)
    nsd = compute_surface_dice(ours, theirs, [TOLERANCE] * 5, include_background=True, spacing=spacing)
    end = clocks()
    return end - start, end - converted, torch.cat([dice, hd95, nsd]).T.double().numpy()


def with_surface_distance(prediction, reference, spacing):
    import surface_distance as package

    start, scores = clocks(), []
    for value in range(1, 6):
        ours, theirs = prediction == value, reference == value
        distances = package.compute_surface_distances(theirs, ours, spacing)
        hd95 = package.compute_robust_hausdorff(distances, 95)
        nsd = package.compute_surface_dice_at_tolerance(distances, TOLERANCE)
        scores.append([package.compute_dice_coefficient(theirs, ours), hd95, nsd])
    return clocks() - start, np.array(scores)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--surface-distance", metavar="FOLDER")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    ways = {
        "nnunet_ext, voxels": lambda *case: with_nnunet_ext(*case, "voxels"),
        "MONAI": with_monai,
        "nnunet_ext, elements": lambda *case: with_nnunet_ext(*case, "elements"),
    }
    pairs = [("MONAI", "nnunet_ext, voxels")]
    if args.surface_distance:
        sys.path.insert(0, args.surface_distance)
        ways["surface-distance"] = with_surface_distance
        pairs.append(("surface-distance", "nnunet_ext, elements"))
    times = {name: [] for name in [*ways, "MONAI without one-hot"]}
    worst = {opponent: np.zeros(3) for opponent, _ in pairs}
    for case in tqdm(range(args.cases), unit="case"):
        rng = np.random.default_rng(case)
        prediction, reference = make_pair(rng, args.size)
        spacing = tuple(float(step) for step in rng.uniform((0.7, 0.7, 1.0), (1.0, 1.0, 3.0)))
        found = {}
        first = case % len(ways)  # who is first alternates, so that none always finds the masks in the cache
        for name in [*list(ways)[first:], *list(ways)[:first]]:
            seconds, *more, scores = ways[name](prediction, reference, spacing)
            found[name] = scores
            times[name].append(seconds)
            times["MONAI without one-hot"] += more
            assert np.isfinite(scores).all()
        for opponent, ours in pairs:
            worst[opponent] = np.maximum(worst[opponent], np.abs(found[ours] - found[opponent]).max(0))
    times = {name: np.array(values) for name, values in times.items()}
    pairs.append(("MONAI without one-hot", "nnunet_ext, voxels"))
    result = {
        "cases": args.cases,
        "size": args.size,
        "labels": 5,
        "measures": MEASURES,
    }
    for number, clock in enumerate(("wall-clock", "processor")):
        result[clock] = {f"{name} (s)": values[:, number].sum() for name, values in times.items()}
        for opponent, ours in pairs:
            ratios = times[opponent][:, number] / times[ours][:, number]
            result[clock][f"{opponent} / {ours}, median per case"] = np.median(ratios)
    keys = ("dice", "hd95 (mm)", "nsd")
    result |= {
        "largest difference": {
            f"{name}, {key}": value
            for name, values in worst.items()
            for key, value in zip(keys, values.tolist(), strict=True)
        },
        "software": {name: version(name) for name in ("monai", "torch", "numpy", "scipy")},
        "python": platform.python_version(),
        "machine": processor(),
        "threads": 1,
    }
    # torch.quantile takes the rank in float32: between two ordered distances that moves HD95 by some micrometres.
    assert all(dice < 1e-6 and nsd < 1e-6 and hd95 < 1e-4 for dice, hd95, nsd in worst.values()), worst
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "score_vs_monai.json").write_text(json.dumps(result, indent=2) + "\n")
    text = report(result)
    (args.output / "score_vs_monai.txt").write_text(text)
    print(text)


def report(result):
    lines = [f"{result['cases']} pairs of label maps, {result['size']}^3, 5 labels, Dice + HD95 + NSD, one thread"]
    for clock in ("wall-clock", "processor"):
        lines += [f"{clock} time", *(f"  {name:<62}{value:8.2f}" for name, value in result[clock].items())]
    lines += [
        "largest difference: " + ", ".join(f"{k} {v:.2g}" for k, v in result["largest difference"].items()),
        f"{result['machine']}, Python {result['python']}, "
        + ", ".join(f"{k} {v}" for k, v in result["software"].items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
