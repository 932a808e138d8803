"""Which segments a model's label maps hold, by its dataset.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_ext.errors import ConfigurationError


@dataclass(frozen=True)
class Segment:
    """A name, and the values of the label map that belong to it."""

    name: str
    values: tuple[int, ...]


def segments_of(labels: Mapping[str, Any], regions_class_order: Sequence[int] | None = None) -> list[Segment]:
    """One segment a label, or one a region, which may overlap; neither background nor the ignore label.

    A region such as "whole tumor" is several values of the label map, so that its segment is all of them: nnU-Net
    writes value k of `regions_class_order` where region k is the last one that was found.

    Args:
        labels: name -> value, or list of values, as in dataset.json.
        regions_class_order: of dataset.json, where there are regions.

    Raises:
        ConfigurationError: the values that nnU-Net writes do not lie in the regions that they stand for, so that a
            label map does not say which regions were found.
    """
    named = {name: _tuple(value) for name, value in labels.items() if name != "ignore"}
    named = {name: values for name, values in named.items() if set(values) != {0}}
    if regions_class_order is not None and any(len(values) > 1 for values in named.values()):
        for number, (name, written) in enumerate(zip(named, regions_class_order, strict=True)):
            later = list(named)[number + 1 :]
            if written not in named[name] or any(written in named[other] for other in later):
                raise ConfigurationError(
                    f"regions_class_order of dataset.json writes {written} for the region {name}, whose labels are "
                    f"{list(named[name])}: a label map does not say which regions were found. Leave out --dicom-seg."
                )
    return [Segment(name, values) for name, values in named.items()]


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, (list, tuple)) else (int(value),)
