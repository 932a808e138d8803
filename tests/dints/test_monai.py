"""Our networks and MONAI's compute the same with the same weights, each on the image in its own order of axes.

In float64: kernels along other axes are summed in another order, which InstanceNorm of a few voxels makes large.
"""

import json

import numpy as np
import pytest
import torch
from dints.small import CUBES, random_code
from monai.networks.nets.dints import DiNTS, TopologyInstance, TopologySearch

from nnunet_ext.dints.architecture_code import CVPR_CODE
from nnunet_ext.dints.code_file import CodeFile, read_code
from nnunet_ext.dints.monai_names import LOGITS, from_monai, monai_names
from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet

pytestmark = pytest.mark.filterwarnings("ignore")


def as_monai_reads(x):
    """`[B, C, z, y, x]` -> `[B, C, x, y, z]`."""
    return x.permute(0, 1, 4, 3, 2)


def theirs_of(active, operations, nodes, use_downsample, channels, dimensions=3):
    space = TopologyInstance(
        channel_mul=0.125,
        num_blocks=len(active),
        num_depths=len(nodes[0]),
        use_downsample=use_downsample,
        spatial_dims=dimensions,
        arch_code=[np.array(active), np.array(operations)],
        device="cpu",
    )
    return DiNTS(
        space, channels, 3, spatial_dims=dimensions, use_downsample=use_downsample, node_a=torch.tensor(nodes)
    ).double().eval()  # fmt: skip


@pytest.mark.parametrize(("which", "use_downsample"), [("cvpr", True), (1, True), (2, True), (3, False)])
def test_a_file_and_its_checkpoint_compute_what_monais_network_does(which, use_downsample, tmp_path):
    """A code in MONAI's file, read by us, with MONAI's weights: the image is transposed as nnU-Net would have it."""
    theirs_code = CVPR_CODE.with_axes_reversed() if which == "cvpr" else random_code(seed=which)
    active, operations = theirs_code.active, theirs_code.operations
    torch.save({"code_a": np.array(active), "code_c": np.array(operations)}, tmp_path / "arch_code.pth")
    code = read_code(tmp_path / "arch_code.pth").code
    torch.manual_seed(0)
    theirs = theirs_of(active, operations, theirs_code.nodes(), use_downsample, 2)
    kwargs = {"strides": CUBES, "base_features": 4, "use_downsample": use_downsample, **code.settings()}
    ours = DiNTSNet(2, 3, keep_unused=True, **kwargs).double().eval()
    assert set(monai_names(ours.structure).values()) == set(theirs.state_dict())
    ours.load_state_dict(from_monai(ours.structure, theirs.state_dict()))
    x = torch.randn(1, 2, 16, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        expected = as_monai_reads(theirs(as_monai_reads(x)))
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-9)
        pruned = DiNTSNet(2, 3, **kwargs).double().eval()
        pruned.load_state_dict(from_monai(pruned.structure, theirs.state_dict()))
        torch.testing.assert_close(pruned(x), expected, rtol=0, atol=1e-9)


def test_the_published_code_is_that_of_its_file(tmp_path):
    """One row of `arch_code_cvpr.pth` by hand: in our axes, operations 2 and 4 have exchanged their roles."""
    assert CVPR_CODE.operations[0] == (1, 3, 1, 3, 4, 1, 4, 0, 1, 1)
    published = [[int(digit) for digit in "1313212011"]]
    first = {"arch_code_a": np.array(CVPR_CODE.active[:1]), "arch_code_c": np.array(published)}
    torch.save(first, tmp_path / "first.pth")
    assert read_code(tmp_path / "first.pth").code.operations[0] == CVPR_CODE.operations[0]


def test_in_2d_kernels_are_transposed_too():
    code = random_code(3, layers=3, dimensions=2, seed=4)
    torch.manual_seed(0)
    theirs = theirs_of(code.active, code.operations, code.nodes(), True, 1, dimensions=2)
    ours = DiNTSNet(
        1, 3, strides=[s[1:] for s in CUBES], base_features=4, keep_unused=True, **code.settings()
    ).double().eval()  # fmt: skip
    ours.load_state_dict(from_monai(ours.structure, theirs.state_dict()))
    x = torch.randn(1, 1, 32, 48, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x.mT).mT, rtol=0, atol=1e-9)


@pytest.mark.parametrize("use_downsample", [True, False])
def test_the_supernet_computes_what_monais_does(use_downsample):
    torch.manual_seed(0)
    space = TopologySearch(channel_mul=0.125, num_blocks=3, num_depths=3, use_downsample=use_downsample, device="cpu")
    theirs = DiNTS(space, 2, 3, use_downsample=use_downsample).double().eval()
    ours = (
        DiNTSSearchNet(2, 3, strides=CUBES, num_layers=3, num_depths=3, base_features=4, use_downsample=use_downsample)
        .double()
        .eval()
    )
    assert {*monai_names(ours.structure).values(), *LOGITS.values()} == set(theirs.state_dict())
    with torch.no_grad():
        space.log_alpha_a.normal_()
        space.log_alpha_c.normal_()
        ours.load_state_dict(from_monai(ours.structure, theirs.state_dict()))
        x = torch.randn(1, 2, 16, 32, 48, dtype=torch.float64)
        expected = as_monai_reads(theirs(as_monai_reads(x)))
        # our weights of operations are in float32; outputs are of size 5
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=5e-5)


def test_a_json_file_of_the_papers_axes_means_the_transposed_network(tmp_path):
    content = {**CodeFile(CVPR_CODE.with_axes_reversed()).content(), "axes": "xyz"}
    (tmp_path / "code.json").write_text(json.dumps(content))
    assert read_code(tmp_path / "code.json").code == CVPR_CODE
