"""nnunet_ext: efficient and adaptive segmentation methods for unmodified nnU-Net v2.

Imported at every start of Python by the start-up file, so nothing is imported here.
"""

__version__ = "0.1.0"
