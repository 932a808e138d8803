"""What can be wrong with a label map: its grid, its values."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from nnunet_ext.challenges.volumes import (
    TOLERANCE_IN_VOXELS,
    Unreadable,
    Volume,
    read_volume,
    shape_text,
    shift_in_voxels,
)


def read_3d(path: Path) -> Volume:
    """Reads a volume with three dimensions.

    Raises:
        Unreadable: it cannot be read, or has another number of dimensions.
    """
    volume = read_volume(path)
    if len(volume.shape) != 3:
        raise Unreadable(f"is {len(volume.shape)}D ({shape_text(volume.shape)}), expected 3D")
    return volume


def geometry_fault(volume: Volume, reference: Volume, what: str) -> str | None:
    """What is wrong with the grid of a volume compared with that of its reference `what`, or None."""
    if volume.shape != reference.shape:
        return f"has shape {shape_text(volume.shape)}, {what} has {shape_text(reference.shape)}"
    pairs = [(a, b) for a in volume.affines for b in reference.affines]
    shift = min(shift_in_voxels(a, b, volume.shape) for a, b in pairs)
    if shift > TOLERANCE_IN_VOXELS:
        return f"lies up to {shift:.3g} voxels away from {what}: its affine differs"
    return None


def value_faults(
    values: Sequence[int], fractions: Sequence[float], allowed: Collection[int], hints: Mapping[int, str]
) -> Iterator[str]:
    """What is wrong with the values of a label map, as `volumes.label_values` found them."""
    if fractions:
        shown = ", ".join(f"{value:g}" for value in fractions[:5])
        yield f"holds {shown}{' ...' if len(fractions) > 5 else ''}, not whole numbers from 0 to 255"
    for value in sorted(set(values) - set(allowed)):
        hint = f": {hints[value]}" if value in hints else ""
        yield f"holds the value {value}, allowed are {values_text(sorted(allowed))}{hint}"


def values_text(values: Sequence[int]) -> str:
    """`0 to 13` or `0, 1, 2, 4`."""
    consecutive = list(values) == list(range(values[0], values[-1] + 1)) and len(values) > 4
    return f"{values[0]} to {values[-1]}" if consecutive else ", ".join(map(str, values))
