"""Whether the engine would compute what torch computes: it reads convolutions, norms and shifts, and calls no module.

So it takes the network as `E2ENet` builds it, of exactly these types; what was put on or into it is left to torch.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from nnunet_ext.e2enet.blocks import NEGATIVE_SLOPE, ConvBlock, FusionNode
from nnunet_ext.e2enet.masked import MaskedConv3d, MaskedConvTranspose3d
from nnunet_ext.e2enet.shared_inputs import SharedInputConv3d, SharedInputConvTranspose3d

CONVOLUTIONS = (nn.Conv3d, MaskedConv3d, SharedInputConv3d)
UPSAMPLINGS = (nn.ConvTranspose3d, MaskedConvTranspose3d, SharedInputConvTranspose3d)
ONE = (1, 1, 1)


def reason_against(network: Any) -> str | None:
    """The first thing about an `E2ENet` that the engine does not know, in words; None where it knows all."""
    return next(chain(_hooks(network), _parts(network), _tensors(network)), None)


def _hooks(network: Any) -> Iterator[str]:
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        yield "a hook stands on all modules"
    for name, module in network.named_modules():
        if module is network:  # what stands on it runs before and after this
            continue
        if module._forward_hooks or module._forward_pre_hooks:
            yield f"{name} has a hook"
        if "forward" in vars(module):
            yield f"{name} has a forward of its own"


def _tensors(network: Any) -> Iterator[str]:
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if type(tensor) not in (Tensor, nn.Parameter) or type(tensor.data) is not Tensor:
            yield f"{name} is a {type(tensor).__name__}"


def _parts(network: Any) -> Iterator[str]:
    for level, stage in enumerate(network.backbone):
        name = f"backbone.{level}"
        if type(stage) is not nn.Sequential or len(stage) != 2:
            yield f"{name} is not two blocks"
        yield from _block(f"{name}.0", stage[0], tuple(network.strides[level]))
        yield from _block(f"{name}.1", stage[1])
    for stage, nodes in enumerate(network.fusion):
        for level, node in enumerate(nodes):
            name = f"fusion.{stage}.{level}"
            if type(node) is not FusionNode or len(node.convs) not in (1, 2):
                yield f"{name} is a {type(node).__name__}"
            for k, block in enumerate(node.convs):
                yield from _block(f"{name}.convs.{k}", block)
            yield from _up(f"{name}.up", node.up)
            if node.down is not None:
                yield from _down(f"{name}.down", node.down)
    head = network.heads.seg_layers[0]
    if type(head) is not nn.Conv3d or not _plain(head) or head.bias is not None or head.kernel_size != ONE:
        yield "the head is no 1x1x1 convolution without bias"


def _block(name: str, block: Any, stride: tuple[int, ...] = ONE) -> Iterator[str]:
    if type(block) is not ConvBlock or {child for child, _ in block.named_children()} != {"conv", "norm", "act"}:
        yield f"{name} is a {type(block).__name__}, or has further parts"
    conv, norm, act = block.conv, block.norm, block.act
    if type(conv) not in CONVOLUTIONS or not _plain(conv) or conv.stride != stride:
        yield f"{name}.conv is a {type(conv).__name__}, or has groups, a dilation, a stride or padding of its own"
    if conv.kernel_size == (3, 3, 3):
        yield "kernels of 3x3x3 are not packed"
    if sorted(conv.kernel_size) != [1, 3, 3] or conv.kernel_size[block.shift_axis] != 1:
        yield f"{name}.conv has a kernel of {'x'.join(map(str, conv.kernel_size))}"
    if type(norm) is not nn.InstanceNorm3d or not norm.affine or norm.track_running_stats:
        yield f"{name}.norm is a {type(norm).__name__}, or not affine, or with running statistics"
    if type(act) is not nn.LeakyReLU or act.negative_slope != NEGATIVE_SLOPE:
        yield f"{name}.act is a {type(act).__name__}, or has another slope"


def _up(name: str, up: Any) -> Iterator[str]:
    if type(up) not in UPSAMPLINGS or up.kernel_size != up.stride or up.bias is not None or up.groups != 1:
        yield f"{name} is a {type(up).__name__}, or has a bias, groups or a kernel other than its stride"
    elif up.dilation != ONE or any(up.padding) or any(up.output_padding):
        yield f"{name} has a dilation or padding of its own"


def _down(name: str, down: Any) -> Iterator[str]:
    plain = type(down) is nn.MaxPool3d and down.kernel_size == down.stride and down.padding == 0
    if not plain or down.dilation != 1 or down.ceil_mode or down.return_indices:
        yield f"{name} is a {type(down).__name__}, or pools in another way"


def _plain(conv: Any) -> bool:
    padding = tuple(k // 2 for k in conv.kernel_size)
    return conv.groups == 1 and conv.dilation == ONE and conv.padding == padding and conv.padding_mode == "zeros"
