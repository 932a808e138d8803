"""Weights of the reference implementation (MONAI's TopologyInstance and TopologySearch) as ours.

MONAI's networks index images [x, y, z], ours [z, y, x] as nnU-Net reads them: kernels are transposed, and two
pseudo-3D operations exchange their places. For data that nnU-Net transposes further (`transpose_forward` in the plans
other than [0, 1, 2]) the weights are those of a network for other axes.
"""

from collections.abc import Mapping

from torch import Tensor

from nnunet_ext.dints.search_space import OPERATIONS, Structure, mirrored

LOGITS = {"log_alpha_a": "dints_space.log_alpha_a", "log_alpha_c": "dints_space.log_alpha_c"}


def monai_names(structure: Structure) -> dict[str, str]:
    """Our parameter -> MONAI's (its `DiNTS` module's state dict); a supernet's logits are not among them."""
    names = {}
    for scale in structure.stems:
        for part, index in (("conv_1", 1), ("norm_1", 2), ("conv_2", 4), ("norm_2", 5)):
            if structure.use_downsample or index < 4:
                names[f"stems.{scale}.{part}"] = f"stem_down.{scale}.mod.{index}"
    for (layer, edge), operations in structure.cells.items():
        ours, theirs = f"cells.{layer}_{edge}", f"dints_space.cell_tree.({layer}, {edge})"
        resample = {"same": (), "up": ("conv", "norm"), "down": ("conv_1", "conv_2", "norm")}[structure.kind(edge)]
        names.update({f"{ours}.resample.{part}": f"{theirs}.preprocess.{part}" for part in resample})
        exchanged = mirrored(structure.dimensions)
        for index, operation in enumerate(operations):
            position = exchanged[index] if len(operations) > 1 else 0  # MONAI counts those that a cell has
            kernels = OPERATIONS[structure.dimensions][operation]
            for number in range(len(kernels)):
                part = f"{theirs}.op.ops.{position}.{'conv' if number == 0 else f'conv_{number}'}"
                names[f"{ours}.operations.{operation}.convs.{number}"] = part
            if kernels:
                names[f"{ours}.operations.{operation}.norm"] = f"{theirs}.op.ops.{position}.norm"
    for scale in structure.ups:
        names[f"head.ups.{scale}.conv"] = f"stem_up.{scale}.mod.1"
        names[f"head.ups.{scale}.norm"] = f"stem_up.{scale}.mod.2"
    names.update({"head.conv": "stem_finals.0.conv", "head.norm": "stem_finals.0.norm"})
    names["head.seg_layers.0"] = "stem_finals.1"
    result = {}
    for ours, theirs in names.items():
        has_bias = ours.endswith(("norm", "norm_1", "norm_2")) or ".seg_layers." in ours
        for part in ("weight", "bias") if has_bias else ("weight",):
            result[f"{ours}.{part}"] = f"{theirs}.{part}"
    return result


def from_monai(structure: Structure, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of our network with the weights of MONAI's `DiNTS` module, for images `[B, C, z, y, x]`.

    The network is one of the code as `read_code` gives it, with `keep_unused=True` if MONAI's is to be taken over
    whole. A supernet's logits come along where they are in `weights`.
    """
    result = {name: _transposed(weights[theirs]) for name, theirs in monai_names(structure).items()}
    for ours, theirs in LOGITS.items():
        if theirs in weights:
            logits = weights[theirs]
            result[ours] = logits[..., list(mirrored(structure.dimensions))] if logits.ndim == 3 else logits
    return result


def _transposed(weight: Tensor) -> Tensor:
    """`[C_out, C_in, *kernel]` with the axes of the kernel reversed; what is no kernel stays."""
    return weight.permute(0, 1, *reversed(range(2, weight.ndim))).contiguous() if weight.ndim > 2 else weight
