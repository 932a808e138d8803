"""Checkpoints are opened without running code of theirs: numbers, texts and paths are data, the rest is named."""

import collections
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.weights.checkpoints import read_checkpoint

DATA = {
    **{
        name: getattr(np, name)(3)
        for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
    **{name: getattr(np, name)(0.5) for name in ("float16", "float32", "float64")},
    "bool": np.bool_(True),
    "text": np.str_("a"),
    "bytes": np.bytes_(b"a"),
    "date": np.datetime64("2026-01-01"),
    "array": np.arange(6, dtype=np.int16).reshape(2, 3),
    "texts": np.array(["a", "bc"]),
    "path": Path("/a/b"),
    "ordered": collections.OrderedDict(a=1),
}


def saved(tmp_path, value):
    path = tmp_path / "checkpoint.pth"
    torch.save({"network_weights": {}, "logging": value}, path)
    return path


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("lazily", [False, True])
def test_plain_values_come_back(name, lazily, tmp_path):
    found = read_checkpoint(saved(tmp_path, DATA[name]), lazily)["logging"]
    assert type(found) is type(DATA[name]) and np.array_equal(found, DATA[name])


class Stranger:
    ran = []

    def __reduce__(self):
        return (Stranger.ran.append, (1,))


@pytest.mark.parametrize("lazily", [False, True])
def test_anything_else_is_refused_by_name_and_not_run(lazily, tmp_path):
    path = saved(tmp_path, Stranger())
    with pytest.raises(ConfigurationError, match=r"could run code\..* It holds a ") as refused:
        read_checkpoint(path, lazily)
    assert Stranger.ran == [] and "weights_only" not in str(refused.value)


def test_what_is_no_checkpoint_is_said(tmp_path):
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ConfigurationError, match="is not an nnU-Net checkpoint: it has no 'network_weights'"):
        read_checkpoint(tmp_path / "list.pth")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_checkpoint(tmp_path / "missing.pth")
