"""What Med-DANet's routing saves on volumes of which half of the slices are empty, and what it costs in Dice.

    python benchmarks/med_danet_routing.py --out benchmarks/results/med_danet_routing.json

The paper's bank and its decision network are trained with `MedDANetTrainer` on generated phantoms: a body in every
slice with a dark and a bright distractor, and a target of two classes in half of the slices. The threshold of skipping
is calibrated on new ones, as the trainer does at its end. Then others are predicted with nnU-Net's predictor, mirroring
included: routed, and with the largest candidate on every slice, in turns within one process. Times are the process's,
of whole volumes; a ratio is the time of the largest candidate over the routed time in the same round.

    python benchmarks/med_danet_routing.py --speed 32,32,32 24,96,96 --out benchmarks/results/med_danet_speed.json

times only, without training: half of the slices are skipped and the others get one candidate, whatever the decision
network says; it runs, and its answer is replaced.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from nnunet_ext.discovery.devices import processor
from nnunet_ext.med_danet.bank import PAPER_BANK
from nnunet_ext.med_danet.choice import truth_and_valid
from nnunet_ext.med_danet.evidence import calibrated, evidence
from nnunet_ext.med_danet.seen import seen_slices
from nnunet_ext.med_danet.strip import strip_figure

LABELS = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "outer": 1, "inner": 2},
    "numTraining": 5,
    "file_ending": ".nii.gz",
}


def ellipse(size, centre, radii):
    y, x = np.ogrid[: size[0], : size[1]]
    return ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2 <= 1


def phantom(rng, size):
    """Image and labels, float32 and uint8 `[D, H, W]`: labels in one run of slices, half of the depth."""
    depth, *plane = size
    sides = np.array(plane)
    image, labels = np.zeros(size, np.float32), np.zeros(size, np.uint8)
    start = int(rng.integers(0, depth // 2 + 1))
    centre = sides * rng.uniform(0.4, 0.6, 2)
    radii = sides * rng.uniform(0.14, 0.22, 2)
    others = [(sides * rng.uniform(0.25, 0.75, 2), sides * rng.uniform(0.05, 0.1, 2), v) for v in (-1.0, 4.5)]
    body = ellipse(plane, sides / 2, sides * 0.45)
    for k in range(depth):
        image[k] = body
        for place, extent, value in others:
            image[k][ellipse(plane, place, extent)] = value
        if start <= k < start + depth // 2:
            width = 0.45 + 0.55 * np.sin(np.pi * (k - start + 0.5) / (depth // 2))
            outer = ellipse(plane, centre, radii * width)
            inner = ellipse(plane, centre, radii * width * 0.5)
            image[k][outer], image[k][inner] = 2.0, 3.0
            labels[k][outer], labels[k][inner] = 1, 2
    image += rng.normal(0, 0.15, size).astype(np.float32)
    return (image - image.mean()) / image.std(), labels


def batch(rng, count, size):
    made = [phantom(rng, size) for _ in range(count)]
    data, target = (torch.from_numpy(np.stack(arrays))[:, None].float() for arrays in zip(*made, strict=True))
    return {"data": data, "target": target}


def plans(bank, size, options):
    """A plans dict as nnU-Net's planner writes it, with one tile for a volume."""
    strides = [[1, 1, 1], [1, 2, 2], [1, 2, 2]]
    resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "Phantoms_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(size),
        "median_image_size_in_voxels": list(size),
        "spacing": [2.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        **{f"resampling_fn_{what}": "resample_data_or_seg_to_shape" for what in ("data", "seg", "probabilities")},
        **{f"resampling_fn_{what}_kwargs": resampling for what in ("data", "seg", "probabilities")},
        "architecture": {
            "network_class_name": "nnunet_ext.med_danet.network.MedDANet",
            "arch_kwargs": {"strides": strides, "candidates": bank, "position_size": list(size[1:])},
            "_kw_requires_import": [],
        },
        "batch_dice": False,
        "nnunet_ext": options,
    }
    return {
        "dataset_name": "Dataset001_Phantoms",
        "plans_name": "Phantoms",
        "original_median_spacing_after_transp": [2.0, 1.0, 1.0],
        "original_median_shape_after_transp": list(size),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "continue_training": False,
    }


def train(trainer, seed, size, bank):
    """Both phases as nnU-Net goes through them, on new phantoms in every step; returns a row for each epoch."""
    rows = []
    if bank is not None and bank.is_file():
        saved = torch.load(bank, weights_only=True)
        trainer.net.candidates.load_state_dict(saved["weights"])
        rows = saved["rows"]
    for epoch in range(len(rows), trainer.num_epochs):
        start = time.perf_counter()
        rng = np.random.default_rng([seed, epoch])
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        outputs = [trainer.train_step(batch(rng, 2, size)) for _ in range(trainer.num_iterations_per_epoch)]
        trainer.on_train_epoch_end(outputs)
        seconds = round(time.perf_counter() - start, 1)
        rows.append({"epoch": epoch, **trainer.history_row(), "seconds": seconds})
        if bank is not None and epoch + 1 == trainer.options.decision_start:
            torch.save({"weights": trainer.net.candidates.state_dict(), "rows": rows}, bank)
        print(json.dumps(rows[-1]), flush=True)
    return rows


def dice(logits, labels):
    predicted = logits.argmax(0).numpy()
    both = [((predicted == k) & (labels == k)).sum() for k in (1, 2)]
    sizes = [(predicted == k).sum() + (labels == k).sum() for k in (1, 2)]
    return float(np.mean([2 * b / s for b, s in zip(both, sizes, strict=True)]))


def predictor_of(trainer):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    trainer.net.eval()
    predictor.manual_initialization(
        trainer.net, trainer.plans_manager, trainer.configuration_manager, None, trainer.dataset_json, "-", (1, 2)
    )
    return predictor


def evaluate(trainer, seed, size, cases, rounds, strip):
    """Skipped shares and Dice over `cases` phantoms; time of each case, in turns; the last one as a strip."""
    rng = np.random.default_rng(seed)
    predictor, network = predictor_of(trainer), trainer.net
    titles = ["skip", *(candidate.title for candidate in network.bank)]
    rows, ratios, seconds = [], [], {"routed": [], "largest": []}
    skipped = {"empty": 0, "filled": 0}
    slices = {"empty": 0, "filled": 0}
    chosen = np.zeros(len(titles), int)
    for number in range(cases):
        image, labels = phantom(rng, size)
        volume = torch.from_numpy(image)[None]
        row = {}
        for turn in range(rounds + (number == 0)):  # the very first turn warms up
            times = {}
            for name in ("routed", "largest"):
                network.decision_trained.fill_(name == "routed")
                network.record = [] if name == "routed" else None
                start = time.process_time()
                logits = predictor.predict_sliding_window_return_logits(volume)
                times[name] = time.process_time() - start
                if turn == 0:
                    row[f"dice {name}"] = dice(logits, labels)
                    if name == "routed":
                        choices = np.array(network.record)  # passes, slices
            if number or turn:
                ratios.append(times["largest"] / times["routed"])
                for name, value in times.items():
                    seconds[name].append(value)
        empty = ~truth_and_valid(torch.from_numpy(labels)[:, None], 3)[0].flatten(1).any(1).numpy()
        for name, where in (("empty", empty), ("filled", ~empty)):
            skipped[name] += int((choices[:, where] == 0).sum())
            slices[name] += int(where.sum()) * len(choices)
        chosen += np.bincount(choices.flatten(), minlength=len(titles))
        rows.append(row)
    network.record = None
    if strip:
        votes = [[int((choices[:, k] == n).sum()) for n in range(len(titles))] for k in range(size[0])]
        strip_figure(votes, (labels > 0).sum((1, 2)).tolist(), titles).savefig(strip, dpi=150)
    return {
        "empty slices skipped": skipped["empty"] / slices["empty"],
        "filled slices skipped": skipped["filled"] / slices["filled"],
        "choices": dict(zip(titles, (chosen / chosen.sum()).round(4).tolist(), strict=True)),
        "dice routed": float(np.mean([row["dice routed"] for row in rows])),
        "dice largest": float(np.mean([row["dice largest"] for row in rows])),
        "dice lost": float(np.mean([row["dice largest"] - row["dice routed"] for row in rows])),
        "seconds of a volume": {name: statistics.median(values) for name, values in seconds.items()},
        "time of the largest candidate / routed": {
            "median": statistics.median(ratios), "min": min(ratios), "max": max(ratios), "rounds": len(ratios)
        },
    }  # fmt: skip


def calibrate(trainer, seed, size, cases):
    """The threshold by `cases` phantoms, and what the trainer says at its end."""
    rng = np.random.default_rng(seed)
    network, neighbours = trainer.net.eval(), int(trainer.net.skip_neighbours)
    seen = []
    for _ in range(cases):
        image, labels = phantom(rng, size)
        x, target = (torch.from_numpy(array)[None, None].float() for array in (image, labels))
        seen.append(seen_slices(network, x, target, trainer.metric, neighbours, regions=False, ignore_label=None))
    network.skip_threshold.fill_(calibrated(seen, trainer.options.skip_risk))
    threshold = float(network.skip_threshold)
    return evidence(seen, trainer.slice_costs, threshold, neighbours, trainer.options.skip_risk)


def forced(network, choice):
    """The decision network runs, and skips the first half of the slices; the others get one choice."""

    def instead(_, inputs, shares):
        depth = len(shares) // 4  # slices; there are four views of each
        wanted = torch.where(torch.arange(depth) < depth // 2, 0, choice).repeat(4)
        return 20 * torch.nn.functional.one_hot(wanted, shares.shape[1]).to(shares.dtype)

    return network.decision.register_forward_hook(instead)


def speed(trainer, size, rounds):
    """Medians of ratios within a round: the largest candidate on all slices over half skipped, half one candidate."""
    predictor, network = predictor_of(trainer), trainer.net
    titles = [candidate.title for candidate in network.bank]
    seconds = {name: [] for name in (*titles, "largest on every slice")}
    for turn in range(rounds + 1):  # the very first turn warms up
        for number, name in enumerate(seconds, start=1):
            routed = number <= len(titles)
            network.decision_trained.fill_(routed)
            hook = forced(network, number) if routed else None
            volume = torch.randn(1, *size)  # a new one, of which nothing has been decided
            start = time.process_time()
            predictor.predict_sliding_window_return_logits(volume)
            if turn:
                seconds[name].append(time.process_time() - start)
            if hook is not None:
                hook.remove()
    all_largest = seconds.pop("largest on every slice")
    return {
        "seconds of a volume, largest on every slice": statistics.median(all_largest),
        **{
            f"half skipped, half {name}": {
                "seconds": statistics.median(values),
                "times faster": statistics.median(a / b for a, b in zip(all_largest, values, strict=True)),
            }
            for name, values in seconds.items()
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", nargs="+", metavar="D,H,W", help="times only, for phantoms of these sizes")
    parser.add_argument("--size", default="32,32,32", help="D,H,W of the phantoms")
    parser.add_argument("--epochs", type=int, nargs=2, default=[35, 80], help="of bank and decision network")
    parser.add_argument("--iterations", type=int, default=20, help="an epoch; each takes --slices slices")
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=JSON", help="further training options")
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2, help="timed turns a case")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bank-file", type=Path, help="the trained bank; written if it is not there")
    parser.add_argument("--strip", type=Path, help="a PNG of what the slices of the last volume got")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = tuple(map(int, args.size.split(",")))
    options = {
        "num_epochs": sum(args.epochs),
        "bank_epochs": args.epochs[0],
        "num_iterations_per_epoch": args.iterations,
        "slices_per_step": args.slices,
        "initial_lr": 5e-3,
        "seed": args.seed,
        **{name: json.loads(value) for name, _, value in (item.partition("=") for item in args.set)},
    }
    with tempfile.TemporaryDirectory() as root:
        for name in ("raw", "preprocessed", "results"):  # before nnU-Net is imported, which reads them
            os.environ[f"nnUNet_{name}"] = f"{root}/{name}"
        data = Path(root, "preprocessed", "Dataset001_Phantoms", "Phantoms_3d_fullres")
        data.mkdir(parents=True)
        (data / "case_000.b2nd").touch()  # the trainer asks for the kind of its data
        from nnunet_ext.trainers.med_danet import MedDANetTrainer

        if args.speed:
            found = {}
            for text in args.speed:
                size = tuple(map(int, text.split(",")))
                trainer = MedDANetTrainer(plans(PAPER_BANK, size, {}), "3d_fullres", 0, LABELS, torch.device("cpu"))
                trainer.initialize()
                found[text] = speed(trainer, size, args.rounds)
            capability = torch.backends.cpu.get_cpu_capability()
            machine = {"cpu capability of torch": capability, "torch": torch.__version__, "threads": args.threads}
            print(json.dumps(found, indent=2))
            if args.out:
                args.out.write_text(json.dumps({"machine": machine, **found}, indent=2) + "\n")
            return
        trainer = MedDANetTrainer(plans(PAPER_BANK, size, options), "3d_fullres", 0, LABELS, torch.device("cpu"))
        trainer.initialize()
        trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # sets the axes that prediction mirrors
        history = train(trainer, args.seed, size, args.bank_file)
        report = {
            "machine": processor(),
            "versions": {name: version(name) for name in ("torch", "nnunetv2")},
            "threads": args.threads,
            "size": size,
            "bank": PAPER_BANK,
            "options": options,
            "history": history,
            "evidence": calibrate(trainer, args.seed + 10_000, size, args.cases),
            **evaluate(trainer, args.seed + 20_000, size, args.cases, args.rounds, args.strip),
        }
    print(json.dumps({key: value for key, value in report.items() if key not in ("history", "bank")}, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
