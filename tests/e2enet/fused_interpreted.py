"""Run by `test_fused.py` in Triton's interpreter: a network's logits fused and plain, and single concatenations."""

import json
import os
import sys
from pathlib import Path

os.environ.update(TRITON_INTERPRET="1", nnUNet_ext_packed="0")

import torch
import torch.nn.functional as F

from nnunet_ext.e2enet import fused
from nnunet_ext.e2enet.depth_shift import channel_shifts, shifted_concat
from nnunet_ext.e2enet.network import E2ENet


def concatenations():
    """Largest relative differences by type: odd sizes, one source of three pending, every axis, shifts up to two."""
    worst = {}
    for dtype in (torch.float32, torch.float16):
        differences = []
        for axis, shift_size in ((0, 1), (1, 2), (2, 1), (0, 0)):
            torch.manual_seed(axis)
            z, other = (torch.randn(2, count, 3, 5, 77).to(dtype) for count in (5, 4))
            norm = torch.nn.InstanceNorm3d(5, affine=True)
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)
            shifts = channel_shifts(13, shift_size)
            plain = F.leaky_relu(norm(z.float()), 0.01).to(dtype)
            pending = fused.Pending(z, norm, 0.01)
            found = fused.concatenate([other, pending, other], shifts, axis)
            expected = shifted_concat([other, plain, other], shifts, axis)
            assert found.dtype == dtype and not found[expected == 0].any()
            differences.append(float((found - expected).abs().max() / expected.abs().max()))
            differences.append(float((pending.written - plain).abs().max() / plain.abs().max()))
        worst[str(dtype)] = max(differences)
    return worst


def networks():
    """Largest relative difference of the logits by network, and how many writes made them."""
    written = []
    write = fused.Pending.write

    def counting(self, *args):
        written.append(args)
        write(self, *args)

    fused.Pending.write = counting
    found = {}
    for name, settings in {"sparse": {}, "blocks": {"connection_block": 4}, "no shift": {"shift_size": 0}}.items():
        torch.manual_seed(0)
        strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
        network = E2ENet(1, 3, strides=strides, base_features=6, **settings).eval()
        x = torch.randn(1, 1, 5, 9, 11)
        logits = {}
        for value in ("0", "1"):
            written.clear()
            os.environ["nnUNet_ext_fused"] = value
            logits[value] = network(x)
        found[name] = len(written), float((logits["0"] - logits["1"]).abs().max() / logits["0"].abs().max())
    return found


with torch.no_grad():
    Path(sys.argv[1]).write_text(json.dumps({"concatenations": concatenations(), "networks": networks()}))
