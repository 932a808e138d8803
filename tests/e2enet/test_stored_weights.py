"""Sparse weights are stored as active kernels and a bit mask, and come back exactly; damage is refused."""

import io

import pytest
import torch
from torch import nn

from nnunet_ext.e2enet.masked import MaskedConv3d, masked_modules, pack_bits, unpack_bits
from nnunet_ext.e2enet.network import E2ENet

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]


def build(seed=0, **kwargs):
    torch.manual_seed(seed)
    return E2ENet(1, 3, **{"strides": STRIDES, "base_features": 6, "sparsity": 0.8, **kwargs})


def tensors(network):
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def stored_bytes(network):
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    return buffer.tell()


def first(state, ending):
    return next(key for key in state if key.endswith(ending))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 1001])
def test_bits_come_back(count):
    mask = torch.rand(count) < 0.3
    bits = pack_bits(mask)
    assert bits.dtype == torch.uint8 and len(bits) == -(-count // 8)
    assert torch.equal(unpack_bits(bits, mask.shape), mask)


def test_weights_and_masks_come_back_bit_for_bit():
    source, target = build(0), build(1)
    target.load_state_dict(source.state_dict())
    ours, theirs = tensors(target), tensors(source)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_paper_network_at_sparsity_08_takes_at_most_42_mb():
    network = E2ENet(1, 16, strides=[[1, 1, 1]] + [[2, 2, 2]] * 5, sparsity=0.8)
    active, bits = 9_445_351, 2_090_000 / 8  # weights in fp32, and one bit for each of about two million kernels
    assert stored_bytes(network) <= 42e6
    assert stored_bytes(network) == pytest.approx(4 * active + bits, rel=0.01)


def test_a_full_checkpoint_still_loads():
    source, target = build(0), build(1)
    full = {name: tensor.detach().clone() for name, tensor in tensors(source).items()}
    target.load_state_dict(full)
    assert all(torch.equal(tensor, full[name]) for name, tensor in tensors(target).items())


def test_a_flipped_bit_is_refused():
    state = build().state_dict()
    state[first(state, "kernel_bits")][0] ^= 4
    with pytest.raises(RuntimeError, match="the mask names .* kernels, .* are stored; the checkpoint is damaged"):
        build(1).load_state_dict(state)


def test_a_truncated_value_array_is_refused():
    state = build().state_dict()
    key = first(state, "active_kernels")
    state[key] = state[key][:-1]
    with pytest.raises(RuntimeError, match="the checkpoint is damaged"):
        build(1).load_state_dict(state)


def test_a_truncated_mask_is_refused():
    state = build().state_dict()
    key = first(state, "kernel_bits")
    state[key] = state[key][:-1]
    with pytest.raises(RuntimeError, match="the checkpoint is damaged"):
        build(1).load_state_dict(state)


def test_another_sparsity_is_refused():
    with pytest.raises(RuntimeError, match="its sparsity is another"):
        build(sparsity=0.9).load_state_dict(build(sparsity=0.8).state_dict())


def test_a_refused_layer_keeps_its_own_values():
    network = build(1)
    before = {name: tensor.detach().clone() for name, tensor in network.named_parameters() if ".convs." in name}
    state = build(0).state_dict()
    for key in [key for key in state if key.endswith("active_kernels")]:
        state[key] = state[key][:-1]
    with pytest.raises(RuntimeError):
        network.load_state_dict(state)
    masked = {f"{name}.weight" for name, _ in masked_modules(network)}
    after = dict(network.named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in before if name in masked)


def test_saving_does_not_change_the_network_and_copies_the_values():
    network = build()
    before = {name: tensor.detach().clone() for name, tensor in tensors(network).items()}
    state = network.state_dict()
    state[first(state, "active_kernels")].zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(network).items())


def test_it_works_inside_other_modules_with_a_prefix():
    source = nn.Sequential(MaskedConv3d(4, 6, 3), nn.ReLU())
    source[0].randomize_mask(0.5)
    target = nn.Sequential(MaskedConv3d(4, 6, 3), nn.ReLU())
    target[0].randomize_mask(0.5)
    target.load_state_dict(source.state_dict())
    assert torch.equal(source[0].weight, target[0].weight)
    assert set(source.state_dict()) == {"0.active_kernels", "0.kernel_bits", "0.bias"}
