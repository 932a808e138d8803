"""What fits is taken over with its mask, the rest is named, and another sparsity is refused."""

import pytest
import torch
from dints.small import random_code
from med_danet.small import arch_kwargs as med_danet_kwargs
from med_tuning.tiny import TINY_VIT

from nnunet_ext.e2enet.masked import MaskedConv3d
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.methods import METHODS
from nnunet_ext.weights.transfer import transfer

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def build(seed, channels=1, classes=3, **kwargs):
    torch.manual_seed(seed)
    return E2ENet(channels, classes, **{"strides": STRIDES, "base_features": 6, "sparsity": 0.7, **kwargs})


def test_the_same_shape_takes_everything_but_the_heads():
    source, target = build(0), build(1)
    taken, new = transfer(source, target)
    assert set(new) == {"heads.seg_layers.0.weight"}
    theirs = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        assert torch.equal(parameter, theirs[name]) == (name in taken)
    masks = dict(target.named_buffers())
    assert all(torch.equal(masks[name], mask) for name, mask in source.named_buffers())


def test_other_channels_keep_only_the_first_convolution_new():
    target = build(1, channels=2, classes=5)
    before = target.backbone[0][0].conv.weight.detach().clone()
    taken, new = transfer(build(0), target)
    assert set(new) == {"backbone.0.0.conv.weight", "heads.seg_layers.0.weight"}
    assert new["backbone.0.0.conv.weight"] == "shape [6, 1, 1, 3, 3] in the source, [6, 2, 1, 3, 3] here"
    assert torch.equal(target.backbone[0][0].conv.weight, before)


def test_other_strides_keep_values_and_index_of_the_up_convolutions_together():
    source, target = build(0), build(1, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]])
    up = target.fusion[0][0].up
    before = up.values.detach().clone(), up.index.clone()
    _, new = transfer(source, target)
    assert new["fusion.0.0.up.values"] == "shape [12, 6, 2, 2, 2] in the source, [12, 6, 1, 2, 2] here"
    assert "fusion.0.0.up.index" in new and "fusion.0.1.up.values" not in new
    assert torch.equal(up.values, before[0]) and torch.equal(up.index, before[1])


def test_as_many_kernels_of_another_layer_are_not_taken_over():
    """[6, 4] and [4, 6] have tensors of the same shapes, with another meaning."""
    source, target = (torch.nn.Sequential(MaskedConv3d(*sizes, 1, density=0.5)) for sizes in ((4, 6), (6, 4)))
    taken, new = transfer(source, target)
    assert taken == [] and new["0.values"] == "shape [6, 4, 1, 1, 1] in the source, [4, 6, 1, 1, 1] here"
    assert "0.index" in new


def test_more_levels_are_listed_as_not_in_the_source():
    _, new = transfer(build(0), build(1, strides=[*STRIDES, [2, 2, 2]]))
    assert new["backbone.3.0.conv.weight"] == "not in the source"


def test_another_sparsity_is_refused():
    with pytest.raises(ConfigurationError, match="active kernels in the source and .* in the target"):
        transfer(build(0), build(1, sparsity=0.8))


def networks(name):
    """Two networks of a method as its trainer makes them, tiny, with all that moves in training moved."""
    kwargs = {
        "e2enet": {"strides": STRIDES, "base_features": 6, "sparsity": 0.7},
        "dints": {"strides": STRIDES, "base_features": 3, **random_code(2, layers=2).settings()},
        "dints_search": {"strides": STRIDES, "num_layers": 2, "num_depths": 2, "base_features": 3},
        "med_danet": med_danet_kwargs(STRIDES),
        "med_tuning": {"strides": STRIDES, "patch_size": [8, 32, 32], **TINY_VIT},
    }[name]
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = METHODS[name].network_class()(1, 3, **kwargs)
        for module in network.modules():
            if isinstance(module, (torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)):
                module.running_mean.normal_(), module.running_var.uniform_(1, 3)
        made.append(network)
    if name == "med_danet":
        made[0].decision_trained.fill_(True)
    return made


@pytest.mark.parametrize("name", METHODS)
def test_a_network_fitted_to_its_own_shape_predicts_the_same(name):
    source, target = networks(name)
    x = torch.randn(2, 1, 8, 32, 32)
    with torch.no_grad():
        before = source.eval()(x)
        assert not torch.allclose(target.eval()(x), before)
        if any(not p.requires_grad for p in target.parameters()):
            # of the same pretrained weights, or the logits of a search, which are taken over with the rest
            assert name in ("med_tuning", "dints_search")
        _, new = transfer(source, target)
        assert {part for part in new if ".seg_layers." not in part} == set()
        heads = dict(target.named_parameters()) | dict(target.named_buffers())
        for part, tensor in (dict(source.named_parameters()) | dict(source.named_buffers())).items():
            if ".seg_layers." in part:
                heads[part].copy_(tensor)
        assert torch.equal(target(x), before)


def test_running_statistics_stay_with_weights_that_are_new():
    def block(channels):
        return torch.nn.Sequential(torch.nn.Conv2d(1, channels, 1), torch.nn.BatchNorm2d(channels))

    source, target = block(4), block(6)
    source[1].running_mean.fill_(3)
    source[1].num_batches_tracked.fill_(9)  # of one shape in both
    taken, new = transfer(source, target)
    assert taken == [] and new["1.num_batches_tracked"] == "belongs to a tensor that is new"
    assert int(target[1].num_batches_tracked) == 0 and (target[1].running_mean == 0).all()
    taken, new = transfer(source, same := block(4))
    assert new == {} and (same[1].running_mean == 3).all() and int(same[1].num_batches_tracked) == 9


def test_a_frozen_parameter_that_would_stay_random_is_refused():
    source, target = (torch.nn.Sequential(torch.nn.Conv2d(channels, 4, 1)) for channels in (1, 2))
    target[0].weight.requires_grad_(False)
    with pytest.raises(ConfigurationError, match=r"0\.weight is frozen .*shape \[4, 1, 1, 1\] in the source"):
        transfer(source, target)


def test_dense_into_sparse_is_refused():
    with pytest.raises(ConfigurationError, match="sparse only in the target"):
        transfer(build(0, sparsity=None), build(1))
