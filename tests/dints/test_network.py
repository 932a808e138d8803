"""What only the networks of DiNTS do: strides of a plan, shared ReLUs, checkpointed cells, one code in the supernet."""

import pytest
import torch
from costs.layers import layer_flops
from dints.small import CUBES, random_code

from nnunet_ext.costs.complexity import count_flops
from nnunet_ext.dints.architecture_code import CVPR_CODE, ArchitectureCode
from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet, arch_kwargs_at
from nnunet_ext.dints.relaxation import Relaxed
from nnunet_ext.errors import ConfigurationError

ANISOTROPIC = [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]]
SMALL = {"strides": CUBES, "base_features": 3, "num_layers": 3, "num_depths": 3}
ENDS_AT_THE_FINEST_SCALE = ArchitectureCode.of([[0, 0, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]],
                                               [[2] * 7] * 3)  # fmt: skip


def image(*size, channels=1, seed=0):
    return torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(seed))


def test_resolutions_follow_the_plans_strides():
    network = DiNTSNet(1, 2, strides=ANISOTROPIC, base_features=2).eval()
    sizes = {}
    for name, cell in network.cells.items():
        cell.register_forward_hook(lambda m, i, o, name=name: sizes.__setitem__(name, tuple(o.shape[2:])))
    with torch.no_grad():
        assert network(image(20, 64, 64)).shape == (1, 2, 20, 64, 64)
    # a patch of 20 is padded to 20, which the third and fourth stride divide by 4 in all
    by_scale = {0: (20, 32, 32), 1: (20, 16, 16), 2: (10, 8, 8), 3: (5, 4, 4)}
    for name, size in sizes.items():
        assert size == by_scale[network.edges[int(name.split("_")[1])][1]]


@pytest.mark.parametrize("size", [(40, 56, 40), (28, 96, 112), (16, 16, 16), (7, 9, 5), (1, 1, 1)])
@pytest.mark.parametrize("channels", [1, 4])
def test_any_patch_is_padded_and_cropped_back(size, channels):
    network = DiNTSNet(channels, 3, strides=CUBES, base_features=2, **random_code(layers=2).settings()).eval()
    with torch.no_grad():
        logits = network(image(*size, channels=channels))
    assert logits.shape == (1, 3, *size)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("size", "padded"),
    [
        ((1, 1, 1), (16, 32, 32)),
        ((16, 16, 32), (16, 32, 32)),
        ((5, 5, 40), (16, 32, 48)),
        ((16, 32, 32), (16, 32, 32)),
        ((17, 33, 16), (32, 48, 16)),
    ],
)
def test_four_voxels_at_least_are_left_at_the_coarsest_scale(size, padded):
    """InstanceNorm of two would be the sign of their difference."""
    assert DiNTSNet(1, 2, strides=CUBES, base_features=2).structure.padded_size(size) == list(padded)


def test_padding_is_what_a_padded_image_gives():
    network = DiNTSNet(1, 2, strides=CUBES, base_features=2, **random_code(layers=2).settings()).eval()
    x = image(18, 30, 33)
    padded = torch.nn.functional.pad(x, (0, 48 - 33, 0, 32 - 30, 0, 32 - 18))
    with torch.no_grad():
        torch.testing.assert_close(network(x), network(padded)[:, :, :18, :30, :33], rtol=0, atol=0)


def test_a_plan_with_fewer_levels_repeats_its_last_stride():
    network = DiNTSNet(1, 2, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]], base_features=2)
    assert network.strides == [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]


def test_in_2d_the_pseudo_3d_operations_are_the_convolution():
    network = DiNTSNet(1, 2, strides=[stride[1:] for stride in CUBES], base_features=2, **CVPR_CODE.settings())
    chosen = {name for cell in network.cells.values() for name in cell.names}
    assert chosen == {"skip", "conv_3x3"}
    assert network.code.active == CVPR_CODE.active


@pytest.mark.parametrize("code", [CVPR_CODE, ENDS_AT_THE_FINEST_SCALE, *(random_code(seed=s) for s in range(3))])
def test_every_parameter_of_a_code_has_a_gradient(code):
    network = DiNTSNet(1, 2, **{**arch_kwargs_at(CUBES), **code.settings(), "base_features": 2})
    assert network.code == code
    network(image(32, 32, 16)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", [DiNTSNet, DiNTSSearchNet])
def test_checkpointed_cells_change_no_gradient_and_keep_less(kind):
    kwargs = SMALL if kind is DiNTSSearchNet else {"strides": CUBES, "base_features": 3}
    results, kept = [], []
    for checkpoint_cells in (False, True):
        torch.manual_seed(0)
        network = kind(1, 2, checkpoint_cells=checkpoint_cells, **kwargs)
        storages = {}

        def keep(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = network(image(16, 32, 32)).square().mean()
        kept.append(sum(storage.nbytes() for storage in storages.values()))
        loss.backward()
        results.append([p.grad for p in network.parameters() if p.requires_grad])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert kept[1] < 0.7 * kept[0]


def test_an_architecture_step_keeps_no_feature_map_for_the_weighted_sums():
    """Its logits' gradients come from the affine parameters of the norms: only the inputs of skips are kept besides."""
    network = DiNTSSearchNet(1, 2, **SMALL)
    network.log_alpha_a.requires_grad_()
    network.log_alpha_c.requires_grad_()
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    patch = (32, 32, 32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(image(*patch)).square().mean()
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    measured = sum(s.nbytes() for key, s in storages.items() if key not in own) / 4
    weights_only = network.compute_conv_feature_map_size(patch)
    # nodes and the outputs of resampling: one map of seven of a down or up cell, one more of each node
    assert weights_only < measured < 1.2 * weights_only
    gradients = torch.autograd.grad(loss, [network.log_alpha_a, network.log_alpha_c])
    assert all(gradient.isfinite().all() and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("code", [random_code(3, layers=3), random_code(3, layers=3, seed=1), ENDS_AT_THE_FINEST_SCALE])
def test_a_supernet_of_certain_probabilities_is_the_discrete_network(code):
    supernet = DiNTSSearchNet(1, 2, **SMALL).eval()
    discrete = DiNTSNet(1, 2, strides=CUBES, base_features=3, **code.settings()).eval()
    discrete.load_state_dict({key: supernet.state_dict()[key] for key in discrete.state_dict()})
    x = image(16, 16, 32)
    with torch.no_grad():
        certain = Relaxed(
            3, torch.zeros(3, 127), torch.tensor(code.active).double(),
            torch.nn.functional.one_hot(torch.tensor(code.operations), 5).double().log(),
        )  # fmt: skip
        torch.testing.assert_close(supernet(x, certain), discrete(x), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(supernet(x), discrete(x), atol=1e-2)


def test_logits_of_the_architecture_start_as_in_the_paper():
    torch.manual_seed(0)
    network = DiNTSSearchNet(1, 2, strides=CUBES, base_features=1)
    assert network.log_alpha_a.shape == (12, 10) and network.log_alpha_c.shape == (12, 10, 5)
    for logits, mean in ((network.log_alpha_a, 0), (network.log_alpha_c, 1)):
        assert float(logits.mean()) == pytest.approx(mean, abs=0.004)
        assert float(logits.std()) == pytest.approx(0.01, rel=0.2)
        assert not logits.requires_grad


@pytest.mark.parametrize("downsample", [True, False])
@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        (DiNTSNet, {"base_features": 5, **random_code(layers=4).settings()}),
        (DiNTSNet, {"features_per_stage": [3, 4, 7, 9, 11, 13, 2], **random_code(layers=3).settings()}),
        (DiNTSNet, {"base_features": 4, **random_code(5, layers=3).settings()}),
        (DiNTSSearchNet, {"base_features": 3, "num_layers": 2, "num_depths": 5}),
    ],
)
def test_the_network_costs_what_its_layers_cost_one_by_one(kind, kwargs, downsample):
    with torch.device("meta"):
        network = kind(2, 3, strides=ANISOTROPIC, use_downsample=downsample, **kwargs)
    # The probabilities of the supernet's connections are a matrix product, which no layer makes.
    assert count_flops(network, 2, [20, 70, 64]) == pytest.approx(layer_flops(network, 2, [20, 70, 64]), rel=1e-3)
    if kind is DiNTSNet:
        assert count_flops(network, 2, [20, 70, 64]) == layer_flops(network, 2, [20, 70, 64])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"strides": [[1, 1, 1]]}, "at least two levels"),
        ({"strides": [[2, 2, 2], [2, 2, 2]]}, "first stride must be all ones"),
        ({"strides": [[1, 1, 1], [1, 1, 1]]}, "each coarser"),
        ({"strides": [[1], [2]]}, "two numbers .* or three"),
        ({"features_per_stage": [4, 8]}, "features_per_stage must be 5 positive integers"),
        ({"features_per_stage": [1, 1, 2, 4, 8]}, "at least 2 from the second"),
        ({"base_features": 0}, "positive integers"),
        ({"arch_code_a": [[1] * 10]}, "arch_code_c must be a list"),
    ],
)
def test_bad_arguments_are_refused_in_words(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        DiNTSNet(1, 2, **{"strides": CUBES, **kwargs})


@pytest.mark.parametrize(
    ("kwargs", "message"), [({"num_depths": 6}, "2 to 5 scales"), ({"num_layers": 0}, "num_layers must be")]
)
def test_bad_search_spaces_are_refused_in_words(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        DiNTSSearchNet(1, 2, strides=CUBES, **kwargs)
