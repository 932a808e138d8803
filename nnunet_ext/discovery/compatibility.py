"""Which nnU-Net releases this package was tested with."""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from nnunet_ext.errors import ConfigurationError

TESTED_NNUNET = ">=2.8.1,<2.9"


def check_nnunet_version() -> str:
    """The installed version of nnunetv2.

    Raises:
        ConfigurationError: nnunetv2 is missing or outside the tested range.
    """
    try:
        installed = version("nnunetv2")
    except PackageNotFoundError:
        raise ConfigurationError(f'nnunetv2 is not installed. Run: pip install "nnunetv2{TESTED_NNUNET}"') from None
    if not SpecifierSet(TESTED_NNUNET).contains(installed, prereleases=True):
        raise ConfigurationError(
            f"nnunetv2 {installed} is outside the tested range {TESTED_NNUNET}. "
            f'Run: pip install "nnunetv2{TESTED_NNUNET}"'
        )
    return installed


def versions() -> dict[str, str]:
    """Release of each package that decides what a model computes; they are stored with it."""
    return {name: version(name) for name in ("nnunet-ext", "nnunetv2", "torch")}
