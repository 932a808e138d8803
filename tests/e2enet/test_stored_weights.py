"""State dicts hold the slots as they are, live for averaging; older forms still load, and damage is refused."""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import timm.utils
import torch
from torch import nn

from nnunet_ext.e2enet.masked import MaskedConv3d, masked_modules
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.older_forms import moments_to_slots
from nnunet_ext.e2enet.topology import DynamicTopology
from nnunet_ext.weights.checkpoints import load_data

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]


def build(seed=0, **kwargs):
    torch.manual_seed(seed)
    return E2ENet(1, 3, **{"strides": STRIDES, "base_features": 6, "sparsity": 0.8, **kwargs})


def tensors(network):
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def first(state, ending):
    return next(key for key in state if key.endswith(ending))


def shuffled(network):
    """The slots in another order, as updates leave them."""
    for _, module in masked_modules(network):
        order = torch.randperm(module.count_active())
        module.index.copy_(module.index[order])
        module.values.data.copy_(module.values.detach()[order])
    return network


# the forms: what is stored now, what was stored until slots came, and what the first versions stored


def slots(network):
    return network.state_dict()


def full(network):
    state = network.state_dict()
    for name, module in masked_modules(network):
        del state[f"{name}.values"], state[f"{name}.index"]
        state[f"{name}.weight"], state[f"{name}.kernel_mask"] = module.dense_weight().detach(), module.kernel_mask
    return state


def compact(network):
    state = full(network)
    for name, module in masked_modules(network):
        state[f"{name}.active_kernels"] = state.pop(f"{name}.weight")[module.kernel_mask]
        bits = np.packbits(state.pop(f"{name}.kernel_mask").numpy(), bitorder="little")
        state[f"{name}.kernel_bits"] = torch.from_numpy(bits)
    return state


forms = pytest.mark.parametrize("form", [slots, full, compact])


@forms
def test_weights_come_back_bit_for_bit(form):
    source, target = shuffled(build(0)), build(1)
    target.load_state_dict(form(source))
    plain = {name: value for name, value in tensors(source).items() if not name.endswith((".values", ".index"))}
    assert all(torch.equal(tensors(target)[name], plain[name]) for name in plain)
    ours = dict(masked_modules(target))
    for name, module in masked_modules(source):
        assert torch.equal(ours[name].dense_weight(), module.dense_weight())
        assert torch.equal(ours[name].kernel_mask, module.kernel_mask)
    if form is slots:
        assert all(torch.equal(tensors(target)[name], tensors(source)[name]) for name in tensors(source))


def test_the_state_dict_is_the_network_itself():
    """So that code which averages or changes state dicts in place reaches every weight."""
    network = build()
    state = network.state_dict()
    assert state.keys() == tensors(network).keys()
    for name, tensor in tensors(network).items():
        assert state[name].data_ptr() == tensor.data_ptr()


def test_a_checkpoint_is_as_small_as_what_is_active():
    network = build(base_features=16)
    dense = build(base_features=16, sparsity=None)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    network(torch.randn(1, 1, 8, 16, 16)).sum().backward()
    optimizer.step()
    weights, moments = io.BytesIO(), io.BytesIO()
    torch.save(network.state_dict(), weights)
    torch.save(optimizer.state_dict(), moments)
    active = sum(parameter.numel() for parameter in network.parameters())
    assert active < 0.6 * sum(parameter.numel() for parameter in dense.parameters())
    indices = sum(module.count_active() for _, module in masked_modules(network))
    assert weights.tell() < 4 * active + 8 * indices + 40_000  # names, and what torch writes of each tensor
    assert moments.tell() < 4 * active + 40_000


# checkpoints that were written before


def recorded():
    """Seven steps with two updates of a small network, and two more steps, by the last version with dense weights."""
    return load_data(Path(__file__).with_name("data") / "masked_checkpoint.pth")


def continued(form):
    """The recorded training, taken up from its checkpoint."""
    old = recorded()
    network = E2ENet(1, 3, deep_supervision=True, **old["arch_kwargs"])
    optimizer = torch.optim.SGD(network.parameters(), 0.01, weight_decay=3e-5, momentum=0.99, nesterov=True)
    topology = DynamicTopology(network, optimizer, total_steps=20, update_every=3)
    network.load_state_dict(form(old["network_weights"]))
    optimizer.load_state_dict(old["optimizer_state"])
    topology.load_state(old["topology"])
    return old, network, optimizer, topology


def as_recorded(state):
    return state


def as_compact(state):
    """What the first versions would have written."""
    state = dict(state)
    for key in [key for key in state if key.endswith(".kernel_mask")]:
        name, mask = key.removesuffix(".kernel_mask"), state.pop(key)
        state[f"{name}.active_kernels"] = state.pop(f"{name}.weight")[mask]
        state[f"{name}.kernel_bits"] = torch.from_numpy(np.packbits(mask.numpy(), bitorder="little"))
    return state


@pytest.mark.parametrize("form", [as_recorded, as_compact])
def test_an_older_checkpoint_predicts_as_it_did(form, monkeypatch):
    monkeypatch.setenv("nnUNet_ext_packed", "0")
    old, network, _, _ = continued(form)
    network.eval().deep_supervision = False
    with torch.no_grad():
        found = network(torch.randn(1, 1, 4, 8, 8, generator=torch.Generator().manual_seed(99)))
    torch.testing.assert_close(found, old["logits"], atol=1e-6, rtol=1e-6)  # another processor may sum otherwise


@pytest.mark.parametrize("form", [as_recorded, as_compact])
def test_an_older_training_goes_on_as_it_did(form):
    """Through a step and an update: with its momentum, and the same kernels dropped and grown."""
    old, network, optimizer, topology = continued(form)
    layers = dict(masked_modules(network))
    assert moments_to_slots(layers.values(), optimizer) == len(layers)
    assert moments_to_slots(layers.values(), optimizer) == 0
    for step in (7, 8):
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        outputs = network(torch.randn(1, 1, 4, 8, 8, generator=generator))
        sum((o - torch.randn(o.shape, generator=generator)).square().mean() for o in outputs).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
    assert topology.updates == 3 == old["topology"]["updates"] + 1
    for name, mask in old["topology_two_steps_later"]["ever_active"].items():
        assert torch.equal(topology.ever_active[name], mask)
    for name, expected in old["two_steps_later"].items():
        layer = layers.get(name.rpartition(".")[0])
        if name.endswith(".kernel_mask"):
            assert torch.equal(layer.kernel_mask, expected)
            continue
        found = layer.dense_weight() if layer is not None and name.endswith(".weight") else tensors(network)[name]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_an_average_over_moving_masks_of_the_full_form_is_refused():
    """It has more kernels than there are slots; without them it would be another network."""
    state = full(build())
    state[first(state, "up.weight")].add_(1)
    with pytest.raises(RuntimeError, match="an average over masks that moved"):
        build(1).load_state_dict(state)


# averaging


def moved(network, seed):
    """Other values, and other kernels in some of the slots."""
    torch.manual_seed(seed)
    for _, module in masked_modules(network):
        nn.init.normal_(module.values)
        inactive = (~module.kernel_mask).flatten().nonzero().squeeze(1)
        module.overwrite(torch.tensor([0, 2]), inactive[torch.randperm(len(inactive))[:2]])


def in_place(network):
    """As many a training loop of one's own does it."""
    average = copy.deepcopy(network)

    def update(network):
        for ours, theirs in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
            ours.lerp_(theirs, 0.5) if ours.is_floating_point() else ours.copy_(theirs)

    return average, update


def torch_average(network):
    average = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=False
    )
    average.n_averaged.fill_(1)  # else the first update copies
    return average.module, average.update_parameters


def timm_v3(network):
    average = timm.utils.ModelEmaV3(network, decay=0.5)
    return average.module, average.update


@pytest.mark.parametrize("kind", [in_place, torch_average, timm_v3])
def test_averages_are_of_every_slot_and_survive_saving(kind):
    network = build()
    average, update = kind(network)
    expected = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    for seed in range(3):
        moved(network, seed)
        update(network)
        for name, parameter in network.named_parameters():
            expected[name] = (expected[name] + parameter.detach()) / 2
    found = dict(average.named_parameters())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=lambda text, name=name: f"{name}: {text}")
    for (_, ours), (_, theirs) in zip(masked_modules(average), masked_modules(network), strict=True):
        assert torch.equal(ours.index, theirs.index)  # the kernels are those of the network now
    loaded = build(9).eval()
    loaded.load_state_dict(average.state_dict())
    x = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), average.eval()(x), rtol=0, atol=0)


def test_an_average_that_took_in_the_indices_is_refused():
    """timm's second version averages integers too, and so names kernels that were never active, and some twice."""
    network = build()
    average = timm.utils.ModelEmaV2(network, decay=0.5)
    for seed in range(3):
        moved(network, seed)
        average.update(network)
    with pytest.raises(RuntimeError, match="the index names a kernel twice; .* an average that took in the index"):
        build(9).load_state_dict(average.module.state_dict())


# refusals


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda index: index.index_fill(0, torch.tensor([1]), int(index[0])), "names a kernel twice"),
        (lambda index: index - 10_000, "kernels that are not there"),
        (lambda index: index + 10_000, "kernels that are not there"),
        (lambda index: index.float(), "kernels that are not there"),
        (lambda index: index[:-1], "its sparsity is another"),
    ],
)
def test_a_damaged_index_is_refused(change, said):
    state = build().state_dict()
    key = first(state, "index")
    state[key] = change(state[key])
    with pytest.raises(RuntimeError, match=said):
        build(1).load_state_dict(state)


def test_values_of_other_kernels_are_refused():
    state = build().state_dict()
    key = first(state, "conv.values")
    state[key] = state[key].transpose(-1, -3)
    with pytest.raises(RuntimeError, match="size mismatch for .*conv.values"):
        build(1).load_state_dict(state)


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


def test_a_full_form_of_another_shape_is_refused():
    state = full(build())
    key = first(state, "conv.kernel_mask")
    state[key] = state[key].t()
    with pytest.raises(RuntimeError, match="is stored, this network has"):
        build(1).load_state_dict(state)


@forms
def test_another_sparsity_is_refused(form):
    with pytest.raises(RuntimeError, match="its sparsity is another"):
        build(sparsity=0.9).load_state_dict(form(build(sparsity=0.8)))


@forms
def test_a_refused_layer_keeps_its_own_values(form):
    network = build(1, sparsity=0.9)
    before = {name: tensor.detach().clone() for name, tensor in tensors(network).items()}
    with pytest.raises(RuntimeError):
        network.load_state_dict(form(build(0)))
    for name, _ in masked_modules(network):
        for part in ("values", "index"):
            assert torch.equal(tensors(network)[f"{name}.{part}"], before[f"{name}.{part}"])


@forms
def test_it_works_inside_other_modules_with_a_prefix(form):
    source, target = (nn.Sequential(MaskedConv3d(4, 6, 3, density=0.5), nn.ReLU()) for _ in range(2))
    source[0].draw_kernels(torch.randn(6, 4, 3, 3, 3))
    target.load_state_dict(form(source))
    assert torch.equal(source[0].dense_weight(), target[0].dense_weight())


def test_as_many_kernels_as_slots_are_taken_or_none():
    module = MaskedConv3d(4, 6, 1, density=0.5)
    with pytest.raises(ValueError, match="24 kernels for 12 slots"):
        module.set_kernels(torch.ones(6, 4, 1, 1, 1), torch.ones(6, 4, dtype=torch.bool))


def test_a_dense_weight_is_no_attribute_that_could_be_changed_in_vain():
    module = MaskedConv3d(4, 6, 1, density=0.5)
    assert not hasattr(module, "weight")
