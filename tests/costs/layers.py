"""A count of FLOPs that knows nothing of torch's: layer by layer, from shapes."""

import copy
import math

import torch
from torch import nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def layer_flops(network, input_channels, patch_size, active=None):
    """Two FLOPs for each multiply-add of the convolutions and linear layers, in one pass over the meta device.

    `active`: name of a layer -> kernels that count; by default all.
    """
    flops = []
    shadow = copy.deepcopy(network).to("meta").eval()

    def count(name):
        def hook(module, inputs, output):
            if isinstance(module, nn.Linear):
                flops.append(2 * output.numel() * module.in_features)
                return
            shape = module.weight.shape if hasattr(module, "weight") else module.dense_shape
            kernels = (active or {}).get(name, math.prod(shape[:2]))
            # A tap of a transposed convolution is used once for each input voxel, else once for each output voxel.
            where = inputs[0] if isinstance(module, TRANSPOSED) else output
            flops.append(2 * kernels * math.prod(shape[2:]) * where[:, 0].numel())

        return hook

    for name, module in shadow.named_modules():
        if isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
            module.register_forward_hook(count(name))
    with torch.no_grad():
        shadow(torch.empty(1, input_channels, *patch_size, device="meta"))
    return sum(flops)
