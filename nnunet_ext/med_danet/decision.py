"""The decision network: ShuffleNetV2 (Ma et al., ECCV 2018) in Med-DANet's size "M" (arXiv 2206.06575, section 3.3)."""

import torch
from torch import Tensor, nn

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.layers.norm import SliceNorm

SHUFFLENET = "shufflenetv2_m"  # the paper's; other names are timm's

STEM = 12
STAGES = ((4, 24), (8, 48), (4, 96))  # units and channels
LAST = 256


class Unit(nn.Module):
    """A unit with stride 1 passes its even channels on; one with stride 2 sends all channels through both branches."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride, middle = stride, c_out // 2
        inner = c_in if stride == 2 else c_in // 2
        # The branches' outputs are concatenated to c_out channels.
        rest = c_out - c_in if stride == 2 else middle
        self.branch = nn.Sequential(
            *_pointwise(inner, middle),
            *_depthwise(middle, stride),
            *_pointwise(middle, rest),
        )
        self.shortcut = nn.Sequential(*_depthwise(c_in, 2), *_pointwise(c_in, c_in)) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, c_in, H, W]` -> `[N, c_out, H / stride, W / stride]`, rounded up."""
        if self.stride == 2:
            return torch.cat([self.shortcut(x), self.branch(x)], 1)
        return torch.cat([x[:, ::2], self.branch(x[:, 1::2])], 1)


def _pointwise(c_in: int, c_out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(c_in, c_out, 1, bias=False), SliceNorm(c_out), nn.ReLU(inplace=True)


def _depthwise(width: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False), SliceNorm(width)


class DecisionNetwork(nn.Module):
    """Slices `[N, C, H, W]` of any size -> logits `[N, choices]`: skip, then the candidates in the bank's order.

    66,220 parameters and 4,083,200 multiply-adds at 128^2 with 4 channels and 5 choices.
    """

    def __init__(self, input_channels: int, choices: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(input_channels, STEM, 3, 2, 1, bias=False),
            SliceNorm(STEM),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        units, c_in = [], STEM
        for count, width in STAGES:
            for number in range(count):
                units.append(Unit(c_in, width, 2 if number == 0 else 1))
                c_in = width
        self.stages = nn.Sequential(*units)
        self.last = nn.Sequential(*_pointwise(c_in, LAST))
        self.classify = nn.Linear(LAST, choices, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        """The reference implementation's: normal with std 1 / fan of one tap, 0.01 for the first and last layer."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01 if name == "stem.0" else 1 / module.weight.shape[1])
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, 1e-4)
        nn.init.normal_(self.classify.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` -> `[N, choices]`."""
        return self.classify(self.last(self.stages(self.stem(x))).mean((2, 3)))


def build_decision(name: str, input_channels: int, choices: int) -> nn.Module:
    """The paper's decision network, or for table 5 a classification network of timm with new weights.

    Raises:
        ConfigurationError: timm has none of this name.
    """
    if name == SHUFFLENET:
        return DecisionNetwork(input_channels, choices)
    import timm  # slow, and for these only

    if not isinstance(name, str) or not timm.is_model(name):
        raise ConfigurationError(
            f"'decision' must be {SHUFFLENET} or a classification network of timm, as mobilenetv2_100 or ghostnet_050, "
            f"found {name!r}."
        )
    return timm.create_model(name, pretrained=False, in_chans=input_channels, num_classes=choices)
