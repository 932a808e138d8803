"""Model folders as nnU-Net writes them, made by hand: small, with the real file formats, without any training."""

import json
import re
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import SimpleITK as sitk

DATASET = "Dataset007_Tiny"
SHAPE = (6, 12, 10)
SPACING = (5.0, 1.0, 1.5)
LABELS = {"background": 0, "outer": 1, "inner": 2}
REGIONS = {"background": 0, "whole": [1, 2], "inner": 2, "ignore": 3}
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
ARCH_KWARGS = {"strides": STRIDES, "features_per_stage": [6, 8, 10], "sparsity": 0.6}
E2ENET = {"network_class_name": "nnunet_ext.e2enet.network.E2ENet", "arch_kwargs": ARCH_KWARGS}
STOCK = {
    "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "arch_kwargs": {"n_stages": 3, "strides": STRIDES, "features_per_stage": [4, 6, 8]},
}
COMPLEXITY = {
    "network": "nnunet_ext.e2enet.network.E2ENet",
    "input_channels": 1,
    "patch_size": [8, 16, 16],
    "parameters": {"total": 4596, "trainable": 4500, "active": 2449},
    "true": {"gmacs": 0.007385088, "gflops": 0.014770176},
    "paper": {"gmacs": 12.34567, "gflops": 24.69134},
}


class Model:
    """`<root>/results/<dataset>/<trainer>__<plans>__3d_fullres`, filled by its methods."""

    def __init__(self, root, trainer="nnUNetTrainer", labels=LABELS, architecture=STOCK):
        self.root, self.labels = root, labels
        plans = "E2ENetPlans" if trainer == "E2ENetTrainer" else "nnUNetPlans"
        self.path = root / "results" / DATASET / f"{trainer}__{plans}__3d_fullres"
        self.raw, self.preprocessed = root / "raw" / DATASET, root / "preprocessed" / DATASET
        configuration = {
            "patch_size": [8, 16, 16],
            "batch_size": 2,
            "spacing": list(SPACING),
            "architecture": architecture,
            "nnunet_ext": {"update_every": 3},
        }
        self.plans = {
            "dataset_name": DATASET,
            "plans_name": plans,
            "image_reader_writer": "SimpleITKIO",
            "configurations": {"3d_fullres": configuration},
        }
        self.dataset_json = {
            "channel_names": {"0": "CT"},
            "labels": labels,
            "numTraining": 5,
            "file_ending": ".nii.gz",
        }
        write_json(self.path / "plans.json", self.plans)
        write_json(self.path / "dataset.json", self.dataset_json)

    def fold(self, name, cases=(), epochs=3, finished=True):
        """A trained fold; `cases` is case -> prediction, with references, images and a summary.json as nnU-Net's."""
        folder = self.path / f"fold_{name}"
        folder.mkdir(parents=True)
        (folder / "training_log_2026_9_3_10_00_00.txt").write_text(log_text(epochs))
        debug = {"num_epochs": "3", "torch_version": "2.9.0", "device": "cpu", "cudnn_version": "None"}
        write_json(folder / "debug.json", {**debug, "hostname": "secret-host"})
        (folder / f"checkpoint_{'final' if finished else 'latest'}.pth").write_bytes(b"")
        if cases:
            rows = [self._case(folder, case, *segmentations) for case, segmentations in dict(cases).items()]
            write_json(folder / "validation" / "summary.json", summary(rows))
        return folder

    def _case(self, folder, case, reference, prediction):
        files = [self.preprocessed / "gt_segmentations" / f"{case}.nii.gz", folder / "validation" / f"{case}.nii.gz"]
        write_volume(files[0], reference.astype(np.uint8))
        write_volume(files[1], prediction.astype(np.uint8))
        write_volume(self.raw / "imagesTr" / f"{case}_0000.nii.gz", (reference * 100.0).astype(np.float32))
        return {
            "reference_file": str(files[0]),
            "prediction_file": str(files[1]),
            "metrics": metrics(reference, prediction, self.labels),
        }

    @property
    def environment(self):
        return {"nnUNet_raw": str(self.root / "raw"), "nnUNet_preprocessed": str(self.root / "preprocessed")}


def e2enet_model(root, folds=(0,), **fold):
    """An E2ENet folder with history and complexity."""
    model = Model(root, "E2ENetTrainer", architecture=E2ENET)
    for number, name in enumerate(folds):
        folder = model.fold(name, three_cases(f"f{name}_"), **fold)
        write_json(folder / "complexity.json", COMPLEXITY)
        write_json(folder / "e2enet_history.json", [history_row(epoch, 0.4 + 0.1 * number) for epoch in range(3)])
    return model


def history_row(epoch, forward):
    """One epoch with 4 steps and an update every 3; the forward share grows with the epoch."""
    forward += 0.05 * epoch
    two = {"forward": forward, "up": 1 - forward, "down": 0.0}
    three = {"forward": forward, "up": 0.8 - forward, "down": 0.2}
    steps = 4 * (epoch + 1)
    return {
        "epoch": epoch, "train_loss": 1.0, "val_loss": 1.0, "dice": 0.5, "steps": steps, "updates": steps // 3,
        "drop_rate": 0.3, "active_kernels": 61, "ever_active": 0.4 + 0.1 * epoch,
        "directions": {"1,0": two, "1,1": three, "2,0": two},
    }  # fmt: skip


def three_cases(prefix=""):
    """Case -> (reference, prediction): `good` is perfect, `fair` is shifted by a row, `bad` lacks the inner label."""
    reference = np.zeros(SHAPE, int)
    reference[1:5, 3:9, 2:8] = 1
    reference[2:4, 5:7, 4:6] = 2
    shifted = np.roll(reference, 1, 1)
    without = np.where(reference == 2, 0, reference)
    without[4] = 0
    return {
        f"{prefix}good": (reference, reference),
        f"{prefix}fair": (reference, shifted),
        f"{prefix}bad": (reference, without),
    }


def metrics(reference, prediction, labels):
    """As nnU-Net computes and names them: str(label) or str(tuple of a region); NaN for a class that is nowhere."""
    counted = reference != labels.get("ignore", -1)
    result = {}
    for name, value in labels.items():
        if name in ("background", "ignore"):
            continue
        key = str(tuple(value)) if isinstance(value, list) else str(value)
        true, found = ((np.isin(a, value) & counted) for a in (reference, prediction))
        overlap, size = int((true & found).sum()), int(true.sum() + found.sum())
        result[key] = {
            "Dice": 2 * overlap / size if size else float("nan"),
            "n_ref": int(true.sum()),
            "n_pred": int(found.sum()),
            "FP": int((found & ~true).sum()),
            "FN": int((true & ~found).sum()),
        }
    return result


def summary(rows):
    """The means as nnU-Net takes them: over cases by class, then over classes."""
    mean = {}
    for key in rows[0]["metrics"]:
        values = [row["metrics"][key]["Dice"] for row in rows]
        mean[key] = {"Dice": float("nan") if np.isnan(values).all() else float(np.nanmean(values))}
    foreground = float(np.mean([values["Dice"] for values in mean.values()]))
    return {"foreground_mean": {"Dice": foreground}, "mean": mean, "metric_per_case": rows}


def log_text(epochs, first=0, loss=0.9):
    """The lines of nnU-Net 2.8 for `epochs` epochs that begin with number `first`."""
    lines = ["", "This is the configuration used by this training:", "Configuration name: 3d_fullres", ""]
    for number in range(first, first + epochs):
        dice = f"[np.float32({0.2 + 0.1 * number:.4f}), np.float32(nan)]"
        lines += [
            f"2026-11-20 23:25:{number:02d}.724063: Epoch {number} ",
            f"2026-11-20 23:25:{number:02d}: Current learning rate: 0.00{9 - number % 9} ",
            f"2026-11-20 23:25:{number:02d}.335938: train_loss {loss - 0.1 * number:.4f} ",
            f"2026-11-20 23:25:{number:02d}.336257: val_loss {-0.05 * number:.4f} ",
            f"2026-11-20 23:25:{number:02d}.336376: Pseudo dice {dice} ",
            f"2026-11-20 23:25:{number:02d}.336502: Epoch time: 2.5 s ",
            f"2026-11-20 23:25:{number:02d}.373714: Yayy! New best EMA pseudo Dice: 0.1227 ",
        ]
    return "\n".join(lines) + "\n"


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_volume(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(path))


def store(path, axes):
    """Writes the file anew with its axes as the three letters say; "oblique" turns the patient by 15 degrees."""
    image = sitk.ReadImage(str(path))
    if axes == "oblique":
        turn = np.deg2rad(15)
        image.SetDirection((np.cos(turn), -np.sin(turn), 0, np.sin(turn), np.cos(turn), 0, 0, 0, 1))
    else:
        image = sitk.DICOMOrient(image, axes)
    sitk.WriteImage(image, str(path))


class Page(HTMLParser):
    """What a reader sees: headings, paragraphs, tables by the heading above them, pictures with caption and alt."""

    def __init__(self, html):
        super().__init__()
        self.html = html
        self.headings, self.tables, self.pictures, self.tags = [], {}, [], []
        self._caption = self._text = self._open = ""
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self._text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag != "a":  # its text is that of the cell or caption
            self._open = tag
        if tag == "img":
            self.pictures.append({"caption": self._caption, **attributes})
        elif tag == "tr":
            self.tables.setdefault(self.headings[-1], []).append([])
        elif tag in ("th", "td"):
            self.tables[self.headings[-1]][-1].append("")
        elif tag == "figcaption":
            self._caption = ""
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_data(self, data):
        open_tag = self._open
        if open_tag in ("h1", "h2", "h3") and data.strip():
            self.headings[-1] += data
        elif open_tag in ("th", "td") and data.strip():
            self.tables[self.headings[-1]][-1][-1] += data
        elif open_tag == "figcaption" and data.strip():
            self._caption += data
        if open_tag not in ("style", "title", "script"):
            self._text += data

    def table(self, heading):
        """Row name -> cells."""
        return {row[0]: row[1:] for row in self.tables[heading]}

    def png(self, caption):
        """The bytes of the picture whose caption begins like this."""
        picture = next(p for p in self.pictures if p["caption"].startswith(caption))
        return b64decode(picture["src"].removeprefix("data:image/png;base64,"))
