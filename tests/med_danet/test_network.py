"""Routing: grouped equals slice by slice, nothing runs for skipped slices, and what can go wrong at the edges."""

import warnings

import pytest
import torch
from med_danet.small import PLAIN_UNET, TINY_BANK, arch_kwargs, with_choices

from nnunet_ext.costs.complexity import complexity_report
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.layers.norm import SliceNorm
from nnunet_ext.med_danet.bank import take_bank
from nnunet_ext.med_danet.decision import DecisionNetwork
from nnunet_ext.med_danet.network import SKIP_LOGIT, MedDANet

CUBES = [[1, 1, 1], [2, 2, 2]]
FLAT = [[1, 1], [2, 2]]


def build(strides=CUBES, classes=3, candidates=TINY_BANK, seed=0):
    torch.manual_seed(seed)
    network = MedDANet(1, classes, **arch_kwargs(strides, candidates)).eval()
    for module in network.modules():  # statistics of a trained network, so that equality is not that of nearly nothing
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


def image(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slice_by_slice(network, x):
    """Routes one slice after the other, each in a batch of its own."""
    slices = network.fold(x)
    outputs = []
    for n in range(len(slices)):
        one = slices[n : n + 1]
        seen = [one, one.flip(2), one.flip(3), one.flip(2, 3)] if network.mirror_axes.all() else [one]
        choice = int(sum(network.decision(view).softmax(1) for view in seen).argmax(1))
        if choice:
            outputs.append(network.candidates[choice - 1](one))
        else:
            outputs.append(network.skip.logits.view(1, -1, 1, 1).expand(1, -1, *one.shape[2:]))
    return network.unfold(torch.cat(outputs), x)


@pytest.mark.parametrize("choices", [[0, 1, 2, 3, 4, 2, 0, 4], [0] * 8, [3] * 8, [0, 0, 0, 1, 0, 0, 0, 0]])
def test_grouped_routing_equals_slice_by_slice(choices):
    network, x = build(), image(2, 1, 4, 24, 40)
    with_choices(network, x, choices)
    network.record = []
    with torch.no_grad():
        # float32 sums of a batch may be taken in another order than those of one slice
        torch.testing.assert_close(network(x), slice_by_slice(network, x), rtol=0, atol=1e-5)
    assert network.record == [choices]


@pytest.mark.slow
def test_candidates_are_compiled_once_for_groups_of_every_size(monkeypatch):
    graphs, compile_module = [], torch.compile

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", lambda module: compile_module(module, backend=backend))
    torch._dynamo.reset()
    many = [TINY_BANK[2], *({"type": "unet", "width": width} for width in range(2, 11))]  # nine of one class
    network, plain = build(candidates=many), build(candidates=many)
    assert len(network.compile_candidates()) == len(many)
    assert network.state_dict().keys() == plain.state_dict().keys()
    for first in range(1, len(many) + 1):
        x = image(1, 1, 12, 24, 40, seed=first)
        choices = [first] + 5 * [first % len(many) + 1] + 6 * [0] if first % 2 else 9 * [first] + 3 * [1]
        for other in (network, plain):
            with_choices(other, x, choices)
        with torch.no_grad():
            torch.testing.assert_close(network(x), plain(x), rtol=0, atol=1e-5)  # one slice is summed as two
    with warnings.catch_warnings():  # dynamo's, of being asked to count
        warnings.simplefilter("error")
        assert complexity_report(network, 1, (12, 24, 40)) == complexity_report(plain, 1, (12, 24, 40))
    assert len(graphs) == len(many)


def test_compiled_candidates_get_groups_of_few_sizes_and_the_same_logits(monkeypatch):
    monkeypatch.setattr("nnunet_ext.med_danet.network.FEW_SIZES_ON", ("cpu",))
    network, x = build().eval(), image(1, 1, 11, 24, 40)
    with_choices(network, x, [1, 1, 1, 2, 3, 3, 3, 3, 3, 0, 4])
    with torch.no_grad():
        expected = network(x)
        network._compiled, sizes = list(network.candidates), []
        for candidate in network.candidates:
            candidate.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        torch.testing.assert_close(network(x), expected, rtol=0, atol=1e-5)
        assert sizes == [4, 2, 8, 2], "one slice is two to a compiled candidate"
        with_choices(network, x, [1] * 9 + [0, 2])
        network.candidates[0].train()
        network(x)
        network.candidates.eval()
        network(x)
    assert sizes[4:] == [9, 2, 11, 2], "of all slices in training, of the tile's at most in evaluation"


def test_a_real_decision_network_routes_the_same_in_groups():
    network, x = build(), image(2, 1, 6, 32, 32)
    with torch.no_grad():
        x *= torch.arange(1, 13).view(2, 1, 6, 1, 1) ** 2 / 10
        network.decision.classify.weight.normal_(0, 1)
        features = network.decision(network.fold(x))
        # logits that are centred over the slices choose different candidates
        network.decision.register_forward_hook(lambda m, i, o: o - features.mean(0))
        network.decision_trained.fill_(True)
        network.record = []
        torch.testing.assert_close(network(x), slice_by_slice(network, x), rtol=0, atol=1e-5)
    assert len(set(network.record[0])) > 1


def test_flipping_the_slice_axis_flips_the_result():
    network, x = build(), image(1, 1, 5, 16, 24)
    with_choices(network, x, [0, 4, 1, 1, 3])
    with torch.no_grad():
        # the same slices in the same groups, in another order within them
        torch.testing.assert_close(network(x.flip(2)), network(x).flip(2), rtol=0, atol=0)


def test_each_candidate_runs_once_on_its_slices_and_nothing_runs_for_skipped_ones():
    network, x = build(), image(1, 1, 6, 16, 16)
    with_choices(network, x, [0, 2, 2, 0, 4, 0])
    ran = []
    for number, candidate in enumerate(network.candidates, start=1):
        candidate.register_forward_hook(lambda m, i, o, number=number: ran.append((number, len(i[0]))))
    with torch.no_grad():
        network(x)
    assert sorted(ran) == [(2, 2), (4, 1)]


def test_all_slices_skipped_say_background_and_run_nothing():
    network, x = build(), image(1, 1, 3, 16, 16)
    with_choices(network, x, [0, 0, 0])
    for candidate in network.candidates:
        candidate.register_forward_hook(lambda *_: pytest.fail("a candidate ran"))
    with torch.no_grad():
        first = network(x)
        assert first.shape == (1, 3, 3, 16, 16) and first.dtype == torch.float32
        assert (first.argmax(1) == 0).all()
        assert (first[:, 0] == SKIP_LOGIT).all() and (first[:, 1:] == -SKIP_LOGIT).all()
        first += 1000  # as nnU-Net's predictor edits it
        assert torch.equal(network(x), first - 1000)


def test_one_candidate_for_all_slices_is_that_network():
    network, x = build(), image(1, 1, 4, 16, 16)
    with_choices(network, x, [2] * 4)
    with torch.no_grad():
        assert torch.equal(network(x), network.candidate(1, x))


def test_2d_images_are_one_slice_each():
    network, x = build(FLAT), image(3, 1, 16, 24)
    with_choices(network, x, [4, 0, 1])
    with torch.no_grad():
        logits = network(x)
        assert logits.shape == (3, 3, 16, 24)
        torch.testing.assert_close(logits, slice_by_slice(network, x), rtol=0, atol=1e-5)


def test_regions_are_all_absent_in_skipped_slices():
    network, x = build(), image(1, 1, 2, 16, 16)
    network.set_regions(True)
    with_choices(network, x, [0, 0])
    with torch.no_grad():
        assert (network(x) == -SKIP_LOGIT).all()


def test_an_untrained_decision_network_never_routes():
    network, x = build(), image(1, 1, 3, 16, 16)
    network.decision.register_forward_hook(lambda *_: pytest.fail("the decision network ran"))
    assert network.largest == 3
    with torch.no_grad():
        assert torch.equal(network(x), network.candidate(3, x))


def test_loading_untrained_weights_says_who_predicts():
    network = build()
    with pytest.warns(UserWarning, match="not trained yet: TransBTS-4 L2 predicts every slice"):
        build(seed=1).load_state_dict(network.state_dict())
    network.decision_trained.fill_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = build(seed=1)
        other.load_state_dict(network.state_dict())
    assert other.routes


@pytest.mark.parametrize("size", [(20, 20), (36, 28), (4, 4), (7, 9), (1, 1)])
@pytest.mark.parametrize("choice", [0, 1, 4])
def test_any_slice_size_is_padded_and_cropped_back(size, choice):
    network, x = build(), image(2, 1, 1, *size)
    with_choices(network, x, [choice, choice])
    with torch.no_grad():
        logits = network(x)
    assert logits.shape == (2, 3, 1, *size)
    assert logits.isfinite().all()


def test_padding_is_with_zeros_on_the_right():
    network, x = build(FLAT), image(1, 1, 20, 28)
    padded = torch.nn.functional.pad(x, (0, 4, 0, 4))
    with torch.no_grad():
        for index in range(4):
            assert torch.equal(network.candidate(index, x), network.candidate(index, padded)[..., :20, :28])


def test_positions_are_kept_at_their_own_size_and_interpolated_at_others():
    candidate = build().candidates[3]
    with torch.no_grad():
        candidate.position.copy_(torch.arange(4.0).view(1, 4, 1).expand(1, 4, 8).repeat(1, 4, 1))
    assert candidate._positions((4, 4)) is candidate.position
    resized = candidate._positions((8, 2))
    assert resized.shape == (1, 16, 8)
    # columns 0 to 3 halved to two: means of neighbours
    assert resized[0, :2, 0].tolist() == pytest.approx([0.5, 2.5])


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (32, 32), (100, 60)])
def test_the_decision_network_takes_slices_of_any_size(size):
    assert DecisionNetwork(2, 3).eval()(torch.randn(2, 2, *size)).shape == (2, 3)


def test_one_small_slice_can_be_trained():
    """BatchNorm refuses one value a channel; the running statistics are taken then."""
    network = DecisionNetwork(1, 3).train()
    network(torch.randn(1, 1, 16, 16)).sum().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    norm = SliceNorm(2).train()
    norm(torch.randn(1, 2, 1, 1))
    assert int(norm.num_batches_tracked) == 0
    norm(torch.randn(2, 2, 1, 1))
    assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize("bank", [TINY_BANK[:1], TINY_BANK[1:3], [*TINY_BANK, *TINY_BANK[:2]]])
def test_any_number_of_candidates(bank):
    network, x = build(candidates=bank), image(1, 1, 3, 16, 16)
    assert network.decision.classify.out_features == len(bank) + 1
    with_choices(network, x, [len(bank), 0, 1])
    with torch.no_grad():
        torch.testing.assert_close(network(x), slice_by_slice(network, x), rtol=0, atol=1e-5)


def test_a_candidate_of_another_package():
    network, x = build(candidates=[TINY_BANK[0], PLAIN_UNET]), image(1, 1, 2, 16, 16)
    network.check_patch_size((4, 16, 16))
    with_choices(network, x, [2, 1])
    with torch.no_grad():
        torch.testing.assert_close(network(x), slice_by_slice(network, x), rtol=0, atol=1e-5)
    with pytest.raises(ConfigurationError, match="Candidate 2 .*PlainConvUNet. fails on slices .15, 15."):
        network.check_patch_size((4, 15, 15))


def test_a_decision_network_of_timm_routes_and_starts_again():
    network, x = MedDANet(1, 3, decision="ghostnet_050", **arch_kwargs(CUBES)).eval(), image(1, 1, 4, 40, 32)
    network.check_patch_size((4, 40, 32))
    network.decision_trained.fill_(True)
    with torch.no_grad():
        network.decision.classifier.weight.normal_(0, 10)  # untrained, it would weigh up ties
    before = {name: value.clone() for name, value in network.decision.state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(network(x), slice_by_slice(network, x), rtol=0, atol=1e-5)
    network.restart_decision(7)
    after = network.decision.state_dict()
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)


def test_a_decision_network_that_cannot_take_the_slices_is_refused():
    network = MedDANet(1, 3, decision="vit_tiny_patch16_224", **arch_kwargs(FLAT))
    with pytest.raises(ConfigurationError, match="The decision network fails on slices .40, 32."):
        network.check_patch_size((40, 32))


@pytest.mark.parametrize("path", ["torch.nn.NoSuchNet", "no_such_package.Net", "math.sqrt", "torch.nn.Conv2d"])
def test_a_class_that_is_no_candidate_is_refused_in_words(path):
    with pytest.raises(ConfigurationError, match=f"The candidate {path} cannot be built"):
        build(candidates=[{"type": path}])


def test_half_precision_candidates_give_half_precision_logits():
    network, x = build(), image(1, 1, 4, 16, 16)
    with_choices(network, x, [0, 1, 2, 0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    assert logits.dtype == torch.bfloat16
    assert (logits[:, 0, 0] == SKIP_LOGIT).all()


def test_a_finished_bank_is_taken_from_a_checkpoint(tmp_path):
    trained, fresh = build(seed=0), build(seed=1)
    torch.save({"network_weights": trained.state_dict()}, tmp_path / "bank.pth")
    decision = {name: value.clone() for name, value in fresh.decision.state_dict().items()}
    take_bank(fresh, str(tmp_path / "bank.pth"))
    theirs = trained.candidates.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in fresh.candidates.state_dict().items())
    assert all(torch.equal(value, decision[name]) for name, value in fresh.decision.state_dict().items())


@pytest.mark.parametrize("other", [{"classes": 4}, {"candidates": TINY_BANK[:3]}, {"candidates": TINY_BANK[::-1]}])
def test_another_bank_is_refused(tmp_path, other):
    torch.save({"network_weights": build(**other).state_dict()}, tmp_path / "bank.pth")
    with pytest.raises(ConfigurationError, match="bank.pth are not those of the plans"):
        take_bank(build(), str(tmp_path / "bank.pth"))


def test_candidates_share_no_weights():
    network = build()
    owners = [{id(p) for p in part.parameters()} for part in (*network.candidates, network.decision)]
    assert sum(map(len, owners)) == len(set.union(*owners)) == len(list(network.parameters()))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"strides": [[1]]}, "two numbers .2D. or three"),
        ({"strides": []}, "two numbers"),
        ({"position_size": [8]}, "height"),
        ({"decision": "no_such_network"}, "'decision' must be shufflenetv2_m or .*found 'no_such_network'"),
    ],
)
def test_bad_arguments_are_refused_in_words(kwargs, message):
    with pytest.raises(ConfigurationError, match=message):
        MedDANet(1, 2, **{"strides": CUBES, **kwargs})
