"""Label maps and images in files: reading with every fault named, and NIfTI bytes with another file's geometry.

NIfTI goes through nibabel, because it reads and keeps headers that SimpleITK refuses (direction cosines that are not
orthonormal, as in some AMOS22 images); everything else through SimpleITK. Arrays are `[X, Y, Z]` as stored.
"""

import gzip
import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NIFTI_ENDINGS = (".nii.gz", ".nii")
# A header's float32 numbers move corners by less than a thousandth of a voxel; half a voxel is a real shift.
TOLERANCE_IN_VOXELS = 0.02


class Unreadable(Exception):
    """A file that cannot be used; the message says why, without the file's name."""


@dataclass(frozen=True)
class Volume:
    """An image or label map.

    Attributes:
        array: `[X, Y, Z]` (or `[X, Y]`), None where only the header was read.
        shape: of the array.
        affine: 4x4, voxel index -> mm in the file's world.
        header: NIfTI header, None for other formats.
    """

    array: np.ndarray | None
    shape: tuple[int, ...]
    affine: np.ndarray
    header: Any

    @property
    def voxels(self) -> np.ndarray:
        """The array of a volume that was read with its voxels."""
        assert self.array is not None
        return self.array

    @property
    def affines(self) -> list[np.ndarray]:
        """All that the header may mean: ITK, which nnU-Net mostly reads with, and nibabel choose differently."""
        if self.header is None:
            return [self.affine]
        affines = [self.header.get_sform(coded=True)[0], self.header.get_qform(coded=True)[0]]
        known = [affine for affine in affines if affine is not None]
        if known:
            return known
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return [self.affine, np.diag([-lengths[0], -lengths[1], lengths[2], 1.0])]  # nibabel's default and ITK's

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size along each array axis, mm."""
        return tuple(float(length) for length in np.linalg.norm(self.affine[:3, :3], axis=0)[: len(self.shape)])


def stem_and_ending(path: Path) -> tuple[str, str]:
    """Name without ending, and the ending; `.nii.gz` is one ending."""
    for ending in NIFTI_ENDINGS:
        if path.name.endswith(ending):
            return path.name.removesuffix(ending), ending
    return path.stem, path.suffix


def is_junk(name: str) -> bool:
    """Hidden files and folders, AppleDouble files, and the folder that macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def nifti_files(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, sorted; nnU-Net's other files and AppleDouble junk are passed over."""
    return sorted(p for p in folder.iterdir() if p.name.endswith(NIFTI_ENDINGS) and p.is_file() and not is_junk(p.name))


def read_volume(path: Path) -> Volume:
    """Reads a file completely; a gzip checksum that does not fit is noticed.

    Raises:
        Unreadable: with the reason.
    """
    return _guarded(lambda: _read_nifti(path) if path.name.endswith(NIFTI_ENDINGS) else _read_with_simpleitk(path))


def read_header(path: Path) -> Volume:
    """Reads a NIfTI file's header only.

    Raises:
        Unreadable: with the reason.
    """
    return _guarded(lambda: _read_nifti_header(path))


def _guarded(read: Any) -> Volume:
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    faults = (OSError, EOFError, ValueError, RuntimeError, zlib.error, struct.error)
    try:
        return read()
    except (*faults, ImageFileError, HeaderDataError, WrapStructError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unreadable(f"cannot be read ({reason[:200]})") from error


def _read_nifti(path: Path) -> Volume:
    import nibabel

    data = path.read_bytes()
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data) if path.name.endswith(".gz") else data)
    array = np.asanyarray(image.dataobj)
    return Volume(array, array.shape, image.affine, image.header)


def _read_nifti_header(path: Path) -> Volume:
    import nibabel

    opened = gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")
    with opened as file:
        start = file.read(348)
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(start + bytes(4)), check=True)
    return Volume(None, tuple(header.get_data_shape()), header.get_best_affine(), header)


def _read_with_simpleitk(path: Path) -> Volume:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    array = sitk.GetArrayFromImage(image).T
    dimensions = image.GetDimension()
    affine = np.eye(4)
    direction = np.asarray(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    n = len(direction)
    affine[:n, :n] = direction * np.asarray(image.GetSpacing())[:n]
    affine[:n, 3] = image.GetOrigin()[:n]
    return Volume(array, array.shape, affine, None)


def encode(array: np.ndarray, like: Any, affine: np.ndarray | None = None) -> bytes:
    """An uncompressed NIfTI file with the geometry fields of the header `like`, bit for bit.

    Args:
        array: `[X, Y, Z]` in the type to store.
        like: NIfTI header that gives qform, sform, voxel size and units.
        affine: if given, replaces the geometry of `like`.
    """
    import nibabel

    header = like.copy().as_byteswapped("<")
    header.extensions.clear()
    for name, value in (("descrip", b""), ("aux_file", b""), ("cal_max", 0), ("cal_min", 0), ("intent_code", 0)):
        header[name] = value
    header["intent_name"] = b""
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_slope_inter(1, 0)
    if affine is not None:
        header.set_zooms(np.linalg.norm(affine[:3, :3], axis=0))
        header.set_qform(affine, code="scanner")
        header.set_sform(affine, code="scanner")
    # With `affine=None` nibabel leaves the geometry of the header alone.
    return nibabel.Nifti1Image(array, None, header).to_bytes()


def compress(data: bytes) -> bytes:
    """The gzip file of `data`; the same bytes every time, because it holds neither time nor name."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=buffer, mtime=0) as file:
        file.write(data)
    return buffer.getvalue()


def label_values(array: np.ndarray) -> tuple[list[int], list[float]]:
    """The whole numbers in a label map, ascending, and the values that are not whole numbers between 0 and 255."""
    flat = array.ravel(order="K")
    if _is_byte_like(flat):
        counts = np.zeros(256, np.int64)
        for start in range(0, flat.size, 2**22):  # bincount works on a copy eight times as large
            counts += np.bincount(flat[start : start + 2**22].astype(np.uint8, copy=False), minlength=256)
        return [int(value) for value in np.flatnonzero(counts)], []
    values = np.unique(flat)
    whole = np.isfinite(values) & (values == np.round(values)) & (values >= 0) & (values <= 255)
    return [int(value) for value in values[whole]], [float(value) for value in values[~whole]]


def _is_byte_like(flat: np.ndarray) -> bool:
    if flat.dtype == np.uint8 or flat.size == 0:
        return True
    if not (flat.min() >= 0 and flat.max() <= 255):
        return False
    return flat.dtype.kind in "iub" or bool((flat == np.rint(flat)).all())


def shift_in_voxels(a: np.ndarray, b: np.ndarray, shape: Sequence[int]) -> float:
    """Largest distance between a corner voxel's positions under two affines, in units of the smallest voxel edge."""
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(len(shape), -1)
    corners = np.vstack([corners, np.zeros((3 - len(shape), corners.shape[1])), np.ones(corners.shape[1])])
    distance = np.linalg.norm(((a - b) @ corners)[:3], axis=0).max()
    edge = min(np.linalg.norm(affine[:3, k]) for affine in (a, b) for k in range(len(shape)))
    return float(distance / edge) if edge > 0 else float("inf")


def is_orthonormal(affine: np.ndarray) -> bool:
    """Whether the voxel axes stand at right angles, as SimpleITK demands."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (lengths > 0).all():
        return False
    directions = affine[:3, :3] / lengths
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() < 1e-4)


def is_identity(affine: np.ndarray) -> bool:
    """Whether a header says nothing of the geometry but 1 mm voxels along the axes, whatever their signs."""
    return bool(np.allclose(np.abs(affine[:3, :3]), np.eye(3)))


def shape_text(shape: Sequence[int]) -> str:
    """`512x512x100`."""
    return "x".join(map(str, shape))
