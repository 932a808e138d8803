"""What a training step of E2ENet keeps, takes at its peak, and costs, against nnU-Net's PlainConvUNet, on a CPU.

    python benchmarks/e2enet_training.py --patch 64 --rounds 3 --out benchmarks/results/e2enet_training.json
    python benchmarks/e2enet_training.py --summary --out benchmarks/results/e2enet_training.json
    python benchmarks/e2enet_training.py --patch 64 --networks E2ENet s80_blocks s90_blocks "nnU-Net PlainConvUNet" \
        --allocators "freed memory kept" --out benchmarks/results/e2enet_blocks.json   # again with --precision bf16,
                                                                                       # and --patch 20 128 128

A step is nnU-Net's: forward, backward, gradients clipped to 12, SGD with Nesterov momentum; E2ENet's has its topology.
Each figure comes from a process of its own, which makes `--steps` steps, the first to warm up: the processor time of
the quickest, and how much larger the process was at its largest than before the first ("peak", with gradients and
momentum). "kept" is what autograd keeps of the forward pass, by voxel of the patch, counted on torch's meta device.
"freed memory kept" is how our trainers run on a CPU (`prediction/memory.py`), "as the system does" how nnU-Net's do.

Rows are appended to the file as they come; rounds that it has are not run again. `--summary` prints medians, and
medians over the rounds of the ratios within a round. Needs torch and dynamic-network-architectures, no nnU-Net.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from packed_inference import strides_of
from torch import nn

from nnunet_ext.costs.complexity import kept_elements
from nnunet_ext.discovery.devices import processor
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.presets import PRESETS
from nnunet_ext.e2enet.topology import DynamicTopology
from nnunet_ext.prediction.memory import keep_freed_memory

PLAIN, LEAN, UNET = "E2ENet, memory_efficient false", "E2ENet", "nnU-Net PlainConvUNet"
BLOCKS = ("s80_blocks", "s90_blocks")  # presets
NETWORKS = (PLAIN, LEAN, *BLOCKS, UNET)
ALLOCATORS = ("as the system does", "freed memory kept")


def build(name, patch):
    torch.manual_seed(0)
    strides = strides_of(patch)
    if name != UNET:
        options = PRESETS[name] if name in BLOCKS else {"memory_efficient": name == LEAN}
        return E2ENet(1, 16, strides=strides, deep_supervision=True, **options)
    return PlainConvUNet(
        1, 6, [32, 64, 128, 256, 320, 320], nn.Conv3d, 3, strides, 2, 16, 2, conv_bias=True,
        norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True}, deep_supervision=True,
    )  # fmt: skip


def optimizer_of(network):
    """nnU-Net's, at a rate that leaves the weights where they are, and with it what moves E2ENet's topology."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-9, weight_decay=3e-5, momentum=0.99, nesterov=True)
    if isinstance(network, E2ENet):
        DynamicTopology(network, optimizer, total_steps=250_000)
    return optimizer


def step(network, optimizer, x, precision="fp32"):
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        outputs = network(x)
    loss = sum(output.float().square().mean() for output in outputs)
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 12)
    optimizer.step()


def largest_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(name, allocator, patch, steps, precision):
    """One row, in this process."""
    if allocator == ALLOCATORS[1] and not keep_freed_memory():
        raise SystemExit("the C library cannot keep freed memory")
    torch.set_num_threads(1)
    network = build(name, patch)
    kept = kept_elements(network, torch.empty(1, 1, *patch, device="meta")) / math.prod(patch)
    optimizer, x = optimizer_of(network), torch.randn(1, 1, *patch)
    before, seconds = largest_mib(), []
    for _ in range(steps):
        start = time.process_time()
        step(network, optimizer, x, precision)
        seconds.append(time.process_time() - start)
    return {
        "kept by voxel": round(kept, 1),
        "peak MiB": round(largest_mib() - before),
        "seconds": round(min(seconds), 2),
    }


def profile(name, patch):
    """Shares of the operations in a step, freed memory kept."""
    keep_freed_memory()
    torch.set_num_threads(1)
    network = build(name, patch)
    optimizer, x = optimizer_of(network), torch.randn(1, 1, *patch)
    step(network, optimizer, x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        step(network, optimizer, x)
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return {event.key: round(event.self_cpu_time_total / whole, 3) for event in events[:12]}


def shown(patch):
    """As it is in the file: the edge of a cube, or "DxHxW"."""
    return patch[0] if len(set(patch)) == 1 else "x".join(map(str, patch))


def read(path):
    return json.loads(path.read_text()) if path.is_file() else {"machine": {}, "rows": [], "profiles": []}


def write(path, content):
    content["machine"] = {"processor": processor(), "torch": torch.__version__}
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def in_a_process(*words):
    return json.loads(
        subprocess.run([sys.executable, __file__, *map(str, words)], check=True, capture_output=True).stdout
    )


def run_rounds(args):
    cells = list(product(args.networks, args.allocators))
    for number in range(args.rounds):
        for name, allocator in cells:
            key = {"patch": shown(args.patch), "network": name, "allocator": allocator, "round": number}
            if args.precision != "fp32":
                key["precision"] = args.precision
            content = read(args.out)
            if any({"precision": None, **key}.items() <= {"precision": None, **row}.items() for row in content["rows"]):
                continue
            words = ["--measure", name, "--allocators", allocator, "--patch", *args.patch, "--steps", args.steps]
            words += ["--precision", args.precision]
            content["rows"].append({**key, "steps": args.steps, **in_a_process(*words)})
            write(args.out, content)
            print(content["rows"][-1], flush=True)


def summary(rows):
    cells = {}
    for row in rows:
        key = (row["patch"], row["allocator"], row.get("precision", "fp32"), row["network"])
        cells.setdefault(key, {})[row["round"]] = row
    for (patch, allocator, precision, name), by_round in cells.items():
        parts = [f"{patch}, {allocator}, {precision}, {name}:"]
        for figure in ("kept by voxel", "peak MiB", "seconds"):
            parts.append(f"{figure} {statistics.median(row[figure] for row in by_round.values()):g}")
            others = cells.get((patch, allocator, precision, UNET), {})
            ratios = [row[figure] / others[r][figure] for r, row in by_round.items() if r in others]
            if ratios and name != UNET:
                parts.append(f"({statistics.median(ratios):.2f} times the U-Net's)")
        print(*parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs="+", default=[64], help="D H W, or the edge of a cube")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[PLAIN, LEAN, UNET])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16: autocast to bfloat16")
    parser.add_argument("--allocators", nargs="+", choices=ALLOCATORS, default=list(ALLOCATORS))
    parser.add_argument("--measure", choices=NETWORKS, help="one row, to standard output")
    parser.add_argument("--profile", choices=NETWORKS, help="adds the shares of this network's operations")
    parser.add_argument("--summary", action="store_true", help="prints what the file has")
    parser.add_argument("--out", type=Path, default=Path("e2enet_training.json"))
    args = parser.parse_args()
    args.patch = args.patch * 3 if len(args.patch) == 1 else args.patch
    if args.measure:
        print(json.dumps(measure(args.measure, args.allocators[0], args.patch, args.steps, args.precision)))
    elif args.profile:
        content = read(args.out)
        shares = profile(args.profile, args.patch)
        content["profiles"].append({"patch": shown(args.patch), "network": args.profile, "shares": shares})
        write(args.out, content)
    elif args.summary:
        summary(read(args.out)["rows"])
    else:
        run_rounds(args)


if __name__ == "__main__":
    main()
