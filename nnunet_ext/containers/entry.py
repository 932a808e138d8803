"""What runs in the container: `python -m nnunet_ext.containers.entry CONFIG [--root DIR]`.

CONFIG is the container.json beside the model. The exit code is 0 where every case has its label map, else 1 and a
sentence on stderr; a label map appears under its name only when it is complete.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_ext.containers.layouts import Case, find_cases
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json


def main(argv: Sequence[str] | None = None) -> int:
    """Predicts all cases; returns the exit code."""
    parser = argparse.ArgumentParser(prog="nnunet_ext.containers.entry", description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path, metavar="CONFIG", help="container.json")
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="for trials outside of a container")
    args = parser.parse_args(argv)
    try:
        config = read_json(args.config)
        cases = find_cases(config, args.root)
        predictor = load_model(config, args.config.parent / "model")
    except (ConfigurationError, OSError, ValueError, RuntimeError) as error:
        print(f"nnunet_ext: {error}", file=sys.stderr)
        return 1
    failed = 0
    for case in cases:
        try:
            predict(predictor, config, case)
            print(f"{case.output} written")
        except Exception as error:  # whatever happens to one case, the others go on
            failed += 1
            print(f"nnunet_ext: {case.name}: {type(error).__name__}: {error}", file=sys.stderr)
    return 1 if failed else 0


def load_model(config: dict[str, Any], model: Path) -> Any:
    """The exported model, ready to predict."""
    from nnunet_ext.discovery.startup import install

    install()
    import torch

    from nnunet_ext.prediction import model as models
    from nnunet_ext.prediction.memory import keep_freed_memory
    from nnunet_ext.prediction.pipeline import How, Predictor

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    folds = tuple(fold if fold == "all" else int(fold) for fold in config["folds"])
    how = How(device, config["step_size"], config["mirroring"], progress=False)
    return Predictor(models.load_model(model, folds, config["checkpoint"]), how)


def predict(predictor: Any, config: dict[str, Any], case: Case) -> None:
    """Writes the label map of a case, on the grid of its first image.

    Raises:
        ConfigurationError: the images do not fit the model, or each other, or cannot be predicted.
    """
    import SimpleITK as sitk

    from nnunet_ext.prediction import pipeline
    from nnunet_ext.prediction.records import Records
    from nnunet_ext.prediction.timing import Timing

    images = [sitk.ReadImage(str(path)) for path in case.images]
    first = images[0]
    if first.GetDimension() != 3 or first.GetNumberOfComponentsPerPixel() != 1:
        raise ConfigurationError(f"{case.images[0].name} is no volume of numbers: {first.GetSize()}")
    for path, image in zip(case.images, images, strict=True):
        if image.GetSize() != first.GetSize():
            raise ConfigurationError(
                f"{path.name} has {image.GetSize()} voxels, {case.images[0].name} {first.GetSize()}"
            )
    ending = predictor.model.ending
    with tempfile.TemporaryDirectory() as work:
        files = [Path(work, f"case_{channel:04d}{ending}") for channel in range(len(images))]
        for image, file in zip(images, files, strict=True):
            sitk.WriteImage(image, str(file))
        output = Path(work, "labels")
        records = Records(output, {})
        records.clear()
        failed = pipeline.predict_cases(
            predictor, [pipeline.Case("case", tuple(files))], records, Timing(), lambda text: None
        )
        if failed:
            raise ConfigurationError(failed["case"])
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(output / f"case{ending}")))
    if labels.shape != first.GetSize()[::-1]:
        raise ConfigurationError(f"the label map has the shape {labels.shape}, its image {first.GetSize()[::-1]}")
    table = np.arange(256, dtype=np.uint8)
    for ours, theirs in config["values"].items():
        table[int(ours)] = theirs
    result = sitk.GetImageFromArray(table[labels.astype(np.uint8)])
    result.CopyInformation(first)
    case.output.parent.mkdir(parents=True, exist_ok=True)
    ending = ".nii.gz" if case.output.name.endswith(".nii.gz") else case.output.suffix
    part = case.output.with_name(f".part{ending}")
    sitk.WriteImage(result, str(part), useCompression=True)
    os.replace(part, case.output)


if __name__ == "__main__":
    sys.exit(main())
