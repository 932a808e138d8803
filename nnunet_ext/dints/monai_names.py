"""Names of weights: ours and those of the reference implementation (MONAI's TopologyInstance and TopologySearch).

With them a checkpoint of the one can be loaded into the other:
`ours.load_state_dict({name: theirs[other] for name, other in monai_names(ours.structure).items()})`
"""

from nnunet_ext.dints.search_space import OPERATIONS, Structure


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
        for position, operation in enumerate(operations):
            kernels = OPERATIONS[structure.dimensions][operation]
            for index in range(len(kernels)):
                part = f"{theirs}.op.ops.{position}.{'conv' if index == 0 else f'conv_{index}'}"
                names[f"{ours}.operations.{operation}.convs.{index}"] = part
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
