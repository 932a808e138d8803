"""What fits is taken over with its mask, the rest is named, and another sparsity is refused."""

import pytest
import torch

from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.errors import ConfigurationError
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


def test_other_strides_keep_weight_and_mask_of_the_up_convolutions_together():
    source, target = build(0), build(1, strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]])
    up = target.fusion[0][0].up
    before = up.weight.detach().clone(), up.kernel_mask.clone()
    _, new = transfer(source, target)
    assert "fusion.0.0.up.weight" in new and "fusion.0.1.up.weight" not in new
    assert torch.equal(up.weight, before[0]) and torch.equal(up.kernel_mask, before[1])
    inactive = ~up.kernel_mask
    assert (up.weight[inactive] == 0).all()


def test_more_levels_are_listed_as_not_in_the_source():
    _, new = transfer(build(0), build(1, strides=[*STRIDES, [2, 2, 2]]))
    assert new["backbone.3.0.conv.weight"] == "not in the source"


def test_another_sparsity_is_refused():
    with pytest.raises(ConfigurationError, match="active kernels in the source and .* in the target"):
        transfer(build(0), build(1, sparsity=0.8))


def test_dense_into_sparse_is_refused():
    with pytest.raises(ConfigurationError, match="sparse only in the target"):
        transfer(build(0, sparsity=None), build(1))
