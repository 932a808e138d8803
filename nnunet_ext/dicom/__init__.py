"""DICOM series as images of the prediction, and label maps as DICOM segmentations."""
