"""Tests of minutes that run when everything is asked for."""

import os

import pytest

THOROUGH = os.environ.get("NNUNET_EXT_ALL_METHODS") == "1"
thorough = pytest.mark.skipif(not THOROUGH, reason="minutes; NNUNET_EXT_ALL_METHODS=1 runs it")


class OnRequest:
    """Base of the contracts."""

    def __init_subclass__(cls, on_request=()):
        """`on_request`: names of the tests that are left out unless everything is asked for."""
        if not THOROUGH:
            for name in on_request:
                setattr(cls, name, None)
