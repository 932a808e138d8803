"""nnunet_ext: efficient and adaptive segmentation methods for unmodified nnU-Net v2.

Imported at every start of Python by the start-up file, so nothing is imported here at first.
"""

__version__ = "0.1.0"


def install() -> None:
    """Makes our trainers, planners and resampling known to nnU-Net in this running Python.

    The start-up file does so at every start of Python. A notebook's kernel that was running when the package was
    installed has not read it. Calling this twice does no harm.
    """
    from nnunet_ext.discovery import startup

    startup.install()
