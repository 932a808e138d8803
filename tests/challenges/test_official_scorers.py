"""Our numbers against those that the organisers' own scorers gave for the masks in `recorded/`.

`recorded/scores.json` holds what these programs printed, run on the masks in `recorded/masks.npz` with nothing changed
but calls that today's NumPy, SciPy and pandas no longer know, and the number of digits that they print:

- lits17: github.com/PatrickChrist/lits-challenge-scoring, 090307d
- surface-distance: github.com/google-deepmind/surface-distance
- brats2023: github.com/rachitsaluja/BraTS-2023-Metrics; brats2024: metrics_MEN.py of BraTS-2024-Metrics
- kits23: github.com/neheller/kits23, kits23/evaluation/metrics.py
- flare22, flare23: github.com/JunMa11/FLARE, the scripts DSC_NSD_Eval of both years
"""

import json
from pathlib import Path

import numpy as np
import pytest

from nnunet_ext.challenges.catalogue import get_challenge
from nnunet_ext.challenges.facts import Conventions
from nnunet_ext.challenges.metrics import Pair, measure, percentile_distance, structure_scores
from nnunet_ext.challenges.surfaces import element_distances

FOLDER = Path(__file__).with_name("recorded")
RECORDED = json.loads((FOLDER / "scores.json").read_text(encoding="utf-8"))
MASKS = np.load(FOLDER / "masks.npz")
EXACT = {"rel": 1e-6, "abs": 1e-6}


def pair(name, number):
    return MASKS[f"{name}_{number}_prediction"], MASKS[f"{name}_{number}_reference"]


def scored(challenge, prediction, reference, spacing):
    """As `score` does it."""
    metrics = challenge.metrics
    limits = {"tolerance": metrics.tolerance, "conventions": metrics.conventions}
    result = {
        "structures": structure_scores(
            prediction, reference, tuple(spacing), metrics.structures, metrics.measures, **limits
        )
    }
    if metrics.case_measure is not None:
        special = metrics.case_measure(prediction, reference, tuple(spacing))
        for name, values in special.pop("structures", {}).items():
            result["structures"].setdefault(name, {}).update(values)
        result.update(special)
    return result


def test_lits17():
    challenge, recorded = get_challenge("lits17"), RECORDED["lits17"]
    cases = [scored(challenge, *pair("lits17", number), recorded["spacing"]) for number in range(4)]
    totals, theirs = challenge.metrics.totals(cases), recorded["scores"]
    for ending, limit in (("", "0.5"), ("_greater_zero", "0")):
        for name in ("precision", "recall"):
            assert totals[f"lesion_{name}_iou>{limit}"] == pytest.approx(theirs[f"lesion_{name}{ending}"], **EXACT)
    for name in ("dice", "voe", "rvd", "assd", "rmsd", "msd"):
        assert totals[f"detected_lesions_{name}"] == pytest.approx(theirs[f"lesion_{name}"], **EXACT)
        of_liver = [case["structures"]["liver"][name] for case in cases]
        assert np.mean(of_liver) == pytest.approx(theirs[f"liver_{name}"], **EXACT)
    for name in ("lesion", "liver"):
        dice = [case["structures"][name]["dice"] for case in cases]
        assert np.mean(dice) == pytest.approx(theirs[f"{name}_dice_per_case"], **EXACT)
        assert totals[f"{name}_dice_global"] == pytest.approx(theirs[f"{name}_dice_global"], **EXACT)
    assert totals["tumor_burden_rmse"] == pytest.approx(theirs["RMSE_Tumorburden"], **EXACT)
    assert totals["tumor_burden_max"] == pytest.approx(theirs["MAXERROR_Tumorburden"], **EXACT)


@pytest.mark.parametrize("number", range(4))  # three in 3D, one in 2D
def test_surface_distance(number):
    prediction, reference = pair("surface", number)
    row = RECORDED["surface-distance"][number]
    spacing = tuple(row["spacing"])
    both = Pair(prediction, reference, spacing, prediction.shape, row["tolerance"], Conventions())
    values = measure(both, ("nsd", "hd95", "hausdorff"))
    assert values == pytest.approx({name: row[name] for name in values}, **EXACT)
    distances = element_distances(prediction, reference, spacing)
    assert distances.prediction_weights.sum() == pytest.approx(row["area_prediction"], **EXACT)
    assert distances.reference_weights.sum() == pytest.approx(row["area_reference"], **EXACT)
    ways = (
        (distances.to_reference, distances.prediction_weights, "average_from_prediction"),
        (distances.to_prediction, distances.reference_weights, "average_from_reference"),
    )
    for values, weights, name in ways:
        assert np.average(values, weights=weights) == pytest.approx(row[name], **EXACT)
    assert percentile_distance(distances, 95, Conventions(surface="elements")) == pytest.approx(row["hd95"], **EXACT)


NAMES = {"WT": "whole tumor", "TC": "tumor core", "ET": "enhancing tumor"}
LESION_WISE = {
    "lesion_dice": "LesionWise_Score_Dice",
    "lesion_hd95": "LesionWise_Score_HD95",
    "lesions_found": "Num_TP",
    "lesions_invented": "Num_FP",
    "lesions_missed": "Num_FN",
}
WHOLE = {"dice": "Legacy_Dice", "sensitivity": "Sensitivity", "specificity": "Specificity", "hd95": "Legacy_HD95"}


@pytest.mark.parametrize("year", [2023, 2024])
def test_brats(year):
    for row in RECORDED[f"brats{year}"]:
        check_brats(year, row)


def check_brats(year, row):
    challenge = get_challenge(f"brats-{row['task'].lower()}", year)
    result = scored(challenge, *pair("brats", row["pair"]), (1.0, 1.0, 1.0))["structures"][NAMES[row["region"]]]
    if np.isinf(result["hd95"]):  # which the scorer writes as its penalty
        result["hd95"] = 374.0
    for ours, theirs in {**LESION_WISE, **WHOLE}.items():
        assert result[ours] == pytest.approx(row[theirs], **EXACT), (ours, row)


@pytest.mark.parametrize("row", RECORDED["kits23"], ids=lambda row: f"{row['pair']}-{row['structure']}")
def test_kits23(row):
    result = scored(get_challenge("kits23"), *pair("kits23", row["pair"]), row["spacing"])["structures"]
    values = result[row["structure"].replace("_", " ")]
    assert values == pytest.approx({"dice": row["dice"], "nsd": row["nsd"]}, **EXACT)


FLARE = ("Liver", "RK", "Spleen", "Pancreas", "Aorta", "IVC", "RAG", "LAG", "Gallbladder", "Esophagus", "Stomach")
FLARE += ("Duodenum", "LK", "Lesion")


@pytest.mark.parametrize("year", [22, 23])
@pytest.mark.parametrize("number", range(3))
def test_flare(year, number):
    challenge, recorded = get_challenge(f"flare{year}"), RECORDED[f"flare{year}"]
    spacing = np.float32(recorded["spacing"]).tolist()  # as the file's header has it, on which ties depend
    result = scored(challenge, *pair("flare", number), spacing)["structures"]
    for name, values in zip(FLARE, result.values(), strict=False):
        for ours, theirs in (("dice", "DSC"), ("nsd", "NSD")):
            assert values[ours] == pytest.approx(recorded["scores"][f"{name}_{theirs}"][number], **EXACT), name
    assert len(result) == (13 if year == 22 else 14)
