"""Reading a label map and all that can be wrong with it: its file, its grid, its values."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from nnunet_ext.challenges.facts import Challenge, Severity, map_values
from nnunet_ext.challenges.volumes import (
    TOLERANCE_IN_VOXELS,
    Unreadable,
    Volume,
    label_values,
    onto_grid,
    read_volume,
    shape_text,
    shift_in_voxels,
)


@dataclass(frozen=True)
class Values:
    """What label maps may hold.

    Attributes:
        allowed: their values; None is any.
        mapping: value in the file -> value that is wanted, where they differ.
        hints: value that is often wrong -> what it means.
        ours, theirs: values that only nnU-Net's, or only the challenge's files hold, where nnU-Net's are expected.
        advice: what to do where all files are the challenge's.
    """

    allowed: tuple[int, ...] | None = None
    mapping: Mapping[int, int] = field(default_factory=dict)
    hints: Mapping[int, str] = field(default_factory=dict)
    ours: frozenset[int] = frozenset()
    theirs: frozenset[int] = frozenset()
    advice: str = ""


def expected_values(challenge: Challenge, kind: Literal["nnunet", "challenge"], advice: str = "") -> Values:
    """What label maps of a challenge hold, with nnU-Net's values or with the challenge's; the latter are wanted."""
    if kind == "challenge":
        return Values(challenge.challenge_values, hints=challenge.value_hints)
    ours, theirs = frozenset(challenge.nnunet_values), frozenset(challenge.challenge_values)
    return Values(challenge.nnunet_values, challenge.to_challenge, {}, ours - theirs, theirs - ours, advice)


@dataclass(frozen=True)
class LabelMap:
    """A label map with the wanted values in uint8, or None where it cannot be used, and what reading it has shown."""

    volume: Volume | None
    values: list[int]
    faults: list[str]
    notes: list[str]


def read_label_map(
    path: Path,
    values: Values,
    grid: Volume | None = None,
    what: str = "its image",
    *,
    dimensions: Collection[int] = (3,),
    turn: bool = False,
    place: Severity = "error",
) -> LabelMap:
    """Reads a label map and checks it.

    Args:
        path: the file.
        values: what it may hold.
        grid: the image whose grid it must have, with or without voxels.
        what: that image, in messages.
        dimensions: how many it may have.
        turn: a label map whose axes lie in another order or direction, but on the same grid, is turned.
        place: "warn" takes a label map of the right shape wherever its header says that it lies.

    Returns:
        Faults and notes are without the file's name.
    """
    try:
        volume = read_with_dimensions(path, dimensions)
    except Unreadable as error:
        return LabelMap(None, [], [str(error)], [])
    found, fractions = label_values(volume.voxels)
    faults, notes = [*value_faults(found, fractions, values)], []
    if volume.voxels.dtype.kind == "f" and not fractions:
        exact = np.array_equal(volume.voxels, np.rint(volume.voxels))
        notes.append(f"labels were floating point numbers, {'all of them whole' if exact else 'rounded to whole ones'}")
    if grid is not None:
        fault = geometry_fault(volume, grid, what)
        turned = onto_grid(volume, grid) if fault and turn else None
        if turned is not None:
            volume = turned
            notes.append("the label map's axes lie in another order or direction than its image's; it was turned")
        elif fault and place == "warn" and volume.shape == grid.shape:
            notes.append(f"the label map {fault}; it is taken as it is")
        elif fault:
            faults.append(fault)
    if faults:
        return LabelMap(None, found, faults, notes)
    array = map_values(volume.voxels, values.mapping)
    return LabelMap(replace(volume, array=array), found, [], notes)


def read_with_dimensions(path: Path, dimensions: Collection[int] = (3,), *, scaled: bool = True) -> Volume:
    """Reads a volume with as many dimensions; see `volumes.read_volume`.

    Raises:
        Unreadable: it cannot be read, or has another number of dimensions.
    """
    volume = read_volume(path, scaled=scaled)
    if len(volume.shape) not in dimensions:
        expected = " or ".join(f"{number}D" for number in dimensions)
        raise Unreadable(f"is {len(volume.shape)}D ({shape_text(volume.shape)}), expected {expected}")
    return volume


def geometry_fault(volume: Volume, reference: Volume, what: str) -> str | None:
    """What is wrong with the grid of a volume compared with that of its reference `what`, or None.

    Headers can be read in two ways, nibabel's and ITK's. Both files must lie in one place when both are read in the
    same way; two that meet only if each is read in its own way are mirror images to every program.
    """
    if volume.shape != reference.shape:
        return f"has shape {shape_text(volume.shape)}, {what} has {shape_text(reference.shape)}"
    ways = [(volume.affine, reference.affine)]
    if volume.itk is not None and reference.itk is not None:
        ways.append((volume.itk, reference.itk))
    if not all(np.isfinite(affine).all() for affine in ways[0]):
        return f"lies at no known place: the affine of it or of {what} holds numbers that are not finite"
    shift = min(shift_in_voxels(ours, theirs, volume.shape) for ours, theirs in ways)
    if not shift <= TOLERANCE_IN_VOXELS:
        return f"lies up to {shift:.3g} voxels away from {what}: its affine differs"
    return None


def value_faults(found: Sequence[int], fractions: Sequence[float], values: Values) -> Iterator[str]:
    """What is wrong with the values of a label map, as `volumes.label_values` found them."""
    if fractions:
        shown = ", ".join(f"{value:.10g}" for value in fractions[:5])
        yield f"holds {shown}{' ...' if len(fractions) > 5 else ''}, not whole numbers from 0 to 255"
    theirs, ours = (values_text(sorted(kind & set(found))) for kind in (values.theirs, values.ours))
    if theirs and ours:
        yield f"holds {ours} of nnU-Net's values and {theirs} of the challenge's: converted in part"
    elif theirs:
        yield f"holds {theirs}, so it has the challenge's values already; if all files do, {values.advice}"
    for value in sorted(set(found) - set(found if values.allowed is None else values.allowed) - values.theirs):
        hint = f": {values.hints[value]}" if value in values.hints else ""
        yield f"holds the value {value}, allowed are {values_text(sorted(values.allowed or ()))}{hint}"


def values_text(values: Sequence[int]) -> str:
    """`0 to 13` or `0, 1, 2, 4`."""
    if not values:
        return ""
    consecutive = list(values) == list(range(values[0], values[-1] + 1)) and len(values) > 4
    return f"{values[0]} to {values[-1]}" if consecutive else ", ".join(map(str, values))
