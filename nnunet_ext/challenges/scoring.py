"""How predictions are scored: a challenge's way, or by the labels of any nnU-Net data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nnunet_ext.challenges.checks import Values, expected_values
from nnunet_ext.challenges.facts import Challenge, Metrics
from nnunet_ext.challenges.metrics import MEASURES, PLAIN_MEASURES
from nnunet_ext.challenges.parallel import each
from nnunet_ext.challenges.volumes import Unreadable, is_junk, label_values, read_volume
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json

IMAGE_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".png", ".bmp", ".tif", ".tiff")
FIGURE = "_comparison.png"  # drawn by --compare beside the scores
Kind = Literal["nnunet", "challenge"]


@dataclass(frozen=True)
class Scoring:
    """How every case is scored.

    Attributes:
        title: of the challenge, or what else is scored.
        metrics: measures of which structures, with which conventions.
        predictions, labels: what the files may hold.
        ignore: value of labels whose voxels do not count.
        assumed: what was taken for granted of the files, for people.
    """

    title: str
    metrics: Metrics
    predictions: Values = Values()
    labels: Values = Values()
    ignore: int | None = None
    assumed: tuple[str, ...] = ()

    def changed(self, **changes: Any) -> "Scoring":
        """A copy with other conventions, measures or tolerances; None keeps what is there.

        Raises:
            ConfigurationError: unknown measure or structure, tolerance below 0.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        names = {"both_empty", "one_empty_distance", "hausdorff", "surface"} & set(given)
        conventions = replace(self.metrics.conventions, **{name: given.pop(name) for name in names})
        unknown = set(given.get("measures", ())) - set(MEASURES)
        if unknown:
            raise ConfigurationError(f"Unknown measure {', '.join(sorted(unknown))}. Known: {', '.join(MEASURES)}.")
        if "tolerance" in given:
            given["tolerance"] = self._tolerance(given["tolerance"])
        return replace(self, metrics=replace(self.metrics, conventions=conventions, **given))

    def _tolerance(self, words: Sequence[str]) -> float | dict[str, float]:
        """`2` for all structures, `liver=5` for one."""
        old = self.metrics.tolerance
        limits = dict(old) if isinstance(old, Mapping) else dict.fromkeys(self.metrics.structures, old)
        for word in words:
            name, _, number = word.rpartition("=")
            try:
                value = float(number)
            except ValueError:
                value = -1.0
            if not value >= 0 or name and name not in limits:
                raise ConfigurationError(
                    f"--tolerance takes mm of at least 0, or STRUCTURE=MM for one of {', '.join(limits)}; found "
                    f"{word!r}."
                )
            limits.update({name: value} if name else dict.fromkeys(limits, value))
        return limits


def scoring_of(
    challenge: Challenge, labels_folder: Path, predictions: Kind = "nnunet", labels: Kind | None = None
) -> Scoring:
    """The challenge's own scoring.

    Args:
        challenge: whose.
        labels_folder: flat, or the download.
        predictions: whose values the predictions have.
        labels: whose values the labels have; None: the challenge's in a download; in a flat folder what their values
            tell.

    Raises:
        ConfigurationError: the values of a flat folder fit both.
    """
    advice = "see --values and --label-values"
    assumed = []
    if labels is None:
        labels, why = _kind_of(challenge, labels_folder)
        assumed.append(f"labels have {_whose(labels)} values ({why})")
    if challenge.to_challenge:
        assumed.append(f"predictions have {_whose(predictions)} values (--values)")
    return Scoring(
        challenge.title,
        challenge.metrics,
        expected_values(challenge, predictions, advice),
        expected_values(challenge, labels, advice),
        assumed=tuple(assumed) if challenge.to_challenge else (),
    )


def _whose(kind: Kind) -> str:
    return "nnU-Net's" if kind == "nnunet" else "the challenge's"


def _kind_of(challenge: Challenge, folder: Path) -> tuple[Kind, str]:
    paths = images_in(folder)
    if not paths or not challenge.to_challenge:
        return "challenge", "they come from a download" if not paths else "both are the same"
    ours, theirs = set(challenge.nnunet_values), set(challenge.challenge_values)
    for path in paths:
        found = set(_values_in(path))
        if found & (ours - theirs):
            return "nnunet", f"{path.name} tells"
        if found & (theirs - ours):
            return "challenge", f"{path.name} tells"
    raise ConfigurationError(
        f"The labels in {folder} can have nnU-Net's values or the challenge's, and nothing in them tells which. Say "
        f"--label-values nnunet or --label-values challenge."
    )


def plain_scoring(predictions: Path, labels: Path, dataset_json: Path | None, processes: int = 1) -> Scoring:
    """Scoring of nnU-Net folders by the labels or regions of a dataset.json, else by the values in the labels.

    Args:
        predictions, labels: folders; dataset.json is looked for in them and in the folder above `labels`.
        dataset_json: the file, if it is elsewhere.
        processes: worker processes.

    Raises:
        ConfigurationError: `dataset_json` does not exist or has no labels.
    """
    candidates = [predictions / "dataset.json", labels / "dataset.json", labels.resolve().parent / "dataset.json"]
    if dataset_json is not None and not dataset_json.is_file():
        raise ConfigurationError(f"{dataset_json} is not a file.")
    path = dataset_json or next((path for path in candidates if path.is_file()), None)
    if path is None:
        found = each(_values_in, images_in(labels), processes=processes, title="Reading labels")
        values = sorted({value for values in found for value in values} - {0})
        by_value: dict[str, tuple[int, ...]] = {f"label {value}": (value,) for value in values}
        return Scoring("labels by their values", Metrics(by_value, PLAIN_MEASURES))
    content = read_json(path)
    if not isinstance(content.get("labels"), dict):
        raise ConfigurationError(f"{path} has no 'labels'.")
    labels_json: Mapping[str, Any] = content["labels"]
    named = {name: tuple(int(v) for v in np.atleast_1d(value)) for name, value in labels_json.items()}
    ignored = named.pop("ignore", None)
    structures = {name: values for name, values in named.items() if set(values) != {0}}
    known = tuple(sorted({0, *(value for values in structures.values() for value in values)}))
    return Scoring(
        f"labels of {path}",
        Metrics(structures, PLAIN_MEASURES),
        Values(known),
        Values((*known, *(ignored or ()))),
        ignored[0] if ignored else None,
    )


def _values_in(path: Path) -> list[int]:
    try:
        return label_values(read_volume(path).voxels)[0]
    except Unreadable as error:
        raise ConfigurationError(f"{path}: {error}") from error


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder, without figures that we have drawn there."""
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder.")
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.lower().endswith(IMAGE_ENDINGS)
        and path.is_file()
        and not is_junk(path.name)
        and not path.name.endswith(FIGURE)
    )
