"""Results of a study into this repository: Dice by case, what was run, and what follows from both.

    python benchmarks/accuracy/collect.py benchmarks/accuracy/hippocampus.yaml
    python benchmarks/accuracy/collect.py benchmarks/accuracy/hippocampus.yaml --again    # from cases.csv alone

Takes the entries of the study that are validated in $nnUNet_results and adds them to `results/<data set>/<study>/`,
where rows of earlier runs stay: trainings need not end on one day or one machine. A row that is there with other
numbers is refused: it gets a name of its own, beside the old one.

Files: `cases.csv` (row, fold, case, class, Dice), `curves.csv` (row, fold, epoch, nnU-Net's losses and mean pseudo
Dice), `rows.json` (entry of the study, SHA-256 of its plans, releases, processor, cost), `summary.json` and `table.md`
(made from these), what a fold of Med-DANet says of its routing, `manifest.json` (SHA-256 sums of the others).
"""

import argparse
import csv
import platform
import shutil
from dataclasses import asdict
from pathlib import Path

import yaml

from nnunet_ext.challenges.results import means
from nnunet_ext.comparison.costs import costs_of
from nnunet_ext.comparison.models import Model
from nnunet_ext.comparison.statistics import MEAN, differences, distribution
from nnunet_ext.discovery.compatibility import versions
from nnunet_ext.discovery.devices import processor
from nnunet_ext.files import read_json, sha256_of, write_json
from nnunet_ext.layers.precision import has_bfloat16
from nnunet_ext.med_danet.evidence import EVIDENCE_FILE
from nnunet_ext.report.model_folder import read_model_folder
from nnunet_ext.report.training_log import read_logs
from nnunet_ext.studies.layout import Layout
from nnunet_ext.studies.study import read_study

RESULTS = Path(__file__).parent / "results"
CASES, CURVES = "cases.csv", "curves.csv"
COLUMNS = {
    CASES: ["row", "fold", "case", "class", "dice"],
    CURVES: ["row", "fold", "epoch", "train_loss", "val_loss", "pseudo_dice"],
}
KEYS = {CASES: 4, CURVES: 3}  # columns that say what the others belong to


def read_lines(path):
    """Columns that say what a line is of -> the others, as text, in the order of the file."""
    if not path.is_file():
        return {}
    count = KEYS[path.name]
    with path.open(encoding="utf-8", newline="") as file:
        return {tuple(line[:count]): tuple(line[count:]) for line in list(csv.reader(file))[1:]}


def write_lines(path, lines):
    """The reverse of `read_lines`."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS[path.name], *([*key, *values] for key, values in lines.items())])


def collected(layout, entry, known):
    """Dice by case of one entry in nnU-Net's precision, its curves, and what was run."""
    folder = read_model_folder(layout.model(entry))
    model = Model(entry.name, folder)
    cases = {
        (entry.name, fold, name, structure): (repr(float(dice)),)
        for fold, scores in model.scores.items()
        for name, score in scores.items()
        for structure, dice in score.dice.items()
    }
    curves = {
        (entry.name, fold, str(epoch.number)): (f"{epoch.train_loss}", f"{epoch.val_loss}", f"{epoch.mean_dice:.4f}")
        for fold in model.scores
        for epoch in read_logs(folder.path / f"fold_{fold}")
    }
    costs = costs_of(model)
    facts = {
        "entry": known,
        "trainer": folder.trainer,
        "plans": folder.plans_name,
        "plans_sha256": sha256_of(folder.path / "plans.json"),
        "patch_size": list(folder.values["patch_size"]),
        "parameters": costs.parameters,
        "gflops_per_million_voxels": costs.gflops_per_million_voxels,
        "checkpoint_mb": costs.checkpoint_mb,
        "releases": {**versions(), "python": platform.python_version()},
        "processor": {"name": processor(), "bfloat16": has_bfloat16()},
    }
    return cases, curves, facts


def result_of(cases, row):
    """One row as the comparison's statistics take it: cases with their classes and the mean over these."""
    by_case = {}
    for (name, fold, case, structure), (dice,) in cases.items():
        if name == row:
            by_case.setdefault((fold, case), {})[structure] = float(dice)
    listed = []
    for (fold, case), dice in by_case.items():
        structures = {MEAN: {"dice": sum(dice.values()) / len(dice)}}  # a class that is in neither makes it NaN
        structures |= {structure: {"dice": value} for structure, value in dice.items()}
        listed.append({"case": f"fold {fold} {case}", "structures": structures})
    return {"cases": listed, "mean": means(listed)[0]}


def summarised(cases, names, baseline):
    """Means and quartiles of each row, paired differences to the baseline, and what is missing."""
    there = [name for name in names if any(key[0] == name for key in cases)]
    results = {name: result_of(cases, name) for name in there}
    reached = {
        name: {
            structure: asdict(distribution([case["structures"][structure]["dice"] for case in result["cases"]]))
            for structure in result["mean"]
        }
        for name, result in results.items()
    }
    against = {}
    for row in differences(results, baseline) if baseline in results else []:
        paired = row.paired
        against.setdefault(row.model, {})[paired.structure] = {
            "cases": len(paired.cases), "difference": paired.difference, "low": paired.low, "high": paired.high,
            "better": paired.better, "p": paired.p, "p_holm": row.p_holm,
        }  # fmt: skip
    missing = [name for name in names if name not in there]
    return {"baseline": baseline, "reached": reached, "against_baseline": against, "missing": missing}


def table(summary, rows):
    """Markdown, best first."""
    classes = [name for name in next(iter(summary["reached"].values())) if name != MEAN]
    difference = f"difference to `{summary['baseline']}` (95 %)"
    titles = ["row", *classes, "mean Dice", difference, "p, Holm", "parameters", "GFLOPs"]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for name, reached in sorted(summary["reached"].items(), key=lambda item: -item[1][MEAN]["mean"]):
        means_of_classes = " | ".join(f"{reached[structure]['mean']:.3f}" for structure in classes)
        cells = [f"`{name}`", means_of_classes, f"{reached[MEAN]['mean']:.4f}"]
        difference = summary["against_baseline"].get(name, {}).get(MEAN)
        if difference is None:
            cells += ["", ""]
        else:
            low, high = difference["low"], difference["high"]
            cells += [f"{difference['difference']:+.4f} ({low:+.4f} to {high:+.4f})", f"{difference['p_holm']:.2g}"]
        cells += [f"{rows[name]['parameters'] / 1e6:.1f} M", f"{rows[name]['gflops_per_million_voxels']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    if summary["missing"]:
        lines += ["", f"Not run yet: {', '.join(f'`{name}`' for name in summary['missing'])}."]
    return "\n".join([*lines, ""])


def write_derived(folder, names, baseline):
    """Summary, table and manifest, from what was collected."""
    cases, rows = read_lines(folder / CASES), read_json(folder / "rows.json")
    names = [*names, *(name for name in rows if name not in names)]  # rows that a study no longer has stay
    summary = summarised(cases, names, baseline)
    write_json(folder / "summary.json", summary)
    (folder / "table.md").write_text(table(summary, rows), encoding="utf-8")
    files = sorted(path for path in folder.iterdir() if path.name != "manifest.json")
    write_json(folder / "manifest.json", {path.name: sha256_of(path) for path in files})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the data sets' folders")
    parser.add_argument("--again", action="store_true", help="nothing new: summary, table and manifest only")
    args = parser.parse_args()
    content = yaml.safe_load(args.study.read_text(encoding="utf-8"))
    names = [entry["name"] for entry in content["methods"]]
    if args.again:
        (folder,) = args.out.glob(f"Dataset{content['dataset']:03d}_*/{args.study.stem}")
        write_derived(folder, names, content["baseline"])
        return
    layout = Layout(read_study(args.study), args.study.parent, "cpu")
    folder = args.out / layout.dataset / args.study.stem
    folder.mkdir(parents=True, exist_ok=True)
    cases, curves = read_lines(folder / CASES), read_lines(folder / CURVES)
    rows = read_json(folder / "rows.json") if (folder / "rows.json").is_file() else {}
    for entry, known in zip(layout.study.entries, content["methods"], strict=True):
        if not any(layout.summary(entry, fold).is_file() for fold in layout.study.folds):
            continue
        new, learnt, facts = collected(layout, entry, known)
        if other := [key for key, dice in new.items() if cases.get(key, dice) != dice]:
            raise SystemExit(f"{entry.name} is there with another Dice of {other[0]}: give the new row its own name.")
        cases |= new
        curves |= learnt
        rows.setdefault(entry.name, facts)
        for evidence in layout.model(entry).glob(f"fold_*/{EVIDENCE_FILE}"):
            shutil.copy(evidence, folder / f"{entry.name}_{evidence.parent.name}_routing.json")
    write_lines(folder / CASES, cases)
    write_lines(folder / CURVES, curves)
    write_json(folder / "rows.json", rows)
    write_derived(folder, names, content["baseline"])
    print((folder / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
