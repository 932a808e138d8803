"""DICOM series written by pydicom, slice by slice, as scanners write them: of every orientation, with every fault."""

import tempfile
import zlib
from dataclasses import dataclass, field

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
)

ROOT = "1.2.826.0.1.3680043.8.498."  # pydicom's own
AXIAL = (1, 0, 0, 0, 1, 0)
SAGITTAL = (0, 1, 0, 0, 0, -1)
CORONAL = (1, 0, 0, 0, 0, -1)
_A, _B = np.deg2rad(20), np.deg2rad(-35)
OBLIQUE = (  # rows turned in the plane, then about the patient's x axis
    np.cos(_A), np.sin(_A) * np.cos(_B), np.sin(_A) * np.sin(_B),
    -np.sin(_A), np.cos(_A) * np.cos(_B), np.cos(_A) * np.sin(_B),
)  # fmt: skip

ORIENTATIONS = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL, "oblique": OBLIQUE}


def uid(*words):
    """The same UID for the same words."""
    return UID(ROOT + str(zlib.crc32(repr(words).encode())))


@dataclass
class Phantom:
    """A series to write; `stored` is `[Z, Y, X]`, its slices along the normal."""

    stored: np.ndarray
    orientation: tuple = AXIAL
    origin: tuple = (-31.5, 12.25, 100.0)
    spacing: tuple = (2.5, 0.75, 0.9)  # from slice to slice, row to row, column to column
    name: str = "series"
    study: str = "study"
    modality: str = "CT"
    description: str = "Abdomen"
    number: int = 3
    sop: UID = CTImageStorage
    slopes: list = None
    intercepts: list = None
    syntax: UID = ExplicitVRLittleEndian
    more: dict = field(default_factory=dict)

    @property
    def normal(self):
        return np.cross(self.orientation[:3], self.orientation[3:])

    @property
    def values(self):
        """What the stored values mean, `[Z, Y, X]`."""
        if self.slopes is None:
            return self.stored.astype(np.float64)
        slopes, intercepts = (np.array(v, float)[:, None, None] for v in (self.slopes, self.intercepts))
        return self.stored * slopes + intercepts

    def position(self, z):
        return np.array(self.origin) + z * self.spacing[0] * self.normal

    def world(self, z, y, x):
        """The place of a voxel by the formula of the standard (C.7.6.2.1.1), in mm."""
        along_row, along_column = np.array(self.orientation[:3]), np.array(self.orientation[3:])
        return self.position(z) + along_row * self.spacing[2] * x + along_column * self.spacing[1] * y

    def dataset(self, z):
        made = Dataset()
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.SOPClassUID, made.SOPInstanceUID = self.sop, uid(self.study, self.name, z)
        made.StudyInstanceUID, made.SeriesInstanceUID = uid(self.study), uid(self.study, self.name)
        made.FrameOfReferenceUID = uid(self.study, "frame")
        made.PatientName, made.PatientID, made.PatientBirthDate, made.PatientSex = "Test^Phantom", "P1", "", ""
        made.StudyID, made.AccessionNumber, made.ReferringPhysicianName = "1", "", ""
        made.StudyDate, made.StudyTime = "20200101", "120000"
        made.Modality, made.SeriesDescription, made.SeriesNumber = self.modality, self.description, self.number
        made.InstanceNumber, made.PositionReferenceIndicator = 500 - z, ""  # a number that leads astray
        made.ImageType, made.Manufacturer = ["ORIGINAL", "PRIMARY", "AXIAL"], "nobody"
        made.ImagePositionPatient = [round(float(v), 6) for v in self.position(z)]
        made.ImageOrientationPatient = [round(float(v), 8) for v in self.orientation]
        made.PixelSpacing, made.SliceThickness = [self.spacing[1], self.spacing[2]], self.spacing[0]
        frame = self.stored[z]
        made.Rows, made.Columns, made.SamplesPerPixel = *frame.shape, 1
        made.PhotometricInterpretation = "MONOCHROME2"
        made.BitsAllocated = made.BitsStored = 8 * frame.itemsize
        made.HighBit = made.BitsStored - 1
        made.PixelRepresentation = int(frame.dtype.kind == "i")
        if self.slopes is not None:
            made.RescaleSlope, made.RescaleIntercept = str(self.slopes[z]), str(self.intercepts[z])
        made.PixelData = frame.tobytes() + b"\0" * (frame.nbytes % 2)
        made["PixelData"].VR = "OW" if frame.itemsize > 1 else "OB"
        for name, value in self.more.items():
            setattr(made, name, value)
        return made

    def write(self, folder, change=None):
        """Writes all slices, or what `change(z, dataset)` makes of them; files are named against their order."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for z in range(len(self.stored)):
            made = self.dataset(z)
            if self.syntax != ExplicitVRLittleEndian:
                encode(made, self.syntax)
            if change is not None and change(z, made) is False:
                continue
            paths.append(folder / f"IM{len(self.stored) - z:04d}")
            made.file_meta.MediaStorageSOPClassUID = made.get("SOPClassUID", "")
            made.file_meta.MediaStorageSOPInstanceUID = made.get("SOPInstanceUID", uid("none"))
            made.save_as(paths[-1], enforce_file_format=True)
        return paths


def encode(dataset, syntax):
    """By pydicom, or what it cannot encode without further packages by SimpleITK."""
    compressor = {JPEG2000Lossless: "JPEG2000", JPEGLosslessSV1: "JPEG"}.get(syntax)
    if compressor:
        with tempfile.TemporaryDirectory() as folder:
            writer = sitk.ImageFileWriter()
            writer.SetFileName(f"{folder}/one.dcm")
            writer.UseCompressionOn()
            writer.SetCompressor(compressor)
            writer.Execute(sitk.GetImageFromArray(dataset.pixel_array[None]))
            made = pydicom.dcmread(f"{folder}/one.dcm")
            assert made.file_meta.TransferSyntaxUID == syntax
            dataset.PixelData, dataset.file_meta.TransferSyntaxUID = made.PixelData, syntax
            dataset["PixelData"].is_undefined_length = True
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = dataset.pixel_array.byteswap().tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
    elif syntax.is_compressed and not syntax.is_deflated:
        dataset.compress(syntax, generate_instance_uid=False)
    else:
        dataset.file_meta.TransferSyntaxUID = syntax


def noise(shape=(7, 30, 26), dtype=np.int16, seed=0):
    """Stored values that use the type's sign; `[Z, Y, X]`."""
    low, high = (-1000, 3000) if np.dtype(dtype).kind == "i" else (0, 200 if np.dtype(dtype).itemsize == 1 else 4000)
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)
