"""E2ENet against a plain formulation of itself and against nnU-Net's PlainConvUNet: inference and training step.

    python benchmarks/e2enet_forward.py --patch 64 64 64 --rounds 7 --out benchmarks/results/e2enet_forward_cpu.json

The plain formulation has the same weights and does what the papers describe step by step: concatenate, pad, roll each
channel group, crop, convolve with the dense weight. A training step is nnU-Net's: forward, backward, gradients
clipped to 12, SGD with Nesterov momentum; E2ENet's has its topology. All opponents run
in one process in turns; the figures are medians over the rounds of the ratio within a round. On CUDA, AMP as nnU-Net
uses it, peak memory and the difference to the CPU's output are measured too. Needs torch and
dynamic-network-architectures, no nnU-Net.
"""

import argparse
import functools
import json
import os
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from torch import nn

from nnunet_ext.discovery.devices import processor
from nnunet_ext.e2enet.blocks import ConvBlock
from nnunet_ext.e2enet.masked import KernelSlots
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.packed.dispatch import SWITCH
from nnunet_ext.e2enet.topology import DynamicTopology


class RolledBlock(nn.Module):
    """A ConvBlock by the book: cat, pad, roll per group, crop, mask times weight."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *sources):
        x = torch.cat(sources, 1)
        if self.block.shifts:
            m = max(shift for _, shift in self.block.shifts)
            padded = F.pad(x, (0, 0, 0, 0, m, m))
            groups = padded.split([size for size, _ in self.block.shifts], 1)
            rolled = [torch.roll(group, shift, 2) for group, (_, shift) in zip(groups, self.block.shifts, strict=True)]
            x = torch.cat(rolled, 1)[:, :, m:-m]
        conv = self.block.conv
        weight = conv.dense_weight() if isinstance(conv, KernelSlots) else conv.weight
        x = F.conv3d(x, weight, conv.bias, conv.stride, conv.padding)
        return F.leaky_relu(self.block.norm(x), 0.01)


def rolled(network):
    """The plain formulation over the same parameters; put on in place around each block."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ConvBlock):
                setattr(module, name, RolledBlock(child))
    return network


def unet(channels, classes, strides):
    levels = len(strides)
    return PlainConvUNet(
        channels, levels, [min(32 * 2**level, 320) for level in range(levels)], nn.Conv3d, 3, strides, 2, classes, 2,
        conv_bias=True, norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip


def set_deep_supervision(network, enabled):
    (network.decoder if isinstance(network, PlainConvUNet) else network).deep_supervision = enabled


def synchronized(device):
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def autocast(device):
    return torch.autocast("cuda") if device.type == "cuda" else torch.autocast("cpu", enabled=False)


def inference(network, x, device):
    set_deep_supervision(network, False)
    network.eval()
    start = synchronized(device)
    with torch.inference_mode(), autocast(device):
        network(x)
    return synchronized(device) - start


def training_step(network, x, device):
    set_deep_supervision(network, True)
    network.train()
    optimizer = optimizer_of(network)
    start = synchronized(device)
    optimizer.zero_grad(set_to_none=True)
    with autocast(device):
        outputs = network(x)
        loss = sum(output.float().square().mean() for output in outputs)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 12)
    optimizer.step()
    return synchronized(device) - start


@functools.cache
def optimizer_of(network):
    """nnU-Net's, at a rate that keeps the weights where they are, and with it what moves E2ENet's masks."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-9, weight_decay=3e-5, momentum=0.99, nesterov=True)
    if isinstance(network, E2ENet) and not any(isinstance(module, RolledBlock) for module in network.modules()):
        DynamicTopology(network, optimizer, total_steps=250_000)
    return optimizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=[64, 64, 64])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--classes", type=int, default=16)
    parser.add_argument("--sparsity", type=float, default=0.8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ[SWITCH] = "0"  # packed prediction has a benchmark of its own
    device = torch.device(args.device)
    strides = [[1, 1, 1]] + [[2, 2, 2]] * 5

    def e2enet():
        torch.manual_seed(0)
        return E2ENet(args.channels, args.classes, strides=strides, sparsity=args.sparsity, deep_supervision=True)

    networks = {
        "e2enet": e2enet().to(device),
        "e2enet, plain formulation": rolled(e2enet()).to(device),
        "nnU-Net PlainConvUNet": unet(args.channels, args.classes, strides).to(device),
    }
    x = torch.randn(args.batch, args.channels, *args.patch, device=device)

    with torch.inference_mode():
        ours, plain = (networks[n].eval()(x)[0] for n in ("e2enet", "e2enet, plain formulation"))
        result = {
            "plain formulation: largest difference / largest logit": float(
                (ours - plain).abs().max() / plain.abs().max()
            )
        }
        if device.type == "cuda":
            reference = e2enet().eval()(x.cpu())[0]
            with autocast(device):
                half = networks["e2enet"](x)[0].float().cpu()
            for name, output in (("cuda fp32", ours.cpu()), ("cuda amp", half)):
                result[f"{name}: ||difference to cpu|| / ||cpu||"] = float(
                    (output - reference).norm() / reference.norm()
                )

    for task in (inference, training_step):
        times = {name: [] for name in networks}
        for _ in range(args.rounds + 1):  # the first round warms up
            for name, network in networks.items():
                times[name].append(task(network, x, device))
        ours = times["e2enet"][1:]
        result[task.__name__] = {
            name: {
                "median_s": round(statistics.median(values[1:]), 4),
                "median ratio: time / e2enet's time": round(
                    statistics.median(v / o for v, o in zip(values[1:], ours, strict=True)), 3
                ),
            }
            for name, values in times.items()
        }
        if device.type == "cuda":
            for name, network in networks.items():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                task(network, x, device)
                result[task.__name__][name]["peak_GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    machine = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {args.threads} threads",
        "machine": processor(),
        "torch": torch.__version__,
    }
    report = {**vars(args), "out": None, "strides": strides, **machine, **result}
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
