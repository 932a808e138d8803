"""Writes the folder that a container is built from: Dockerfile, requirements, the model, this package, two scripts."""

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnunet_ext.deployment.model_folder import FOLDER_FILES, ModelFolder, open_model, slim_checkpoint
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_atomically, write_json
from nnunet_ext.weights.checkpoints import read_checkpoint

ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd")

# Image and index of torch's wheels. Those for Linux bring CUDA along; without it an image is several GB smaller.
BASES = {
    "cpu": ("python:3.11-slim", "https://download.pytorch.org/whl/cpu"),
    "cuda": ("python:3.11-slim", ""),
}
DOCKERFILE = """\
# Build: bash build.sh   Try: bash test.sh   Both need Docker or Podman.
FROM {base}
ENV DEBIAN_FRONTEND=noninteractive PYTHONUNBUFFERED=1 PYTHONPATH=/opt/app
ENV nnUNet_raw=/tmp nnUNet_preprocessed=/tmp nnUNet_results=/tmp nnUNet_compile=f
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY requirements.txt /opt/app/
# Where torch's wheels come from; PyTorch's page names the indices for other releases of CUDA.
ARG TORCH_INDEX={index}
RUN pip install --no-cache-dir ${{TORCH_INDEX:+--index-url $TORCH_INDEX}} torch=={torch} \\
 && pip install --no-cache-dir -r /opt/app/requirements.txt
COPY nnunet_ext /opt/app/nnunet_ext
COPY model /opt/app/model
COPY container.json /opt/app/
{end}
"""
END = {
    "grand-challenge": """\
RUN useradd --create-home user
USER user
WORKDIR /home/user
ENTRYPOINT ["python", "-m", "nnunet_ext.containers.entry", "/opt/app/container.json"]""",
    "flare": """\
WORKDIR /workspace
COPY predict.sh /workspace/""",
}
PREDICT = "#!/bin/sh\nexec python -m nnunet_ext.containers.entry /opt/app/container.json\n"
BUILD = """\
#!/bin/bash
# Builds the image and saves it as a file for the upload; further words go to the build, such as
# --build-arg TORCH_INDEX=URL.
set -e
cd "$(dirname "$0")"
docker=$(command -v docker || command -v podman)
"$docker" build --platform linux/amd64 -t {tag} "$@" .
"$docker" save {tag} | gzip > {tag}.tar.gz
"""
TEST = {
    "grand-challenge": """\
#!/bin/bash
# Runs the image without network on test/input/images/SLUG/*.mha and writes test/output.
set -e
cd "$(dirname "$0")"
docker=$(command -v docker || command -v podman)
mkdir -p test/output && chmod 777 test/output
"$docker" run --rm --network none -v "$PWD/test/input:/input:ro" -v "$PWD/test/output:/output" {tag}
""",
    "flare": """\
#!/bin/bash
# Runs the image on test/inputs/*_0000.nii.gz and writes test/outputs.
set -e
cd "$(dirname "$0")"
docker=$(command -v docker || command -v podman)
mkdir -p test/outputs
"$docker" run --rm -v "$PWD/test/inputs:/workspace/inputs" -v "$PWD/test/outputs:/workspace/outputs" {tag} \\
  /bin/bash -c "sh predict.sh"
""",
}


@dataclass(frozen=True)
class Options:
    """What goes into a container.

    Attributes:
        layout: "grand-challenge" or "flare".
        base: "cpu" or "cuda", or the name of an image with Python in it.
        inputs: for grand-challenge the slug of the interface of each channel.
        output: the slug of the label map's interface.
        folds, checkpoint: of the model.
        values: nnU-Net's value -> the challenge's.
        mirroring: nnU-Net's test-time mirroring.
        step_size: of nnU-Net's sliding window.
    """

    layout: str = "grand-challenge"
    base: str = "cpu"
    inputs: tuple[str, ...] = ()
    output: str = "segmentation"
    folds: tuple[str, ...] = ()
    checkpoint: str = "checkpoint_final.pth"
    values: Mapping[int, int] = field(default_factory=dict)
    mirroring: bool = True
    step_size: float = 0.5


def build_folder(model: Path, folder: Path, options: Options) -> str:
    """Writes the folder; returns a summary for people.

    Raises:
        ConfigurationError: no model folder, a fold or checkpoint that is not there, another number of inputs than
            channels, a cascade, or the folder exists.
    """
    if folder.exists():
        raise ConfigurationError(f"{folder} exists already. Choose another place with -o.")
    opened = open_model(model, options.folds, options.checkpoint)
    dataset_json = opened.dataset_json
    if dataset_json.get("file_ending") not in ENDINGS:
        raise ConfigurationError(
            f"The model reads {dataset_json.get('file_ending')} files; volumes only are known here."
        )
    channels = [str(name) for name in dataset_json["channel_names"].values()]
    inputs = options.inputs or (tuple(_slug(name) for name in channels))
    if len(inputs) != len(channels):
        raise ConfigurationError(
            f"The model has {len(channels)} channels ({', '.join(channels)}), found {len(inputs)} --input."
        )
    configuration = str(read_checkpoint(opened.checkpoints[0], lazily=True)["init_args"]["configuration"])
    if opened.is_second_stage(configuration):
        raise ConfigurationError("The model is the second stage of a cascade, which a container cannot predict alone.")
    config = {
        "layout": options.layout,
        "inputs": list(inputs),
        "output": options.output,
        "folds": list(opened.folds),
        "checkpoint": options.checkpoint,
        "values": {str(ours): theirs for ours, theirs in options.values.items()},
        "mirroring": options.mirroring,
        "step_size": options.step_size,
    }
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _write(part, opened, config, options)
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return _summary(folder, config, dataset_json, options)


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "image"


def _write(folder: Path, model: ModelFolder, config: dict, options: Options) -> None:
    import torch

    write_json(folder / "container.json", config)
    (folder / "model").mkdir()
    for name in FOLDER_FILES:
        shutil.copyfile(model.path / name, folder / "model" / name)
    for path in model.checkpoints:
        kept, _ = slim_checkpoint(path)
        target = folder / "model" / path.parent.name / path.name
        target.parent.mkdir()
        write_atomically(target, partial(torch.save, kept))
    _copy_package(folder / "nnunet_ext")
    tag = _slug(folder.name.strip(".").removesuffix(".part"))
    base, index = BASES.get(options.base, (options.base, ""))
    torch_release = _public(version("torch"))
    texts = {
        "Dockerfile": DOCKERFILE.format(base=base, index=index, torch=torch_release, end=END[options.layout]),
        "requirements.txt": requirements(),
        "build.sh": BUILD.format(tag=tag),
        "test.sh": TEST[options.layout].format(tag=tag),
        **({"predict.sh": PREDICT} if options.layout == "flare" else {}),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _public(release: str) -> str:
    """Without what follows a +, which names a build."""
    return release.partition("+")[0]


def requirements() -> str:
    """What the package needs besides torch, in the releases that are installed here."""
    names = [re.split(r"[ <>=!;\[]", line)[0] for line in requires("nnunet-ext") or () if "extra ==" not in line]
    return "".join(f"{name}=={_public(version(name))}\n" for name in names if name != "torch")


def _copy_package(target: Path) -> None:
    """This package as it is installed, without what was compiled."""
    import nnunet_ext

    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(nnunet_ext.__path__[0], target, ignore=ignored)
    for name in ("trainers", "plans"):
        found = find_spec(f"nnunet_ext.{name}")
        if found is not None and not (target / name).is_dir():  # in a checkout they lie beside the package
            shutil.copytree(list(found.submodule_search_locations or ())[0], target / name, ignore=ignored)


def _summary(folder: Path, config: dict[str, Any], dataset_json: dict[str, Any], options: Options) -> str:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    lines = [f"{folder} ({size:.1f} MB), folds {', '.join(config['folds'])}"]
    if options.layout == "grand-challenge":
        for name, slug in zip(dataset_json["channel_names"].values(), config["inputs"], strict=True):
            lines.append(f"  {name}: /input/images/{slug}/*.mha")
        lines.append(f"  label map: /output/images/{config['output']}/*.mha")
    else:
        lines.append("  /workspace/inputs/CASE_0000.nii.gz -> /workspace/outputs/CASE.nii.gz")
    if config["values"]:
        lines.append("  values: " + ", ".join(f"{ours} becomes {theirs}" for ours, theirs in config["values"].items()))
    build, test = (shlex.join(["bash", str(folder / name)]) for name in ("build.sh", "test.sh"))
    lines.append(f"Next: {build}, then {test}")
    return "\n".join(lines)
