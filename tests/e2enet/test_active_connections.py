"""The compressed rows hold what the masked convolutions compute: summing them one by one gives their outputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_ext.e2enet.masked import MaskedConv3d, MaskedConvTranspose3d
from nnunet_ext.e2enet.shared_inputs import SharedInputConv3d, SharedInputConvTranspose3d


def summed_connections(module, x):
    """The output of `module` from its rows alone, one connection after the other."""
    starts, inputs, kernels = module.active_connections()
    transposed = isinstance(module, nn.ConvTranspose3d)
    convolve = F.conv_transpose3d if transposed else F.conv3d
    rows = []
    for output in range(module.out_channels):
        row = torch.zeros_like(module(x)[:, :1])
        for k in range(int(starts[output]), int(starts[output + 1])):
            channel = x[:, inputs[k]].unsqueeze(1)
            row += convolve(channel, kernels[k][None, None], None, module.stride, module.padding)
        rows.append(row if module.bias is None else row + module.bias[output])
    return torch.cat(rows, 1)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (MaskedConv3d, (7, 5, (1, 3, 3), 1, (0, 1, 1))),
        (MaskedConv3d, (5, 7, (3, 3, 3), 1, (1, 1, 1))),
        (MaskedConvTranspose3d, (6, 4, (1, 2, 2), (1, 2, 2))),
    ],
)
@pytest.mark.parametrize("density", [0.05, 0.3, 1.0])
def test_the_rows_are_the_convolution(kind, arguments, density):
    torch.manual_seed(0)
    module = kind(*arguments, density=density)
    mask = torch.zeros(module.kernels, dtype=torch.bool)
    mask[module.kernels - module.count_active() :] = True  # an output (or input) with nothing active, where there is
    module.set_kernels(torch.randn(module.dense_shape), mask.view(module.dense_shape[:2]))
    order = torch.randperm(module.count_active())  # as after updates
    module.index.copy_(module.index[order])
    x = torch.randn(2, module.in_channels, 3, 4, 5)
    starts, inputs, kernels = module.active_connections()
    assert len(starts) == module.out_channels + 1 and int(starts[-1]) == len(inputs) == len(kernels)
    assert len(inputs) == module.count_active()
    for row in range(module.out_channels):
        columns = inputs[starts[row] : starts[row + 1]].tolist()
        assert columns == sorted(set(columns))
    # float32 sums of up to 189 products in another order
    assert torch.allclose(summed_connections(module, x), module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (SharedInputConv3d, (10, 6, (1, 3, 3), 1, (0, 1, 1))),
        (SharedInputConvTranspose3d, (10, 6, (1, 2, 2))),
    ],
)
def test_the_rows_of_blocks_are_the_convolution(kind, arguments):
    torch.manual_seed(0)
    module = kind(*arguments, density=0.3, connection_block=2)
    module.draw_kernels(torch.randn(module.dense_shape))
    for number, inputs in enumerate(module.inputs):  # in any order, as after updates
        order = torch.randperm(len(inputs))
        module.inputs[number] = inputs[order]
        module.values.data[number] = module.values.data[number][:, order]
    assert len(set(map(tuple, module.inputs.tolist()))) == len(module.inputs)  # each block reads others
    x = torch.randn(2, module.in_channels, 3, 4, 5)
    starts, inputs, kernels = module.active_connections()
    assert len(starts) == module.out_channels + 1 and int(starts[-1]) == len(inputs) == module.count_active()
    for row in range(module.out_channels):
        columns = inputs[starts[row] : starts[row + 1]].tolist()
        assert columns == sorted(set(columns))
    assert torch.allclose(summed_connections(module, x), module(x), rtol=1e-4, atol=1e-5)
