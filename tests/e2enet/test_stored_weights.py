"""Sparse weights and their masks are plain entries of the state dict, live for averaging; damage is refused."""

import io
import zlib

import numpy as np
import pytest
import timm.utils
import torch
from torch import nn

from nnunet_ext.e2enet.masked import MaskedConv3d, masked_modules
from nnunet_ext.e2enet.network import E2ENet

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]


def build(seed=0, **kwargs):
    torch.manual_seed(seed)
    return E2ENet(1, 3, **{"strides": STRIDES, "base_features": 6, "sparsity": 0.8, **kwargs})


def tensors(network):
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def first(state, ending):
    return next(key for key in state if key.endswith(ending))


def compact(network):
    """The state dict as the first versions stored it."""
    state = network.state_dict()
    for name, module in masked_modules(network):
        state[f"{name}.active_kernels"] = state.pop(f"{name}.weight")[module.kernel_mask]
        bits = np.packbits(state.pop(f"{name}.kernel_mask").numpy(), bitorder="little")
        state[f"{name}.kernel_bits"] = torch.from_numpy(bits)
    return state


@pytest.mark.parametrize("form", [nn.Module.state_dict, compact])
def test_weights_and_masks_come_back_bit_for_bit(form):
    source, target = build(0), build(1)
    target.load_state_dict(form(source))
    ours, theirs = tensors(target), tensors(source)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_state_dict_is_the_network_itself():
    """So that code which averages or changes state dicts in place reaches every weight."""
    network = build()
    state = network.state_dict()
    assert state.keys() == tensors(network).keys()
    for name, tensor in tensors(network).items():
        assert state[name].data_ptr() == tensor.data_ptr()


def test_inactive_kernels_take_no_place_in_a_zip():
    """`nnUNetv2_export_model_to_zip` deflates: what is shipped is as small as what is active."""
    network = build(base_features=16)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    active = sum(int((parameter != 0).sum()) for parameter in network.parameters())
    total = sum(parameter.numel() for parameter in network.parameters())
    assert 4 * total < buffer.tell()
    assert len(zlib.compress(buffer.getvalue())) < 4 * active + 0.05 * 4 * total


# averaging


def moved(network, seed):
    """The masks somewhere else, with other weights."""
    torch.manual_seed(seed)
    for _, module in masked_modules(network):
        nn.init.normal_(module.weight)
        module.kernel_mask.copy_(
            module.kernel_mask.flatten()[torch.randperm(module.kernel_mask.numel())].view_as(module.kernel_mask)
        )
        module.apply_mask()


def averages():
    def torch_average(network):
        average = torch.optim.swa_utils.AveragedModel(
            network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
        )
        return average, average.update_parameters

    def timm_v2(network):
        average = timm.utils.ModelEmaV2(network, decay=0.5)
        return average, average.update

    def timm_v3(network):
        average = timm.utils.ModelEmaV3(network, decay=0.5)
        return average, average.update

    return [torch_average, timm_v2, timm_v3]


@pytest.mark.parametrize("kind", averages())
def test_averages_are_of_every_weight_and_survive_saving_or_are_refused(kind):
    network = build()
    average, update = kind(network)
    expected = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for seed in range(3):
        moved(network, seed)
        update(network)
        for name, parameter in network.named_parameters():
            start_anew = seed == 0 and kind.__name__ == "torch_average"  # its first update copies
            expected[name] = parameter.detach().clone() if start_anew else (expected[name] + parameter.detach()) / 2
    found = dict(average.module.named_parameters())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")
    loaded = build(9).eval()
    if kind.__name__ == "timm_v2":  # averages the masks too, so that every kernel counts that was ever active
        with pytest.raises(RuntimeError, match="its sparsity is another"):
            loaded.load_state_dict(average.module.state_dict())
        return
    loaded.load_state_dict(average.module.state_dict())
    x = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), average.module.eval()(x), rtol=0, atol=0)


# refusals


def test_a_flipped_bit_of_the_compact_form_is_refused():
    state = compact(build())
    state[first(state, "kernel_bits")][0] ^= 4
    with pytest.raises(RuntimeError, match="mask and kernels do not fit; the checkpoint is damaged"):
        build(1).load_state_dict(state)


@pytest.mark.parametrize("what", ["active_kernels", "kernel_bits"])
def test_a_cut_compact_form_is_refused(what):
    state = compact(build())
    key = first(state, what)
    state[key] = state[key][:-1]
    with pytest.raises(RuntimeError, match="the checkpoint is damaged"):
        build(1).load_state_dict(state)


def test_a_compact_form_of_other_kernels_is_refused():
    state = compact(build())
    key = first(state, "active_kernels")
    state[key] = state[key].transpose(-1, -3)
    with pytest.raises(RuntimeError, match="or of another network"):
        build(1).load_state_dict(state)


@pytest.mark.parametrize("form", [nn.Module.state_dict, compact])
def test_another_sparsity_is_refused(form):
    with pytest.raises(RuntimeError, match="its sparsity is another"):
        build(sparsity=0.9).load_state_dict(form(build(sparsity=0.8)))


@pytest.mark.parametrize("form", [nn.Module.state_dict, compact])
def test_a_refused_layer_keeps_its_own_values(form):
    network = build(1, sparsity=0.9)
    before = {name: tensor.detach().clone() for name, tensor in tensors(network).items()}
    with pytest.raises(RuntimeError):
        network.load_state_dict(form(build(0)))
    for name, _ in masked_modules(network):
        for part in ("weight", "kernel_mask"):
            assert torch.equal(tensors(network)[f"{name}.{part}"], before[f"{name}.{part}"])


@pytest.mark.parametrize("form", [nn.Module.state_dict, compact])
def test_it_works_inside_other_modules_with_a_prefix(form):
    source, target = (nn.Sequential(MaskedConv3d(4, 6, 3), nn.ReLU()) for _ in range(2))
    source[0].randomize_mask(0.5)
    target[0].randomize_mask(0.5)
    target.load_state_dict(form(source))
    assert torch.equal(source[0].weight, target[0].weight)
