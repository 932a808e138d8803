"""Attention on a CPU: torch's fused function against its products and softmax one by one, as timm has both.

    python benchmarks/cpu_attention.py --out benchmarks/results/cpu_attention.json

Six heads of 64 channels, numbers of tokens of ViTs on small and large slices, about 25,000 tokens in all; one thread.
Each figure is the time of the fused function over that of the steps, process time, median of the rounds, in which the
two take turns: forward without gradients, and forward with backward.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from nnunet_ext.discovery.devices import processor
from nnunet_ext.files import write_json


def in_steps(query, key, value):
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(-1) @ value


def seconds(attention, inputs, backward):
    """Process time of one pass."""
    start = time.process_time()
    with torch.set_grad_enabled(backward):
        output = attention(*inputs)
        if backward:
            output.sum().backward()
    return time.process_time() - start


def ratio(inputs, backward, rounds):
    """Fused over in steps."""
    pairs = [
        [seconds(attention, inputs, backward) for attention in (F.scaled_dot_product_attention, in_steps)]
        for _ in range(rounds + 1)  # the first warms up
    ]
    return round(statistics.median(fused / steps for fused, steps in pairs[1:]), 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for dtype in (torch.bfloat16, torch.float32):
        for tokens in (48, 96, 196, 256, 400, 784):
            shape = (25_000 // tokens, 6, tokens, 64)
            inputs = [torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3)]
            forward, step = (ratio(inputs, backward, args.rounds) for backward in (False, True))
            rows.append({"dtype": str(dtype), "tokens": tokens, "forward": forward, "step": step})
            print(rows[-1], flush=True)
    write_json(args.out, {"torch": torch.__version__, "processor": processor(), "rounds": args.rounds, "ratios": rows})


if __name__ == "__main__":
    main()
