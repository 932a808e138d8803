"""Our networks and MONAI's compute the same with the same weights."""

import numpy as np
import pytest
import torch
from dints.small import CUBES, random_code
from monai.networks.nets.dints import DiNTS, TopologyInstance, TopologySearch

from nnunet_ext.dints.architecture_code import CVPR_CODE
from nnunet_ext.dints.monai_names import monai_names
from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet

pytestmark = pytest.mark.filterwarnings("ignore")


def theirs_of(code, use_downsample, channels):
    space = TopologyInstance(
        channel_mul=0.125,
        num_blocks=code.num_layers,
        num_depths=code.depth,
        use_downsample=use_downsample,
        arch_code=[np.array(code.active), np.array(code.operations)],
        device="cpu",
    )
    return DiNTS(space, channels, 3, use_downsample=use_downsample, node_a=torch.tensor(code.nodes())).eval()


def load(ours, theirs):
    names = monai_names(ours.structure)
    weights = theirs.state_dict()
    logits = {"dints_space.log_alpha_a", "dints_space.log_alpha_c"}
    assert set(names.values()) == set(weights) - logits
    ours.load_state_dict({name: weights[other] for name, other in names.items()}, strict=not logits & set(weights))


@pytest.mark.parametrize(("which", "use_downsample"), [("cvpr", True), (1, True), (2, True), (3, False)])
def test_a_discrete_network_computes_what_monais_does(which, use_downsample):
    code = CVPR_CODE if which == "cvpr" else random_code(seed=which)
    torch.manual_seed(0)
    theirs = theirs_of(code, use_downsample, 2)
    ours = DiNTSNet(
        2, 3, strides=CUBES, base_features=4, use_downsample=use_downsample, keep_unused=True, **code.settings()
    ).eval()
    load(ours, theirs)
    x = torch.randn(1, 2, 16, 32, 16)
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-5)
        pruned = DiNTSNet(2, 3, strides=CUBES, base_features=4, use_downsample=use_downsample, **code.settings()).eval()
        pruned.load_state_dict({k: v for k, v in ours.state_dict().items() if k in pruned.state_dict()})
        torch.testing.assert_close(pruned(x), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("use_downsample", [True, False])
def test_the_supernet_computes_what_monais_does(use_downsample):
    torch.manual_seed(0)
    space = TopologySearch(channel_mul=0.125, num_blocks=3, num_depths=3, use_downsample=use_downsample, device="cpu")
    theirs = DiNTS(space, 2, 3, use_downsample=use_downsample).eval()
    ours = DiNTSSearchNet(
        2, 3, strides=CUBES, num_layers=3, num_depths=3, base_features=4, use_downsample=use_downsample
    ).eval()
    load(ours, theirs)
    with torch.no_grad():
        for a, b in ((ours.log_alpha_a, space.log_alpha_a), (ours.log_alpha_c, space.log_alpha_c)):
            a.normal_()
            b.copy_(a)
        x = torch.randn(1, 2, 16, 32, 16)
        # theirs takes probabilities in float32 and adds 120 maps in another order; outputs are of size 5
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=5e-5)
