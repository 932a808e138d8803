"""Where the images of a container lie, and where its label maps go."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.errors import ConfigurationError

ENDINGS = (".mha", ".tif", ".tiff", ".nii.gz")  # grand-challenge.org stores the first three


@dataclass(frozen=True)
class Case:
    """A case: its images, one a channel, and the label map to write."""

    images: list[Path]
    output: Path

    @property
    def name(self) -> str:
        """Of the label map, without ending."""
        return self.output.name.removesuffix(".gz").rpartition(".")[0]


def find_cases(config: dict[str, Any], root: Path) -> list[Case]:
    """The cases of a layout below `root`, which is `/` in a container.

    Raises:
        ConfigurationError: there are none, or not the images that the model needs.
    """
    return {"grand-challenge": _grand_challenge, "flare": _flare}[config["layout"]](config, root)


def _grand_challenge(config: dict[str, Any], root: Path) -> list[Case]:
    """One case: /input/images/SLUG/NAME.mha for each channel; /output/images/SLUG/NAME.mha."""
    images = []
    for slug in config["inputs"]:
        folder = root / "input" / "images" / slug
        found = sorted(p for p in folder.glob("*") if p.name.lower().endswith(ENDINGS)) if folder.is_dir() else []
        if len(found) != 1:
            listed = f": {', '.join(path.name for path in found)}" if found else ""
            raise ConfigurationError(f"{folder} must hold one image, found {len(found)}{listed}.")
        images.append(found[0])
    stem = images[0].name.removesuffix(".gz").rpartition(".")[0]
    return [Case(images, root / "output" / "images" / config["output"] / f"{stem}.mha")]


def _flare(config: dict[str, Any], root: Path) -> list[Case]:
    """/workspace/inputs/CASE_0000.nii.gz, ..._0001 for further channels; /workspace/outputs/CASE.nii.gz."""
    folder = root / "workspace" / "inputs"
    first = sorted(folder.glob("*_0000.nii.gz")) if folder.is_dir() else []
    if not first:
        raise ConfigurationError(f"{folder} holds no image: they are named CASE_0000.nii.gz.")
    cases = []
    for path in first:
        case = path.name.removesuffix("_0000.nii.gz")
        images = [folder / f"{case}_{channel:04d}.nii.gz" for channel in range(len(config["inputs"]))]
        missing = [image.name for image in images if not image.is_file()]
        if missing:
            raise ConfigurationError(f"{folder} has no {', '.join(missing)}; the model has {len(images)} channels.")
        cases.append(Case(images, root / "workspace" / "outputs" / f"{case}.nii.gz"))
    return cases
