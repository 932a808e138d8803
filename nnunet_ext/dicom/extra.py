"""Whether the packages of the extra `dicom` are installed."""

from importlib.util import find_spec

from nnunet_ext.errors import ConfigurationError

PACKAGES = ("pydicom", "highdicom")


def check_installed(what: str) -> None:
    """Refuses to start without the packages; `what` needs them.

    Raises:
        ConfigurationError: one is missing; the message has the command that installs it.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f'{what} needs {" and ".join(missing)}, not installed here. Run: pip install "nnunet-ext[dicom]"'
        )
