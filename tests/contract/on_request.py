"""Tests of minutes that run when everything is asked for; until then they are reported as skipped."""

import os
import warnings

import pytest


def requested(name, old):
    """Whether `nnUNet_ext_<name>=1` is set; the variable's `old` name works too, and says so."""
    if os.environ.get(old) == "1":
        warnings.warn(f"{old} is now called nnUNet_ext_{name}.", stacklevel=2)
        return True
    return os.environ.get(f"nnUNet_ext_{name}") == "1"


THOROUGH = requested("all_methods", "NNUNET_EXT_ALL_METHODS")
thorough = pytest.mark.skipif(not THOROUGH, reason="minutes; nnUNet_ext_all_methods=1 runs it")


class OnRequest:
    """Base of the contracts."""

    def __init_subclass__(cls, on_request=()):
        """`on_request`: names of the tests that wait until everything is asked for."""
        for name in on_request:
            if (test := getattr(cls, name)) is not None:  # a method may have a test of its own instead
                setattr(cls, name, _waiting(test))


def _waiting(test):
    """The same test under its own name, skipped where it was not asked for, without making its fixtures."""

    def waits(self):
        pytest.skip("minutes; nnUNet_ext_all_methods=1 runs it")

    if THOROUGH:
        return test
    waits.__name__, waits.__doc__ = test.__name__, test.__doc__
    waits.pytestmark = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "slow"]
    return waits
