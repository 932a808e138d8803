"""Feature maps that a training step keeps, and its time: nnU-Net's U-Net, DiNTS's networks, and its supernet.

    python benchmarks/dints_memory.py --out benchmarks/results/dints_memory.json

Kept maps are counted on torch's meta device for one patch of 96^3 in fp32 (all that autograd saves, parameters aside).
"before" are the same networks with convolutions that keep their input, as they were; gradients are equal. Steps
(forward, backward, SGD) are timed in one process in turns at --patch; the figures are medians over the rounds of the
ratio within a round. Codes of a budget are decoded within it from random logits, in the paper's space. The U-Net is
nnU-Net's plan for 96^3: five stages.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_ext.costs.complexity import kept_elements
from nnunet_ext.dints import cells, network
from nnunet_ext.dints.discretize import decode_in_budget
from nnunet_ext.dints.memory_budget import edge_memory
from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet
from nnunet_ext.discovery.devices import processor
from nnunet_ext.files import write_json

PATCH = (96, 96, 96)
STRIDES = [[1, 1, 1]] + [[2, 2, 2]] * 4


def unet():
    return PlainConvUNet(
        1, 5, [32, 64, 128, 256, 320], nn.Conv3d, 3, STRIDES, 2, 3, 2, conv_bias=True, norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
    )  # fmt: skip


def plain_convolution(conv, before, *inputs):
    return conv(before(*inputs))


def before():
    """Within it, convolutions keep their input."""
    return mock.patch.multiple(cells, lean_convolution=plain_convolution), mock.patch.multiple(
        network, lean_convolution=plain_convolution
    )


class Before(nn.Module):
    """A network with plain convolutions, in forward and backward pass."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        one, other = before()
        with one, other:
            return self.inner(x)


class ArchitectureStep(nn.Module):
    """The supernet with gradients for its logits too."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        for logits in (inner.log_alpha_a, inner.log_alpha_c):
            logits.requires_grad_(True)

    def forward(self, x):
        return self.inner(x)


def code_of(sigma):
    with torch.device("meta"):
        structure = DiNTSSearchNet(1, 3, strides=STRIDES).structure
    rng = np.random.default_rng(0)
    table = np.array(edge_memory(structure, PATCH))
    return decode_in_budget(rng.normal(size=(12, 10)), rng.normal(size=(12, 10, 5)), table, sigma).code


def networks(codes):
    """Name -> function that makes it."""
    made = {
        "U-Net of nnU-Net": unet,
        "published, before": lambda: Before(DiNTSNet(1, 3, strides=STRIDES)),
        "published": lambda: DiNTSNet(1, 3, strides=STRIDES),
        "published, checkpoint_cells": lambda: DiNTSNet(1, 3, strides=STRIDES, checkpoint_cells=True),
    }
    for sigma, code in codes.items():
        made[f"code of sigma {sigma}"] = lambda code=code: DiNTSNet(1, 3, strides=STRIDES, **code.settings())
    return made


def supernets(width):
    def make(**kwargs):
        return DiNTSSearchNet(1, 3, strides=STRIDES, base_features=width, **kwargs)

    made = {}
    for step, wrap in (("weights", lambda net: net), ("architecture", ArchitectureStep)):
        made[f"supernet, {step}, before"] = lambda wrap=wrap: Before(wrap(make()))
        made[f"supernet, {step}"] = lambda wrap=wrap: wrap(make())
        made[f"supernet, {step}, checkpoint_cells"] = lambda wrap=wrap: wrap(make(checkpoint_cells=True))
    return made


def kept_mb(make):
    with torch.device("meta"):
        return 4 * kept_elements(make(), torch.empty(1, 1, *PATCH)) / 1e6


def timed(made, patch, rounds, reference):
    """Median seconds of a step, and of its ratio to that of `reference` within a round."""
    x, y = torch.randn(1, 1, *patch), torch.randint(0, 3, (1, *patch))
    seconds = {name: [] for name in made}
    nets = {}
    for name, make in made.items():
        torch.manual_seed(0)
        net = make()
        nets[name] = net, torch.optim.SGD(net.parameters(), 1e-4, 0.9)
    for turn in range(rounds + 1):  # the first warms up
        for name, (net, sgd) in nets.items():
            start = time.perf_counter()
            sgd.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(net(x), y).backward()
            sgd.step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {
        name: {
            "seconds": statistics.median(times),
            "of_reference": statistics.median(a / b for a, b in zip(times, seconds[reference], strict=True)),
        }
        for name, times in seconds.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patch", type=int, nargs=3, default=[32, 32, 32])
    parser.add_argument("--search-patch", type=int, nargs=3, default=[32, 32, 32])
    parser.add_argument("--search-width", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    codes = {sigma: code_of(sigma) for sigma in (0.2, 0.5, 0.8)}
    result = {"rounds": args.rounds, "threads": args.threads, "torch": torch.__version__,
              "cpu": processor(), "kept_mb_96": {}}  # fmt: skip
    for name, make in {**networks(codes), **supernets(16)}.items():
        result["kept_mb_96"][name] = kept_mb(make)
        print(f"{name}: {result['kept_mb_96'][name]:.0f} MB kept", flush=True)
    result["step"] = {
        "patch": args.patch, "reference": "published, before",
        "of": timed(networks(codes), args.patch, args.rounds, "published, before"),
    }  # fmt: skip
    made = supernets(args.search_width)
    result["search_step"] = {"patch": args.search_patch, "width": args.search_width}
    for step in ("weights", "architecture"):
        of = {name: make for name, make in made.items() if f", {step}" in name}
        result["search_step"][step] = timed(of, args.search_patch, args.rounds, f"supernet, {step}, before")
    print(json.dumps({key: result[key] for key in ("step", "search_step")}, indent=2))
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
