"""Small labelled phantoms: CT-like abdomens of ellipsoid organs, the same for the same seed. Nothing is downloaded."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_json

LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidneys": 3, "aorta": 4}
AIR, FAT, MUSCLE, BONE = -1000.0, -90.0, 50.0, 600.0  # Hounsfield units
NOISE = 15.0  # standard deviation in Hounsfield units
TEXTURE_LENGTH = 6.0  # mm


@dataclass(frozen=True)
class Ellipsoid:
    """One ellipsoid of the atlas; centre and half axes in mm as `(z, y, x)` from the middle of the body.

    `label` 0 is a structure that nobody segments; `texture` is the standard deviation of its texture.
    """

    label: int
    centre: tuple[float, float, float]
    half_axes: tuple[float, float, float]
    hounsfield: float
    texture: float = 10.0


# Later ones lie over earlier ones. Mirrored left-right, the abdomen is still told apart by size and contrast, because
# nnU-Net trains with mirroring.
ATLAS = (
    Ellipsoid(LABELS["liver"], (14, -14, -56), (66, 56, 52), 80),
    Ellipsoid(LABELS["spleen"], (26, 20, 78), (48, 38, 26), 160),
    Ellipsoid(0, (36, -44, 46), (32, 28, 32), 10, 15),  # stomach
    Ellipsoid(LABELS["kidneys"], (-42, 34, -56), (44, 22, 24), 250),
    Ellipsoid(LABELS["kidneys"], (-36, 36, 54), (46, 22, 24), 250),
    Ellipsoid(0, (0, 72, 0), (400, 18, 22), BONE, 40),  # spine
    Ellipsoid(LABELS["aorta"], (0, 36, 6), (300, 14, 14), 360, 6),
)


def generate_case(
    seed: int, case: int, shape: Sequence[int] = (32, 64, 64)
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """One phantom.

    Args:
        seed, case: decide everything that is random.
        shape: voxels `[D, H, W]`.

    Returns:
        Image `[D, H, W]` int16 in Hounsfield units, labels `[D, H, W]` uint8, spacing `(z, y, x)` in mm. The spacing
        differs from case to case: 5.5 to 7.5 mm between slices and 4.2 to 4.5 mm between pixels at the default shape.
    """
    # Two streams, so that the anatomy does not depend on the grid.
    rng, noise = (np.random.default_rng([seed, case, stream]) for stream in (0, 1))
    in_plane = rng.uniform(4.2, 4.5) * 64 / max(shape[1:])
    spacing = (rng.uniform(5.5, 7.5) * 32 / shape[0], in_plane, in_plane)
    voxels = np.meshgrid(
        *((np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)), indexing="ij"
    )
    middle = rng.normal(0, (4, 6, 6))
    position = np.stack(voxels) - middle.reshape(3, 1, 1, 1)
    image, labels = _body(position, rng.uniform(0.95, 1.05, 2)), np.zeros(tuple(shape), np.uint8)
    unit_texture = _smooth_noise(noise, shape, spacing, TEXTURE_LENGTH)
    image += np.where(image > AIR, 10 * unit_texture, 0)
    for ellipsoid in ATLAS:
        inside = _inside(ellipsoid, position, rng)
        image[inside] = ellipsoid.hounsfield + rng.normal(0, 6) + ellipsoid.texture * unit_texture[inside]
        labels[inside] = ellipsoid.label
    image = _partial_volume(image) + noise.normal(0, NOISE, tuple(shape))
    return np.round(image).clip(-1024, 3000).astype(np.int16), labels, spacing


def _body(position: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Air, a skin of fat, a ring of muscle, fat inside: an elliptic cylinder."""
    radius = np.hypot(position[1] / (100 * scale[0]), position[2] / (128 * scale[1]))
    return np.select([radius > 1, radius > 0.93, radius > 0.84], [AIR, FAT, MUSCLE], FAT)


def _inside(ellipsoid: Ellipsoid, position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Voxels inside the ellipsoid in a random pose: shifted, turned by up to about 15 degrees, scaled by up to 15 %."""
    centre = np.asarray(ellipsoid.centre) + rng.normal(0, 4, 3)
    half_axes = np.asarray(ellipsoid.half_axes) * rng.uniform(0.85, 1.15, 3)
    turned = np.tensordot(_rotation(rng.uniform(-0.26, 0.26, 3)), position - centre.reshape(3, 1, 1, 1), 1)
    return ((turned / half_axes.reshape(3, 1, 1, 1)) ** 2).sum(0) < 1


def _rotation(angles: np.ndarray) -> np.ndarray:
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        matrix = turn @ matrix
    return matrix


def _smooth_noise(
    rng: np.random.Generator, shape: Sequence[int], spacing: Sequence[float], length: float
) -> np.ndarray:
    """A random field `[D, H, W]` of mean 0 and deviation 1, smooth over `length` mm."""
    frequencies = [np.fft.fftfreq(shape[0], spacing[0]), np.fft.fftfreq(shape[1], spacing[1])]
    frequencies.append(np.fft.rfftfreq(shape[2], spacing[2]))
    square = sum(f**2 for f in np.meshgrid(*frequencies, indexing="ij"))
    spectrum = np.fft.rfftn(rng.normal(size=tuple(shape))) * np.exp(-2 * (math.pi * length) ** 2 * square)
    field = np.fft.irfftn(spectrum, tuple(shape), axes=(0, 1, 2))
    return (field - field.mean()) / field.std()


def _partial_volume(image: np.ndarray) -> np.ndarray:
    """Blurs in the plane with the kernel (1, 2, 1)/4, as voxels at an edge hold a bit of both sides."""
    for axis in (1, 2):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        n = image.shape[axis]
        before, after = (padded.take(range(k, k + n), axis) for k in (0, 2))
        image = image / 2 + (before + after) / 4
    return image


def generate_dataset(
    folder: str | os.PathLike,
    training: int = 10,
    test: int = 2,
    shape: Sequence[int] = (32, 64, 64),
    seed: int = 0,
) -> Path:
    """Writes an nnU-Net raw data set with labelled test cases.

    Args:
        folder: becomes `.../DatasetXXX_Name` with imagesTr, labelsTr, imagesTs, labelsTs and dataset.json.
        training, test: number of cases; nnU-Net's five folds need at least 5 for training.
        shape: voxels `[D, H, W]` of every case.
        seed: same seed, same data set.

    Raises:
        ConfigurationError: the folder exists and is not empty, or there are too few cases.
    """
    folder = Path(folder)
    if training < 5 or test < 0:
        raise ConfigurationError(f"A data set needs at least 5 training cases, found {training} (and {test} for test).")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigurationError(f"{folder} is not empty. Give a new folder for the phantoms.")
    for case in range(training + test):
        part = "Tr" if case < training else "Ts"
        image, labels, spacing = generate_case(seed, case, shape)
        _write_image(folder / f"images{part}" / f"phantom_{case:03d}_0000.nii.gz", image, spacing)
        _write_image(folder / f"labels{part}" / f"phantom_{case:03d}.nii.gz", labels, spacing)
    write_json(folder / "dataset.json", _dataset_json(training))
    return folder


def _write_image(path: Path, array: np.ndarray, spacing: Sequence[float]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in reversed(spacing)])
    sitk.WriteImage(image, str(path), useCompression=True)


def _dataset_json(training: int) -> dict[str, Any]:
    return {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": training,
        "file_ending": ".nii.gz",
        "description": "synthetic abdomens of ellipsoid organs, generated by nnunet_ext.demo.phantoms",
    }
