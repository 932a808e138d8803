"""Cases to look through in the page: crops of their volumes as NIfTI, small enough to lie in the file."""

import base64
import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb

from nnunet_ext.report.figures.overlay import Classes, grey_window, window_of
from nnunet_ext.report.figures.palette import ERRORS, label_colour

_DENSEST = 10  # voxels in a byte of the page: what has more is not even packed, to save the time
_COARSEST = 8  # voxels that become one; beyond that nothing could be recognised


@dataclass(frozen=True)
class Layer:
    """A panel of the viewer: what lies over the image."""

    title: str
    volume: str  # gzipped NIfTI of uint8, base64
    colours: Sequence[tuple[int, int, int]]  # of the values 1, 2, ...


@dataclass(frozen=True)
class ViewerCase:
    """One case: image and layers on one grid, whose axes are the patient's left to right, back to front, feet to head.

    `window`: grey values of black and white. `limits`: those that the image has been cut to.
    """

    name: str
    image: str
    layers: Sequence[Layer]
    shape: tuple[int, int, int]  # x, y, z
    window: tuple[float, float]
    limits: tuple[float, float]
    sides_known: bool
    start: tuple[float, float, float]  # of the cross, as shares of x, y, z
    remark: str

    @property
    def size(self) -> int:
        """Bytes of the page."""
        return len(self.image) + sum(len(layer.volume) for layer in self.layers)


@dataclass
class Viewer:
    """The cases that fit into `megabytes` of the page, in the order in which they are added."""

    megabytes: float
    cases_expected: int
    cases: list[ViewerCase] = field(default_factory=list)
    legend: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def content(self) -> list[dict[str, Any]]:
        """What the page's script reads."""
        return [asdict(case) for case in self.cases]

    def add(
        self,
        name: str,
        image: np.ndarray | None,
        labels: Mapping[str, np.ndarray],
        errors: Mapping[str, np.ndarray],
        spacing: Sequence[float],
        classes: Classes,
        in_lps: bool,
    ) -> bool:
        """Adds a case; False where it does not fit, even coarsened.

        Args:
            name: of the case.
            image: grey values `[D, H, W]`, or None.
            labels: title of a panel -> label values `[D, H, W]`.
            errors: title of a panel -> `error_map`, `[D, H, W]`.
            spacing: mm along the axes.
            classes: label values -> name.
            in_lps: the axes are feet to head, front to back, right to left; else no side is named.
        """
        allowed = 1e6 * self.megabytes / self.cases_expected
        shown = np.logical_or.reduce([np.isin(v, [n for values in classes for n in values]) for v in labels.values()])
        box = window_of(shown)
        grey = np.zeros(shown.shape, np.uint8) if image is None else image
        window = grey_window(grey, shown)
        coarse = [1, 1, 1]
        while max(coarse) <= _COARSEST:
            cut = tuple(slice(b.start, b.stop, k) for b, k in zip(box, coarse, strict=True))
            steps = [s * k for s, k in zip(spacing, coarse, strict=True)]
            if math.prod(-(-(b.stop - b.start) // k) for b, k in zip(box, coarse, strict=True)) < _DENSEST * allowed:
                case = _case(name, grey[cut], labels, errors, cut, steps, window, classes, in_lps, coarse)
                if case.size <= allowed:
                    self.cases.append(case)
                    self._name_colours(case, labels, errors, cut, classes)
                    return True
            coarse[int(np.argmin(steps))] += 1
        return False

    def _name_colours(self, case: ViewerCase, labels: Any, errors: Any, cut: Any, classes: Classes) -> None:
        present = {int(v) for volume in labels.values() for v in np.unique(volume[cut])}
        for position, (values, name) in enumerate(classes.items()):
            if present & set(values):
                self.legend[name] = _bytes(label_colour(position))
        kinds = {int(v) for volume in errors.values() for v in np.unique(volume[cut])}
        self.legend.update({name: _bytes(colour) for kind, (name, colour) in ERRORS.items() if kind in kinds})


def _case(
    name: str,
    image: np.ndarray,
    labels: Mapping[str, np.ndarray],
    errors: Mapping[str, np.ndarray],
    cut: tuple[slice, ...],
    spacing: Sequence[float],
    window: tuple[float, float],
    classes: Classes,
    in_lps: bool,
    coarse: Sequence[int],
) -> ViewerCase:
    """A case on the grid of `cut`; `image` is cut already, `spacing` that of the grid."""
    width = window[1] - window[0]
    low = max(float(image.min()), window[0] - width)
    high = max(min(float(image.max()), window[1] + width), low + 1e-6)
    grey = np.round(255 * (np.clip(image, low, high) - low) / (high - low)).astype(np.uint8)
    colours = [_bytes(label_colour(position)) for position in range(len(classes))]
    layers = [
        Layer(title, _nifti(_positions(volume[cut], classes), spacing), colours) for title, volume in labels.items()
    ]
    wrong = [_bytes(colour) for _, colour in ERRORS.values()]
    layers += [Layer(title, _nifti(volume[cut], spacing), wrong) for title, volume in errors.items()]
    found = next((v[cut] for v in (*errors.values(), *labels.values()) if v[cut].any()), image)
    where = [int(np.argmax(np.count_nonzero(found, axis=tuple({0, 1, 2} - {axis})))) for axis in range(3)]
    z, y, x = ((at + 0.5) / size for at, size in zip(where, found.shape, strict=True))
    remark = ""
    if max(coarse) > 1:
        kept = " \N{MULTIPLICATION SIGN} ".join(map(str, reversed(coarse)))
        remark = f"To keep the page small, of each {kept} voxels one is shown."
    depth, height, columns = image.shape
    return ViewerCase(
        name=name,
        image=_nifti(grey, spacing, (high - low) / 255, low),
        layers=layers,
        shape=(columns, height, depth),
        window=window,
        limits=(low, high),
        sides_known=in_lps,
        start=(1 - x, 1 - y, z),
        remark=remark,
    )


def _positions(volume: np.ndarray, classes: Classes) -> np.ndarray:
    """1 + the place of each voxel's class in the legend, of the last where regions overlap; 0 for none."""
    positions = np.zeros(volume.shape, np.uint8)
    for position, values in enumerate(classes):
        positions[np.isin(volume, values)] = 1 + position % 255
    return positions


def _nifti(volume: np.ndarray, spacing: Sequence[float], slope: float = 1.0, intercept: float = 0.0) -> str:
    """`[D, H, W]` in LPS as gzipped NIfTI in base64."""
    import nibabel

    x, y, z = (float(step) for step in reversed(spacing))
    # NiiVue turns volumes to RAS: stored so, its places are ours.
    stored = nibabel.Nifti1Image(volume.T[::-1, ::-1].astype(np.uint8), np.diag([x, y, z, 1.0]))
    stored.header.set_slope_inter(slope, intercept)
    return base64.b64encode(gzip.compress(stored.to_bytes(), 6, mtime=0)).decode()


def _bytes(colour: Any) -> tuple[int, int, int]:
    red, green, blue = (round(255 * part) for part in to_rgb(colour))
    return red, green, blue
