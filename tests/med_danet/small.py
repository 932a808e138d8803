"""Tiny banks and phantoms for the tests of Med-DANet."""

import numpy as np
import torch

TINY_BANK = [
    {"type": "unet", "width": 2},
    {"type": "unet", "width": 4},
    {"type": "transbts", "width": 2, "layers": 1, "embedding": 8, "heads": 2, "hidden": 8},
    {"type": "transbts", "width": 4, "layers": 2, "embedding": 8, "heads": 2, "hidden": 8},
]
TWO = [TINY_BANK[0], TINY_BANK[2]]
OPTIONS = {
    "num_epochs": 3,
    "leave_epoch": 1,
    "bank_epochs": 2,
    "num_iterations_per_epoch": 4,
    "num_val_iterations_per_epoch": 2,
    "save_every": 50,
    "initial_lr": 0.001,
}
PLAIN_UNET = {
    "type": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "kwargs": {
        "n_stages": 2,
        "features_per_stage": [4, 8],
        "conv_op": "torch.nn.Conv2d",
        "kernel_sizes": 3,
        "strides": [1, 2],
        "n_conv_per_stage": 1,
        "n_conv_per_stage_decoder": 1,
        "norm_op": "torch.nn.InstanceNorm2d",
        "nonlin": "torch.nn.ReLU",
    },
    "kw_requires_import": ["conv_op", "norm_op", "nonlin"],
}


def arch_kwargs(strides, candidates=TINY_BANK):
    return {"strides": strides, "candidates": candidates, "position_size": [32, 32]}


class Cases:
    """Two preprocessed cases as nnU-Net's data sets give them: the first smaller than a tile, half of each empty."""

    identifiers = ("a", "b")

    def load_case(self, name):
        rng = np.random.default_rng(ord(name))
        shape = (1, 5, 18, 16) if name == "a" else (1, 14, 20, 16)
        segmentation = rng.integers(0, 3, shape).astype(np.int8)
        segmentation[:, shape[1] // 2 :] = 0
        return rng.normal(size=shape).astype(np.float32), segmentation, None, {}


class Fixed(torch.nn.Module):
    """A decision network that reads its choice off the first pixel of each slice."""

    def __init__(self, choices):
        super().__init__()
        self.choices = choices

    def forward(self, x):
        wanted = x[:, 0, 0, 0].round().long().clamp(0, self.choices - 1)
        return 10 * torch.nn.functional.one_hot(wanted, self.choices).to(x.dtype)


def with_choices(network, x, choices):
    """Makes the network route the slices of `x` (changed in place) as `choices` say."""
    network.decision = Fixed(len(network.candidates) + 1)
    network.decision_trained.fill_(True)
    network.mirror_axes.fill_(False)  # a flip has another first pixel
    network.fold(x)  # slices in the order of the choices
    batch, depth = x.shape[0], (1 if x.ndim == 4 else x.shape[2])
    for number, choice in enumerate(choices):
        where = (number // depth, 0, *((number % depth,) if x.ndim == 5 else ()), 0, 0)
        x[where] = float(choice)
    assert len(choices) == batch * depth
    return network
