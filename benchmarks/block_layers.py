"""FLOPs and bytes of the convolutions with blocks of connections, in three ways of computing them.

    python benchmarks/block_layers.py --out benchmarks/results/block_layers.json

Counted, not measured: a forward pass of the paper's network with `connection_block=16` at 2x128^3 in float16, by width
and resolution. "dense": as the masked convolution of single kernels, which computes all. "gathered": concatenation with
shift, gather, convolution in groups, by torch. "in place": `nnunet_ext/e2enet/grouped.py`, which computes inputs in
sixteens (executed). Bytes are those of feature maps read and written once an operation; caches are taken to hold what
neighbouring voxels of a tile have in common. GFLOPs and GB are 1e9, FLOPs two per multiply-add.
"""

import argparse
import math
from collections import Counter
from pathlib import Path

import torch
from gpu import CUBE, e2enet, supervised

from nnunet_ext.e2enet.shared_inputs import SharedInputConv3d
from nnunet_ext.files import write_json

BATCH, BYTES, SIXTEEN = 2, 2, 16


def figures(conv, voxels):
    """GFLOPs and GB of one layer over so many voxels of the batch."""
    groups, block, fan_in = conv.values.shape[:3]
    taps, c_in, c_out = math.prod(conv.kernel_size), conv.in_channels, conv.out_channels
    read = groups * fan_in
    padded = -(-fan_in // SIXTEEN) * SIXTEEN
    gflops, gigabytes = 2 * taps * voxels / 1e9, BYTES * voxels / 1e9
    return {
        "dense GFLOPs": c_in * c_out * gflops,
        "gathered GFLOPs": read * block * gflops,
        "in place GFLOPs": groups * padded * block * gflops,
        "dense GB": (2 * c_in + c_in + c_out) * gigabytes,
        "gathered GB": (2 * c_in + 2 * read + read + c_out) * gigabytes,
        "in place GB": (read + c_out) * gigabytes,
    }


def layers_of(sparsity):
    """`(C_in, C_out, size)` -> how many such layers, inputs of a group, figures of one layer; largest maps first."""
    with torch.device("meta"):
        network, x = e2enet(CUBE, connection_block=16, sparsity=sparsity), torch.empty(BATCH, 1, *CUBE)
    count, convs = Counter(), {}

    def note(conv, inputs, output):
        key = (conv.in_channels, conv.out_channels, tuple(output.shape[2:]))
        count[key] += 1
        convs[key] = conv

    for module in network.modules():
        if isinstance(module, SharedInputConv3d):
            module.register_forward_hook(note)
    supervised(network.eval(), False)
    with torch.no_grad():
        network(x)
    keys = sorted(convs, key=lambda key: (-math.prod(key[2]), -key[0]))
    return {k: (count[k], convs[k].values.shape[2], figures(convs[k], BATCH * math.prod(k[2]))) for k in keys}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for sparsity in (0.8, 0.9):
        total = Counter()
        for (c_in, c_out, size), (count, fan_in, of_one) in layers_of(sparsity).items():
            about = {"sparsity": sparsity, "layer": (c_in, c_out), "size": size, "layers": count}
            rows.append({**about, **of_one, "inputs of a group": fan_in})
            values = " ".join(f"{name} {value:.2f}" for name, value in of_one.items())
            print(f"S={sparsity} {c_in}->{c_out} {size[0]}^3 x{count}: {values}, {fan_in} inputs a group")
            total.update({name: count * value for name, value in of_one.items()})
        rows.append({"sparsity": sparsity, "layer": "all", **total})
        print(f"S={sparsity} all:", " ".join(f"{name} {value:.1f}" for name, value in total.items()))
    if args.out:
        write_json(args.out, rows)


if __name__ == "__main__":
    main()
