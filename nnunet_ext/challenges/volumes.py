"""Label maps and images in files: reading with every fault named, and NIfTI bytes with another file's geometry.

NIfTI goes through nibabel, because it reads and keeps headers that SimpleITK refuses (direction cosines that are not
orthonormal, as in some AMOS22 images); everything else through SimpleITK. Arrays are `[X, Y, Z]` as stored.
"""

import gzip
import io
import json
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NIFTI_ENDINGS = (".nii.gz", ".nii")
ITK_ENDINGS = (".mha", ".mhd", ".nrrd")
# A header's float32 numbers move corners by less than a thousandth of a voxel; half a voxel is a real shift.
TOLERANCE_IN_VOXELS = 0.02
# Label maps that were stored with a scale factor come back this near to whole numbers.
TOLERANCE_OF_LABELS = 1e-3
GZIP = b"\x1f\x8b"


class Unreadable(Exception):
    """A file that cannot be used; the message says why, without the file's name."""


@dataclass(frozen=True)
class Volume:
    """An image or label map.

    Attributes:
        array: `[X, Y, Z]` (or `[X, Y]`), None where only the header was read.
        shape: of the array.
        affine: 4x4, voxel index -> mm in the file's world, as nibabel reads it.
        header: NIfTI header, None for other formats.
        itk: the affine as ITK reads it, with which nnU-Net mostly reads; None where ITK refuses the file.
    """

    array: np.ndarray | None
    shape: tuple[int, ...]
    affine: np.ndarray
    header: Any
    itk: np.ndarray | None = None

    @property
    def voxels(self) -> np.ndarray:
        """The array of a volume that was read with its voxels."""
        assert self.array is not None
        return self.array

    @property
    def spacing(self) -> tuple[float, ...]:
        """Voxel size along each array axis, mm: what the header calls so, as ITK takes it, else by the affine."""
        by_affine = np.linalg.norm(self.affine[:3, :3], axis=0)[: len(self.shape)]
        if self.header is not None:
            named = np.abs(np.array(self.header.get_zooms()[: len(self.shape)], float))
            if np.isfinite(named).all() and (named > 0).all():
                return tuple(named.tolist())
        return tuple(by_affine.tolist())


def stem_and_ending(path: Path) -> tuple[str, str]:
    """Name without ending, and the ending; `.nii.gz` is one ending."""
    for ending in NIFTI_ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)], ending
    return path.stem, path.suffix.lower()


def is_junk(name: str) -> bool:
    """Hidden files and folders, AppleDouble files, and the folder that macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def volume_files(folder: Path) -> list[Path]:
    """The volumes of a folder, sorted; nnU-Net's other files and AppleDouble junk are passed over."""
    endings = NIFTI_ENDINGS + ITK_ENDINGS
    return sorted(
        p for p in folder.iterdir() if p.name.lower().endswith(endings) and p.is_file() and not is_junk(p.name)
    )


def is_nifti(path: Path) -> bool:
    """By its name."""
    return path.name.lower().endswith(NIFTI_ENDINGS)


def read_volume(path: Path, *, scaled: bool = True) -> Volume:
    """Reads a file completely; a gzip checksum that does not fit is noticed.

    Args:
        path: the file.
        scaled: with a NIfTI header's scale factor applied, which makes 64-bit numbers of all voxels.

    Raises:
        Unreadable: with the reason.
    """
    return _guarded(lambda: _read_nifti(path, scaled) if is_nifti(path) else _read_with_simpleitk(path))


def read_header(path: Path) -> Volume:
    """Reads a file's header only.

    Raises:
        Unreadable: with the reason.
    """
    return _guarded(lambda: _read_nifti_header(path) if is_nifti(path) else _read_itk_header(path))


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


def _read_nifti(path: Path, scaled: bool) -> Volume:
    data = path.read_bytes()
    if data.startswith(GZIP):  # whatever the name says
        data = gunzip(data)
    image = _nifti_class(data).from_bytes(data)
    slope, inter = image.dataobj.slope, image.dataobj.inter
    if scaled and (slope, inter) != (1, 0):
        array = np.asanyarray(image.dataobj)
    else:  # a view of what was read, not a copy
        kind, offset = image.get_data_dtype().newbyteorder(image.header.endianness), image.dataobj.offset
        if len(data) < offset + kind.itemsize * math.prod(image.shape):
            raise EOFError("it ends before its last voxel")
        array = np.ndarray(image.shape, kind, data, offset, order="F")
        array = array.astype(kind.newbyteorder("="), copy=False)
    if array.dtype.names:
        raise ValueError("its voxels are colours, not numbers")
    return Volume(array, array.shape, image.affine, image.header, _itk_affine(path))


def gunzip(data: bytes) -> bytes:
    """The first member of a gzip file; what follows it, as some tools leave, is passed over.

    Raises:
        OSError, EOFError, zlib.error: damaged or cut off.
    """
    try:
        return gzip.decompress(data)
    except gzip.BadGzipFile as error:
        if "Not a gzipped file" not in str(error):
            raise
    opened = zlib.decompressobj(16 + zlib.MAX_WBITS)
    return opened.decompress(data)


def _nifti_class(data: bytes) -> Any:
    """NIfTI-1 or NIfTI-2, by the size of the header."""
    import nibabel

    two = int.from_bytes(data[:4], "little") == 540 or int.from_bytes(data[:4], "big") == 540
    return nibabel.Nifti2Image if two else nibabel.Nifti1Image


def _read_nifti_header(path: Path) -> Volume:
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        start = file.read(540)
    kind = _nifti_class(start).header_class
    header = kind.from_fileobj(io.BytesIO(start[: kind.sizeof_hdr] + bytes(4)), check=True)
    return Volume(None, tuple(header.get_data_shape()), header.get_best_affine(), header, _itk_affine(path))


def is_plain_nifti(path: Path) -> tuple[bool, bool]:
    """Whether a file is NIfTI-1 under a name that says so, and whether it is compressed."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    named = path.name.lower().endswith(".nii.gz") == packed and is_nifti(path)
    with gzip.open(path, "rb") if packed else path.open("rb") as opened:
        return named and opened.read(4) in ((348).to_bytes(4, "little"), (348).to_bytes(4, "big")), packed


def _itk_affine(path: Path) -> np.ndarray | None:
    """How ITK places a NIfTI file; it takes sform or qform by rules of its own."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:  # directions that are not orthonormal, a name that is not what the file is
        return None
    return _affine_of(reader)


def _affine_of(image: Any) -> np.ndarray:
    """In the NIfTI world, whose first two axes point the other way than ITK's."""
    dimensions = image.GetDimension()
    affine = np.eye(4)
    direction = np.asarray(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    n = len(direction)
    affine[:n, :n] = direction * np.asarray(image.GetSpacing())[:n]
    affine[:n, 3] = image.GetOrigin()[:n]
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _read_with_simpleitk(path: Path) -> Volume:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ValueError("its voxels are colours, not numbers")
    array = sitk.GetArrayFromImage(image).T
    affine = _affine_of(image)
    sidecar = path.with_suffix(".json")
    if path.suffix.lower() in (".tif", ".tiff") and sidecar.is_file():  # nnU-Net keeps the spacing of 3D TIFFs there
        spacing = json.loads(sidecar.read_text(encoding="utf-8")).get("spacing")  # in the order [Z, Y, X]
        affine = np.diag([*(float(step) for step in spacing[::-1]), 1.0])
    return Volume(array, array.shape, affine, None, affine)


def _read_itk_header(path: Path) -> Volume:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return Volume(None, tuple(reader.GetSize()), _affine_of(reader), None, _affine_of(reader))


def encode(array: np.ndarray, like: Any, affine: np.ndarray | None = None) -> bytes:
    """An uncompressed NIfTI file with the geometry fields of the header `like`, bit for bit.

    Args:
        array: `[X, Y, Z]` in the type to store.
        like: NIfTI header that gives qform, sform, voxel size and units; None where the affine gives all.
        affine: if given, replaces the geometry of `like`.
    """
    import nibabel

    if like is None:
        like = nibabel.Nifti1Header()
        like.set_xyzt_units("mm")
    header = nibabel.Nifti1Header.from_header(like, check=False).as_byteswapped("<")
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
    """The whole numbers in a label map, ascending, and the values that are not whole numbers between 0 and 255.

    Numbers as near to whole ones as a scale factor leaves them count as whole.
    """
    flat = array.ravel(order="K")
    if _is_byte_like(flat):
        found: set[int] = set()
        for start in range(0, flat.size, 2**20):
            chunk = flat[start : start + 2**20].astype(np.uint8, copy=False)
            borders = np.flatnonzero(chunk[1:] != chunk[:-1]) + 1  # of the runs of equal values; few in a label map
            found.update([int(chunk[0]), *np.unique(chunk[borders]).tolist()])
        return sorted(found), []
    values = np.unique(flat)
    rounded = np.round(values)
    with np.errstate(invalid="ignore"):
        whole = (
            np.isfinite(values) & (np.abs(values - rounded) <= TOLERANCE_OF_LABELS) & (rounded >= 0) & (rounded <= 255)
        )
    return sorted({int(value) for value in rounded[whole]}), [float(value) for value in values[~whole]]


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


def onto_grid(volume: Volume, grid: Volume) -> Volume | None:
    """A volume with the axes in the order and direction of those of `grid`; None where that is not all that differs."""
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    if not (np.isfinite(volume.affine).all() and np.isfinite(grid.affine).all()):
        return None
    turned = io_orientation(np.linalg.inv(grid.affine) @ volume.affine)
    if np.isnan(turned).any():
        return None
    array = apply_orientation(volume.voxels, turned)
    affine = volume.affine @ inv_ornt_aff(turned, volume.shape)
    if array.shape != grid.shape or not shift_in_voxels(affine, grid.affine, grid.shape) <= TOLERANCE_IN_VOXELS:
        return None
    return Volume(array, array.shape, affine, grid.header, grid.itk)


def is_identity(affine: np.ndarray) -> bool:
    """Whether a header says nothing of the geometry but 1 mm voxels along the axes, whatever their signs."""
    return bool(np.allclose(np.abs(affine[:3, :3]), np.eye(3)))


def shape_text(shape: Sequence[int]) -> str:
    """`512x512x100`."""
    return "x".join(map(str, shape))
