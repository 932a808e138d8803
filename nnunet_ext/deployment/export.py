"""`nnunet_ext export-model`: a model folder without what only training needs, compared, and written whole or not."""

import hashlib
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_ext.deployment.model_folder import FOLDER_FILES, ModelFolder, halved, open_model, place, slim_checkpoint
from nnunet_ext.deployment.onnx_graph import check_onnx, write_onnx, write_sidecar
from nnunet_ext.deployment.verify import compare_label_maps, compare_patches, find_cases, loaded, network_and_patch
from nnunet_ext.discovery.compatibility import versions
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import sha256_of, write_atomically, write_json

RECORD = "export.json"


@dataclass(frozen=True)
class Options:
    """What is exported, and how it is checked.

    Attributes:
        folds, checkpoint: of the model.
        half: store matrices and kernels in float16.
        onnx: add each fold's network in ONNX.
        check: a folder of images, of which the first case, or with `all_cases` each, is predicted with both folders.
        overwrite: replace a file, or a folder that was written by this function.
    """

    folds: tuple[str, ...] = ()
    checkpoint: str = "checkpoint_final.pth"
    half: bool = False
    onnx: bool = False
    check: Path | None = None
    all_cases: bool = False
    overwrite: bool = False


def export_model(model: Path, output: Path, options: Options) -> str:
    """Writes the slim model to a folder, or a ZIP file for `nnUNetv2_install_pretrained_model_from_zip`.

    Returns what people should know of it.

    Raises:
        ConfigurationError: what is asked for cannot be had, or the result is not the same model; nothing was written.
        OSError: as the disk says; nothing was written.
    """
    opened = open_model(model, options.folds, options.checkpoint)
    _check_output(opened, output, options.overwrite)
    if options.onnx:
        check_onnx()
    cases = find_cases(options.check, opened.dataset_json) if options.check is not None else []
    cases = cases if options.all_cases else cases[:1]
    with _work_beside(output) as work:
        slim = work / "model"
        slim.mkdir()
        record = _write_checkpoints(opened, slim, options.half)
        if cases and opened.is_second_stage(record["model"]["configuration"]):
            raise ConfigurationError(
                "The model is the second stage of a cascade, whose label maps need those of the first: leave --check "
                "out. The networks are compared all the same."
            )
        both = (model, slim, opened.folds, options.checkpoint)
        record["checked"] = {
            "logits of each fold on a random patch": compare_patches(*both, exact=not options.half),
            "label maps of cases": compare_label_maps(*both, cases, exact=not options.half) if cases else [],
        }
        if options.onnx:
            record["onnx"] = _write_graphs(opened, slim)
        files = sorted(path for path in slim.rglob("*") if path.is_file())
        record["sha256"] = {path.relative_to(slim).as_posix(): sha256_of(path) for path in files}
        write_json(slim / RECORD, record)
        if _is_zip(output):
            _write_zip(slim, output, record["model"])
        else:
            _move(slim, output, work)
    return _summary(output, record)


def _is_zip(output: Path) -> bool:
    return output.suffix.lower() == ".zip"


def _check_output(model: ModelFolder, output: Path, overwrite: bool) -> None:
    target, source = output.resolve(), model.path.resolve()
    if target == source or target in source.parents or source in target.parents:
        raise ConfigurationError(f"{output} is the model folder, in it or around it. Choose another place with -o.")
    if not output.absolute().parent.is_dir():
        raise ConfigurationError(f"{output} cannot be written: give a place in a folder that exists.")
    if not os.access(output.absolute().parent, os.W_OK):
        raise ConfigurationError(
            f"{output} cannot be written: you may not write into {output.absolute().parent}. Choose another place "
            f"with -o."
        )
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise ConfigurationError(f"{output} exists. Choose another place, or replace it with --overwrite.")
    if output.is_dir() and (_is_zip(output) or not (output / RECORD).is_file()):
        raise ConfigurationError(
            f"{output} is a folder that export-model did not write (it has no {RECORD}): it is not replaced. Choose "
            f"another place with -o."
        )
    if not output.is_dir() and not _is_zip(output):
        raise ConfigurationError(f"{output} is a file, the model becomes a folder: choose another place with -o.")


@contextmanager
def _work_beside(output: Path) -> Iterator[Path]:
    """A folder on the same disk, which is gone afterwards."""
    try:
        work = Path(tempfile.mkdtemp(dir=output.absolute().parent, prefix=f".{output.name}."))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(output)) from error  # the name that the user knows
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_checkpoints(model: ModelFolder, slim: Path, half: bool) -> dict[str, Any]:
    """Writes the folder without record; returns the record's beginning."""
    for name in FOLDER_FILES:
        shutil.copyfile(model.path / name, slim / name)
    left_out: set[str] = set()
    kinds: set[tuple[str, str]] = set()
    tensors: Counter[tuple[str, str, int]] = Counter()
    for path in model.checkpoints:
        content, others = slim_checkpoint(path)
        left_out.update(others)
        kinds.add((str(content["trainer_name"]), str(content["init_args"]["configuration"])))
        if len(kinds) > 1:
            raise ConfigurationError(
                f"The folds are of different trainings: {', '.join(' '.join(kind) for kind in sorted(kinds))}."
            )
        if half:
            content["network_weights"] = halved(content["network_weights"])
        tensors.update(_digests(content["network_weights"]))
        target = slim / path.parent.name / path.name
        target.parent.mkdir()
        write_atomically(target, partial(torch.save, content))
    ((trainer, configuration),) = kinds
    ours = [path.stat().st_size for path in slim.glob("fold_*/*")]
    return {
        "model": {
            "dataset": model.plans.get("dataset_name", "Dataset"),
            "plans": model.plans.get("plans_name", "nnUNetPlans"),
            "trainer": trainer,
            "configuration": configuration,
            "folds": list(model.folds),
            "checkpoint": model.checkpoint,
        },
        "weights": "matrices and kernels in float16, the rest as in the source" if half else "as in the source",
        "left out of the checkpoints": sorted(left_out),
        "bytes of the checkpoints": {
            "source": sum(path.stat().st_size for path in model.checkpoints),
            "here": sum(ours),
            "equal in all folds, in each": _shared(tensors, len(model.folds)),
        },
        "versions": versions(),
    }


def _digests(weights: dict[str, Tensor]) -> Iterator[tuple[str, str, int]]:
    """Name, digest and bytes of each tensor, one that has several names once."""
    seen = set()
    for name, tensor in weights.items():
        if place(tensor) not in seen:
            seen.add(place(tensor))
            values = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            yield name, hashlib.sha256(values.data).hexdigest(), values.nbytes


def _shared(tensors: Counter[tuple[str, str, int]], folds: int) -> int:
    return sum(size for (_, _, size), count in tensors.items() if count == folds) if folds > 1 else 0


def _write_graphs(model: ModelFolder, slim: Path) -> dict[str, Any]:
    found = {}
    (slim / "onnx").mkdir()
    for fold in model.folds:
        predictor = loaded(slim, [fold], model.checkpoint)  # with the weights as they are shipped
        network, x = network_and_patch(predictor)
        path = slim / "onnx" / f"fold_{fold}.onnx"
        found[f"fold_{fold}"] = write_onnx(network, x, path)
        write_sidecar(predictor, fold, x, found[f"fold_{fold}"], path.with_suffix(".json"))
    return found


def _move(slim: Path, output: Path, work: Path) -> None:
    """Gives the folder its name; one that has it stays until then, and comes back if that fails."""
    if not output.exists():
        os.replace(slim, output)
        return
    old = work / "old"
    os.replace(output, old)
    try:
        os.replace(slim, output)
    except BaseException:
        os.replace(old, output)
        raise


def _write_zip(slim: Path, output: Path, model: dict[str, Any]) -> None:
    """The same bytes for the same files: fixed order, times and permissions. Paths as nnU-Net's own export has them."""
    folder = f"{model['dataset']}/{model['trainer']}__{model['plans']}__{model['configuration']}"

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for path in sorted(slim.rglob("*")):
                if path.is_dir():
                    continue
                name = f"{folder}/{path.relative_to(slim).as_posix()}"
                member = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                member.create_system = 3  # Unix, on whatever system this runs
                member.external_attr = 0o644 << 16
                member.compress_type = zipfile.ZIP_DEFLATED
                member.file_size = path.stat().st_size  # which says whether the member needs ZIP64
                with archive.open(member, "w") as target, path.open("rb") as source:
                    shutil.copyfileobj(source, target, 2**20)

    write_atomically(output, write)


def _summary(output: Path, record: dict[str, Any]) -> str:
    sizes, checked = record["bytes of the checkpoints"], record["checked"]
    files = [output] if output.is_file() else [path for path in output.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in files)
    lines = [
        f"{output} ({_mb(total)}), folds {', '.join(record['model']['folds'])}: checkpoints of "
        f"{_mb(sizes['source'])} became {_mb(sizes['here'])}",
        f"  left out: {', '.join(record['left out of the checkpoints']) or 'nothing'}",
    ]
    if shared := sizes["equal in all folds, in each"]:
        lines.append(
            f"  {_mb(shared)} of each fold are equal in all of them; they are stored with each, because nnU-Net's "
            f"commands read a checkpoint alone"
        )
    patches, cases = checked["logits of each fold on a random patch"], checked["label maps of cases"]
    if record["weights"] == "as in the source":
        lines.append("  checked: each fold's logits on a random patch are those of the source, bit for bit")
        if cases:
            lines.append(f"  checked: nnU-Net's label maps of {_cases(len(cases))} are equal")
    else:
        worst = max(patch["relative to range"] for patch in patches)
        lines.append(f"  float16 weights: on a random patch logits differ by up to {worst:.2g} of their range")
        if cases:
            equal = min(case["share of equal voxels"] for case in cases)
            differs = max(case["share of the foreground that differs"] for case in cases)
            lines.append(
                f"  float16 weights: in nnU-Net's label maps of {_cases(len(cases))} at least {100 * equal:.4f} % of "
                f"the voxels are equal, at most {100 * differs:.4f} % of the foreground differ"
            )
    if not cases:
        lines.append("  not checked: label maps of images (--check IMAGES)")
    for fold, found in record.get("onnx", {}).items():
        text = "not compared with torch: onnxruntime is not installed"
        if found is not None:
            text = f"logits in ONNX Runtime differ from torch's by {found['relative to range']:.2g} of their range"
        lines.append(f"  onnx/{fold}.onnx: {text}")
    return "\n".join(lines)


def _cases(number: int) -> str:
    return "1 case" if number == 1 else f"{number} cases"


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
