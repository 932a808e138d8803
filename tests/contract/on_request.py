"""Tests of minutes that run when everything is asked for."""

import os

import pytest

THOROUGH = os.environ.get("NNUNET_EXT_ALL_METHODS") == "1"
thorough = pytest.mark.skipif(not THOROUGH, reason="minutes; NNUNET_EXT_ALL_METHODS=1 runs it")
