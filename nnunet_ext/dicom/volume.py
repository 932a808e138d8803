"""A series as one SimpleITK image, decoded by SimpleITK."""

from typing import Any

import numpy as np

from nnunet_ext.dicom.series import Series
from nnunet_ext.dicom.slices import printable
from nnunet_ext.errors import ConfigurationError


def read_volume(series: Series) -> Any:
    """The volume of a series, whose array is `[Z, Y, X]` float32, in mm and LPS.

    Stored values become those of the modality (Hounsfield units, say) by each slice's own slope and intercept. Slices
    are read one by one as float32: SimpleITK's reader of series takes the type of numbers from the first slice, and
    cuts off what is behind the point in the others where that one's slope is 1, as in PET.

    Raises:
        ConfigurationError: a file cannot be decoded, or is not what `find_series` has read.
    """
    import SimpleITK as sitk

    geometry = series.geometry
    columns, rows, count = geometry.size
    voxels = np.empty((count, rows, columns), np.float32)
    for number, path in enumerate(series.files):
        try:
            image = sitk.ReadImage(str(path), sitk.sitkFloat32, "GDCMImageIO")
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConfigurationError(
                f"{printable(path)} cannot be decoded; it may be cut off or damaged. Copy it again. ({reason})"
            ) from error
        if image.GetSize() != (columns, rows, 1) or image.GetNumberOfComponentsPerPixel() != 1:
            raise ConfigurationError(
                f"{printable(path)} was decoded to the size {image.GetSize()}, expected {(columns, rows, 1)}."
            )
        voxels[number] = sitk.GetArrayViewFromImage(image)[0]
    volume = sitk.GetImageFromArray(voxels)
    volume.SetSpacing(geometry.spacing)
    volume.SetOrigin(geometry.origin)
    volume.SetDirection(geometry.direction)
    return volume
