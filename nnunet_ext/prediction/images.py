"""Whether an image file is whole, where its reader would not say so: ITK fills what is missing of a NIfTI file."""

import math
import zlib
from pathlib import Path
from typing import Any

from nnunet_ext.errors import ConfigurationError

_GZIP = b"\x1f\x8b"


def check_whole(path: Path) -> None:
    """Refuses a NIfTI file that is cut off; files of other formats are left to their readers.

    Of a compressed file the length in its last four bytes is compared with what the header promises; only where these
    differ, as in a file of several parts, all of it is decompressed.

    Raises:
        ConfigurationError: voxels are missing.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return
    import nibabel

    try:
        image: Any = nibabel.load(path)
        expected = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, zlib.error, ValueError):
        return  # no NIfTI file, or no header: the reader says so
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP
        size = file.seek(0, 2)
        if compressed:
            file.seek(-4, 2)
            size = int.from_bytes(file.read(4), "little")
    if compressed:
        size = expected if size == expected % 2**32 else _decompressed_size(path)
    if size < expected:
        raise ConfigurationError(f"{path} is cut off: it has {size} of {expected} bytes. Copy it again.")


def _decompressed_size(path: Path) -> int:
    """Bytes that can be decompressed, of all parts of the file."""
    size, part = 0, zlib.decompressobj(wbits=31)
    with path.open("rb") as file:
        try:
            while data := file.read(1 << 20):
                while data:
                    size += len(part.decompress(data))
                    data = part.unused_data
                    if part.eof:
                        part = zlib.decompressobj(wbits=31)
        except zlib.error:
            pass  # damaged, or something else follows: what could be read is what there is
    return size
