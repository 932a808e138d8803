"""How far OpenVINO's logits are from torch's, network by network, with random weights and a random image.

    python benchmarks/openvino_agreement.py --patch 32 96 96 --out benchmarks/results/openvino_agreement.json

The networks are those of a plan of six levels: nnU-Net's two with the widths of its planner, ours with their defaults.
"float32 in torch" is torch's own distance from float64, for comparison. No times are taken.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import METHODS
from nnunet_ext.prediction.graph import agreement
from nnunet_ext.prediction.openvino import to_openvino

STRIDES = [[1, 1, 1], *([2, 2, 2] for _ in range(5))]
UNETS = {
    "PlainConvUNet": ("n_conv_per_stage", [2] * 6),
    "ResidualEncoderUNet": ("n_blocks_per_stage", [1, 3, 4, 6, 6, 6]),
}


def unet(name):
    key, blocks = UNETS[name]
    kwargs = {
        "n_stages": 6,
        "features_per_stage": [32, 64, 128, 256, 320, 320],
        "conv_op": "torch.nn.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 6,
        "strides": STRIDES,
        key: blocks,
        "n_conv_per_stage_decoder": [2 if name == "PlainConvUNet" else 1] * 5,
        "conv_bias": True,
        "norm_op": "torch.nn.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    path = f"dynamic_network_architectures.architectures.unet.{name}"
    return get_network_from_plans(path, kwargs, ["conv_op", "norm_op", "nonlin"], 1, 3, deep_supervision=False)


def ours(method, patch):
    kwargs = method.arch_kwargs_at(STRIDES, patch)
    return method.network_class()(1, 3, deep_supervision=False, **kwargs)


class InFloat64(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = copy.deepcopy(network).double()

    def forward(self, x):
        return self.network(x.double())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=[32, 96, 96])
    parser.add_argument("--precisions", nargs="+", default=["f32", "bf16"])
    parser.add_argument("--networks", nargs="+", help="default: all")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    makers = {name: lambda name=name: unet(name) for name in UNETS}
    makers |= {method.title: lambda method=method: ours(method, args.patch) for method in METHODS.values()}
    found = {}
    x = torch.randn(1, 1, *args.patch, generator=torch.Generator().manual_seed(0))
    for name in args.networks or makers:
        torch.manual_seed(0)
        network = makers[name]().eval()
        found[name] = {"float32 in torch": agreement(InFloat64(network), network, x)["relative to range"]}
        for precision in args.precisions:
            try:
                found[name][precision] = agreement(network, to_openvino(network, x, precision=precision), x)
            except ConfigurationError as error:
                found[name][precision] = str(error)
        print(name, json.dumps(found[name], indent=2), flush=True)
    if args.out:
        args.out.write_text(json.dumps({"patch": args.patch, "torch": torch.__version__, "networks": found}, indent=2))


if __name__ == "__main__":
    main()
