"""Stages of prediction beside nnU-Net's: preprocessing, labels from logits, and the whole commands.

    python benchmarks/prediction_pipeline.py stages --out benchmarks/results/prediction_stages.json
    python benchmarks/prediction_pipeline.py commands 901 IMAGES --spacing 1.5 0.8 0.8 --out FILE
    python benchmarks/prediction_pipeline.py large --out benchmarks/results/prediction_117_classes.json

Each measurement is a process of its own, one thread, opponents in turns; medians of ratios of process time, and of the
largest resident memory; all keep freed memory, as `nnunet_ext predict` does. Images are synthetic. Logits are those of
a network that is sure of its organs (balls with blurred borders and some noise) or of one that knows nothing (noise,
the worst case). nnU-Net's functions are its own.

`commands` runs whole commands on real images, resampled to a spacing that scanners have, with untrained models: the
time does not depend on the weights. The data set must be planned and preprocessed (nnUNetPlans, E2ENetPlans), and
nnU-Net's folders set; models go to a temporary folder. All get glibc's memory settings that ours chooses for itself.
"""

import argparse
import contextlib
import ctypes
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nnunet_ext.discovery.devices import cpu_threads, cpus

SPACING = {"ct": (1.5, 1.5, 1.5), "mr": (1.0, 0.8, 0.8), "thick": (5.0, 0.7, 0.7)}
# name -> size of the image (voxels), its spacing (mm), channels, kind of plans
IMAGES = {
    "CT 300x512x512, 1.5x0.8x0.8 mm": ((300, 512, 512), (1.5, 0.8, 0.8), 1, "ct"),
    "MR 160x240x240, 1.1 mm, 2 channels": ((160, 240, 240), (1.1, 1.1, 1.1), 2, "mr"),
    "MR 24x512x512, 5.5x0.5x0.5 mm": ((24, 512, 512), (5.5, 0.5, 0.5), 1, "thick"),
}
LOGITS = {
    "CT, 16 classes, sure": ("CT 300x512x512, 1.5x0.8x0.8 mm", 16, "sure"),
    "CT, 16 classes, noise": ("CT 300x512x512, 1.5x0.8x0.8 mm", 16, "noise"),
    "CT, 117 classes, sure": ("CT 300x512x512, 1.5x0.8x0.8 mm", 117, "sure"),
    "CT of half the size, 117 classes, sure": ("half", 117, "sure"),
    "MR, 4 classes, sure": ("MR 160x240x240, 1.1 mm, 2 channels", 4, "sure"),
    "MR of thick slices, 4 classes, sure": ("MR 24x512x512, 5.5x0.5x0.5 mm", 4, "sure"),
}
# For nnU-Net on a machine with 24 GiB, whose memory they fill until the process is killed.
TOO_LARGE = {"CT, 117 classes, sure", "CT of half the size, 117 classes, sure"}


def image_of(name):
    if name == "half":
        return (150, 256, 256), (3.0, 1.6, 1.6), 1, "ct"
    if name == "tiny":
        return (40, 48, 48), (2.0, 1.0, 1.0), 1, "ct"
    return IMAGES[name]


def plans(kind, channels):
    """nnU-Net's plans, as far as preprocessing and export read them."""
    how = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "x", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [64, 128, 128], "median_image_size_in_voxels": [64, 128, 128], "spacing": list(SPACING[kind]),
        "normalization_schemes": ["CTNormalization" if kind == "ct" else "ZScoreNormalization"] * channels,
        "use_mask_for_norm": [kind != "ct"] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": {**how, "order": 3},
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_seg_kwargs": {**how, "order": 1, "is_seg": True},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**how, "order": 1}, "architecture": {}, "batch_dice": False,
    }  # fmt: skip
    facts = {"mean": 0.0, "std": 300.0, "percentile_00_5": -900.0, "percentile_99_5": 900.0}
    return {
        "dataset_name": "Dataset999_Synthetic", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): facts for channel in range(channels)},
    }  # fmt: skip


def model(kind, channels, classes):
    """A model without networks."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_ext.prediction.model import Model

    manager = PlansManager(plans(kind, channels))
    dataset = {"channel_names": {str(c): "CT" for c in range(channels)}, "file_ending": ".nii.gz",
               "labels": {"background": 0, **{f"c{k}": k for k in range(1, classes)}}}  # fmt: skip
    labels = manager.get_label_manager(dataset)
    return Model(Path(), (), "", [], manager, manager.get_configuration("3d_fullres"), labels, dataset, "", None)


def write_images(folder, name):
    """A body with organs: air is -1000 in a CT and 0 in an MR."""
    import SimpleITK as sitk

    size, spacing, channels, kind = image_of(name)
    rng = np.random.default_rng(0)
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    body = (y[None, :, None] ** 2 + x[None, None, :] ** 2 + 0.1 * z[:, None, None] ** 2) < 0.6
    files = []
    for channel in range(channels):
        noise = rng.integers(-40, 40, size, np.int16)
        organs = (300 * np.sin(7 * z)[:, None, None] * np.cos(9 * y)[None, :, None] * np.sin(8 * x)).astype(np.int16)
        array = np.where(body, organs + noise + (0 if kind == "ct" else 400), -1000 if kind == "ct" else 0)
        image = sitk.GetImageFromArray(array.astype(np.int16))
        image.SetSpacing(spacing[::-1])
        files.append(str(folder / f"case_{channel:04d}.nii.gz"))
        sitk.WriteImage(image, files[-1])
    return files


def logits_of(name, classes, kind):
    """`[K, D, H, W]` float16 at the network's spacing, and the properties that nnU-Net keeps of the image."""
    import torch

    size, spacing, _, plan = image_of(name)
    shape = [round(n * a / b) for n, a, b in zip(size, spacing, SPACING[plan], strict=True)]
    rng = np.random.default_rng(1)
    result = torch.empty((classes, *shape), dtype=torch.half)
    z, y, x = (torch.linspace(0, 1, n) for n in shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.3
    for k in range(classes):
        if kind == "noise":
            result[k] = torch.randn(shape, generator=torch.Generator().manual_seed(k))
        elif k == 0:
            result[k] = 2 + noise
        else:
            centre, radius = rng.random(3), rng.uniform(0.03, 0.15)
            distance = (
                (z[:, None, None] - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2 + (x - centre[2]) ** 2
            ).sqrt()
            result[k] = ((radius - distance) * 80).clamp(-14, 14) + noise.flip(k % 3)
    box = [[0, n] for n in size]
    header = {"spacing": spacing[::-1], "origin": (0, 0, 0), "direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}
    properties = {
        "spacing": list(spacing),
        "shape_before_cropping": tuple(size),
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": tuple(size),
        "sitk_stuff": header,
    }
    return result, properties


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def current():
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Measured:
    """Process seconds, wall seconds, and how much the largest resident memory rose above what was there before."""

    def __enter__(self):
        ctypes.CDLL(None).malloc_trim(0)  # what the preparations freed, and this process kept, is not there before
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the largest resident size begins anew
        self.before, self.wall, self.process = current(), time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_):
        seconds, wall = time.process_time() - self.process, time.perf_counter() - self.wall
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        high = int(status.split("VmHWM:")[1].split()[0]) * 1024
        self.result = {"seconds": seconds, "wall": wall, "bytes": high - self.before, "peak": high}


def measure_preprocessing(name, opponent, folder):
    import torch

    from nnunet_ext.prediction.preprocessing import preprocess
    from nnunet_ext.prediction.timing import Timing

    torch.set_num_threads(1)
    *_, channels, kind = image_of(name)
    files = [str(folder / f"case_{channel:04d}.nii.gz") for channel in range(channels)]
    made = model(kind, channels, 2)
    preprocessor = made.configuration.preprocessor_class(verbose=False)
    for _ in range(2):  # the second case of a process is measured
        timing = Timing()
        with Measured() as measured:
            if opponent == "nnunet":
                data = preprocessor.run_case(files, None, made.plans, made.configuration, made.dataset)[0]
            else:
                with timing.case("case"):
                    data = preprocess(made, files, None, timing)[0].numpy()
    stages = timing.report()["cases"].get("case", {})
    return {**measured.result, "stages": stages, "sum": float(data.astype(np.float64).sum()), "shape": data.shape}


def measure_export(name, opponent, folder):
    import hashlib

    import SimpleITK as sitk
    import torch

    torch.set_num_threads(1)
    image, classes, kind = LOGITS[name]
    made = model(image_of(image)[3], image_of(image)[2], classes)
    export(model("ct", 1, 3), opponent, *logits_of("tiny", 3, "noise"), folder)  # what a process allocates once
    logits, properties = logits_of(image, classes, kind)
    with Measured() as measured:
        export(made, opponent, logits, properties, folder)
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "out.nii.gz")))
    return {**measured.result, "labels": hashlib.sha256(labels.tobytes()).hexdigest()[:16], "label map": labels.nbytes,
            "voxels by label": np.bincount(labels.ravel()).tolist()[:5], "logits": logits.numel() * 2}  # fmt: skip


def export(made, opponent, logits, properties, folder):
    from nnunetv2.inference.export_prediction import export_prediction_from_logits

    from nnunet_ext.prediction.export import CaseExport

    if opponent == "nnunet":
        words = (made.configuration, made.plans, made.dataset, str(folder / "out"))
        export_prediction_from_logits(logits, properties, *words, False, 1)
        return
    case = CaseExport(made, logits.shape[1:], properties, folder, exact=opponent == "ours")
    for start in range(0, logits.shape[1], 8):  # as the sliding window hands them on
        case.add(logits[:, start : start + 8])
    case.finish()
    case.write(folder / "out")


def in_process(part, name, opponent, folder):
    """One measurement in a process of its own."""
    words = [sys.executable, __file__, "one", part, name, opponent, str(folder)]
    kept = str(384 * 2**20)  # as `nnunet_ext predict` sets it
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": kept,
                   "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}  # fmt: skip
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        return {"failed": done.stderr.strip().splitlines()[-1] if done.stderr else f"signal {-done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def stages(args):
    report = {"machine": machine()}
    if args.out and args.out.is_file():  # what was measured stays
        report = json.loads(args.out.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        for part, names in (("preprocessing", IMAGES), ("export", LOGITS)):
            for name in names:
                if f"{part}: {name}" in report or (args.only and args.only not in f"{part} {name}"):
                    continue
                folder = Path(place, "work")
                folder.mkdir()
                if part == "preprocessing":
                    write_images(folder, name)
                opponents = ["nnunet", "ours"] + (["fast"] if part == "export" else [])
                runs = {opponent: [] for opponent in opponents}
                for _ in range(args.rounds):
                    for opponent in opponents:
                        if opponent == "nnunet" and name in TOO_LARGE:
                            continue
                        runs[opponent].append(in_process(part, name, opponent, folder))
                        print(part, name, opponent, runs[opponent][-1], flush=True)
                report[f"{part}: {name}"] = summary(runs)
                subprocess.run(["rm", "-r", str(folder)], check=True)
                if args.out:
                    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


KEPT = ("stages", "labels", "label map", "sum", "voxels by label")


def summary(runs):
    found = {}
    for opponent, results in runs.items():
        failed = [r["failed"] for r in results if "failed" in r]
        if not results or failed:
            found[opponent] = f"failed: {failed[0]}" if failed else "not run: does not fit the machine"
            continue
        found[opponent] = {
            "process seconds": round(statistics.median(r["seconds"] for r in results), 2),
            "GB above what was there": round(statistics.median(r["bytes"] for r in results) / 1e9, 3),
            "GB of the process": round(statistics.median(r["peak"] for r in results) / 1e9, 3),
            **{key: results[-1][key] for key in KEPT if key in results[-1]},
        }
    for opponent, results in runs.items():
        if opponent != "nnunet" and isinstance(found["nnunet"], dict) and isinstance(found[opponent], dict):
            pairs = list(zip(runs["nnunet"], results, strict=True))
            found[f"nnunet / {opponent}"] = {
                "process seconds": round(statistics.median(a["seconds"] / b["seconds"] for a, b in pairs), 2),
                "memory": round(statistics.median(a["bytes"] / b["bytes"] for a, b in pairs), 2),
            }
    return found


def machine():
    import torch

    return {"cpu capability of torch": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__,
            "cores": cpus(), "threads": 1}  # fmt: skip


COMMANDS = {  # name -> program, trainer, plans, further words
    "nnUNetv2_predict, nnU-Net": ("nnUNetv2_predict", "nnUNetTrainer", "nnUNetPlans", []),
    "nnunet_ext predict, nnU-Net": ("nnunet_ext", "nnUNetTrainer", "nnUNetPlans", []),
    "nnUNetv2_predict, E2ENet": ("nnUNetv2_predict", "E2ENetTrainer", "E2ENetPlans", []),
    "nnunet_ext predict, E2ENet": ("nnunet_ext", "E2ENetTrainer", "E2ENetPlans", []),
    "nnunet_ext predict --backend openvino, nnU-Net": (
        "nnunet_ext", "nnUNetTrainer", "nnUNetPlans", ["--backend", "openvino"],
    ),
}  # fmt: skip


def resampled(images, folder, spacing):
    """The images at another spacing `(z, y, x)`, cubic."""
    import SimpleITK as sitk

    for path in sorted(images.glob("*.nii.gz")):
        image = sitk.ReadImage(str(path))
        new = spacing[::-1]
        size = [round(n * a / b) for n, a, b in zip(image.GetSize(), image.GetSpacing(), new, strict=True)]
        where = (image.GetOrigin(), new, image.GetDirection())
        sitk.WriteImage(sitk.Resample(image, size, sitk.Transform(), sitk.sitkBSpline, *where), str(folder / path.name))


def untrained(dataset, trainer_name, plans_name):
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    trainer = get_trainer_from_args(dataset, "3d_fullres", "all", trainer_name, plans_name, device=torch.device("cpu"))
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0, 1, 2)
    base = Path(trainer.output_folder_base)
    (base / "plans.json").write_text(json.dumps(trainer.plans_manager.plans), encoding="utf-8")
    (base / "dataset.json").write_text(json.dumps(trainer.dataset_json), encoding="utf-8")
    trainer.save_checkpoint(str(base / "fold_all" / "checkpoint_final.pth"))


def large(args):
    """`nnunet_ext predict` on the large CT with 117 classes and random weights, whose logits are noise."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    name, classes = "CT 300x512x512, 1.5x0.8x0.8 mm", 117
    made = plans("ct", 1)
    stages = 6
    words = {
        "n_stages": stages, "features_per_stage": [32, 64, 128, 256, 320, 320], "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
        "n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1), "conv_bias": True,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    kinds = {"conv_op": "torch.nn.modules.conv.Conv3d", "nonlin": "torch.nn.LeakyReLU",
             "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d"}  # fmt: skip
    made["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {**words, **kinds, "dropout_op": None, "dropout_op_kwargs": None},
        "_kw_requires_import": [*kinds, "dropout_op"],
    }
    torch.manual_seed(0)
    network = PlainConvUNet(
        1, conv_op=torch.nn.Conv3d, norm_op=torch.nn.InstanceNorm3d, nonlin=torch.nn.LeakyReLU, num_classes=classes,
        deep_supervision=False, **words,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        folder, images, output = Path(place, "model"), Path(place, "images"), Path(place, "out")
        (folder / "fold_0").mkdir(parents=True)
        images.mkdir()
        (folder / "plans.json").write_text(json.dumps(made), encoding="utf-8")
        (folder / "dataset.json").write_text(json.dumps(model("ct", 1, classes).dataset), encoding="utf-8")
        torch.save(
            {
                "network_weights": network.state_dict(), "trainer_name": "nnUNetTrainer",
                "init_args": {"configuration": "3d_fullres"}, "inference_allowed_mirroring_axes": (0, 1, 2),
            },
            folder / "fold_0" / "checkpoint_final.pth",
        )  # fmt: skip
        write_images(images, name)
        words = [Path(sys.executable).parent / "nnunet_ext", "predict", "-i", images, "-o", output, "-m", folder, "-f",
                 "0", "-device", "cpu", "--disable_progress_bar", "--timing", Path(place, "timing.json"),
                 *args.predict.split()]  # fmt: skip
        report = {"machine": {**machine(), "threads": cpu_threads()}, "image": name, "classes": classes,
                  "words": args.predict.split(), **whole_command(words), "files": len(list(output.glob("*.nii.gz"))),
                  "stages": json.loads(Path(place, "timing.json").read_text(encoding="utf-8"))}  # fmt: skip
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def commands(args):
    dataset, images = args.words
    report = {"machine": {**machine(), "threads": cpu_threads()}, "words": args.predict.split()}
    with tempfile.TemporaryDirectory() as place:
        os.environ["nnUNet_results"] = str(Path(place, "results"))  # nobody's models are touched
        os.environ.update(MALLOC_MMAP_THRESHOLD_=str(2**31 - 1), MALLOC_TRIM_THRESHOLD_=str(2**31 - 1))
        source = Path(place, "images")
        source.mkdir()
        resampled(Path(images), source, args.spacing)
        for _, trainer, plans_name, _ in COMMANDS.values():
            untrained(dataset, trainer, plans_name)
        runs = {name: [] for name in COMMANDS}
        os.environ["XDG_CACHE_HOME"] = str(Path(place, "cache"))  # the first round converts
        for number in range(args.rounds):
            for name, (program, trainer, plans_name, more) in COMMANDS.items():
                output = Path(place, f"{name} {number}")
                words = [Path(sys.executable).parent / program, *["predict"] * (program == "nnunet_ext"), "-i", source,
                         "-o", output, "-d", dataset, "-c", "3d_fullres", "-tr", trainer, "-p", plans_name, "-f", "all",
                         "-device", "cpu", "--disable_progress_bar", *args.predict.split(), *more]  # fmt: skip
                runs[name].append(whole_command(words))
                runs[name][-1]["files"] = len(list(output.glob("*.nii.gz")))
                print(name, runs[name][-1], flush=True)
        strongest = "nnUNetv2_predict, nnU-Net"
        for name, results in runs.items():
            report[name] = {
                **{key: statistics.median(r[key] for r in results) for key in ("wall", "seconds", "GB", "files")},
                f"{strongest} / this": {
                    key: round(
                        statistics.median(a[key] / b[key] for a, b in zip(runs[strongest], results, strict=True)), 2
                    )
                    for key in ("wall", "seconds", "GB")
                },
            }
        for trainer in ("nnU-Net", "E2ENet"):
            report[f"labels of {trainer} equal"] = equal_share(
                Path(place, f"nnUNetv2_predict, {trainer} 0"), Path(place, f"nnunet_ext predict, {trainer} 0")
            )
        report["labels of nnU-Net in OpenVINO equal"] = equal_share(
            Path(place, "nnUNetv2_predict, nnU-Net 0"), Path(place, "nnunet_ext predict --backend openvino, nnU-Net 0")
        )
    print(json.dumps(report, indent=1))
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def whole_command(words):
    """Wall and process seconds of a command with all its processes, and the largest sum of their resident memory."""
    start, before = time.perf_counter(), os.times()
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    most = 0
    while process.poll() is None:
        most = max(most, resident(process.pid))
        time.sleep(0.5)  # a look at a large process costs it time
    if process.returncode:
        raise RuntimeError(process.stderr.read().decode()[-2000:])
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall": round(time.perf_counter() - start, 2), "seconds": round(used, 2), "GB": round(most / 1e9, 3)}


def resident(process):
    """Bytes of a process and all its descendants; what they share is counted once."""
    total = 0
    with contextlib.suppress(OSError):
        facts = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8")
        total = int(facts.split("Pss:")[1].split()[0]) * 1024
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in (thread / "children").read_text(encoding="utf-8").split():
                total += resident(int(child))
    return total


def equal_share(expected, found):
    """Share of voxels with the same label, over all cases."""
    import SimpleITK as sitk

    equal = voxels = 0
    for path in expected.glob("*.nii.gz"):
        ours, theirs = (sitk.GetArrayFromImage(sitk.ReadImage(str(f / path.name))) for f in (found, expected))
        equal, voxels = equal + int((ours == theirs).sum()), voxels + ours.size
    return equal / voxels


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("stages", "commands", "large", "one"))
    parser.add_argument("words", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="measurements whose name contains this")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.5, 0.8, 0.8), help="mm, z y x (commands)")
    parser.add_argument("--predict", default="--disable_tta", help="further words for the commands")
    args = parser.parse_args()
    if args.what == "commands":
        commands(args)
    elif args.what == "large":
        large(args)
    elif args.what == "one":
        part, name, opponent, folder = args.words
        measure = {"preprocessing": measure_preprocessing, "export": measure_export}[part]
        with contextlib.redirect_stdout(io.StringIO()):
            result = measure(name, opponent, Path(folder))
        print(json.dumps(result))
    else:
        stages(args)


if __name__ == "__main__":
    main()
