"""Parameters and costs of the paper's networks: exact counts, and the paper's own rounded figures."""

import copy
import math

import pytest
import torch
from costs.layers import layer_flops
from torch import nn

from nnunet_ext.costs.complexity import count_flops, count_parameters
from nnunet_ext.costs.planned import planned_report
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.med_danet.bank import PAPER_BANK, read_bank
from nnunet_ext.med_danet.costs import slice_costs
from nnunet_ext.med_danet.decision import DecisionNetwork, build_decision
from nnunet_ext.med_danet.network import MedDANet, arch_kwargs_at
from nnunet_ext.med_danet.presets import PRESETS
from nnunet_ext.methods import METHODS

PARAMETERS = [907_540, 1_611_332, 6_518_596, 15_971_140]
MACS_128 = [574_095_360, 1_017_118_720, 2_304_770_048, 4_922_015_744]
MACS_240 = [2_018_304_000, 3_575_808_000, 8_696_217_600, 19_678_003_200]
PAPER_128 = [0.605, 1.067, 2.358, 4.979]
PAPER_240 = [2.126, 3.750, 8.882, 19.878]


def network(channels=4, classes=4, bank=PAPER_BANK, position_size=(128, 128)):
    with torch.device("meta"):
        return MedDANet(channels, classes, strides=[[1, 1]], candidates=bank, position_size=list(position_size))


def paper_flops(part, channels, side):
    """As the paper's tables count: one a multiply-add, 5 a value that a norm gives, transposed ones at their output."""
    further = []

    def count(module, inputs, output):
        if isinstance(module, nn.ConvTranspose2d):
            further.append(3 * module.in_channels * output.numel())  # the true count has a quarter of it
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            further.append(5 * output.numel())

    shadow = copy.deepcopy(part).eval()
    for module in shadow.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        shadow(torch.empty(1, channels, side, side, device="meta"))
    return count_flops(part, channels, (side, side)) / 2 + sum(further)


def test_parameters_of_the_four_candidates():
    assert [count_parameters(candidate)["total"] for candidate in network().candidates] == PARAMETERS


def test_true_multiply_adds_are_exact():
    assert list(slice_costs(network(), (128, 128)).candidates) == MACS_128
    assert list(slice_costs(network(position_size=(240, 240)), (240, 240)).candidates) == MACS_240


def test_the_papers_convention_gives_the_papers_figures():
    found = [paper_flops(candidate, 4, 128) / 1e9 for candidate in network().candidates]
    assert found == pytest.approx(PAPER_128, abs=0.0005)
    # The second is printed as 3.75, with fewer digits than the others.
    candidates = network(position_size=(240, 240)).candidates
    for candidate, figure, tolerance in zip(candidates, PAPER_240, (0.0005, 0.003, 0.0005, 0.0005), strict=True):
        assert paper_flops(candidate, 4, 240) / 1e9 == pytest.approx(figure, abs=tolerance)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("size", [(128, 128), (40, 56), (37, 90)])
def test_a_candidate_costs_its_layers_and_the_products_of_its_attention(number, size):
    candidate = network(3, 5).candidates[number]
    tokens = math.prod(-(-side // 8) for side in size)
    attention = PAPER_BANK[number].get("layers", 0) * 2 * tokens * tokens * 512
    assert count_flops(candidate, 3, size) == layer_flops(candidate, 3, size) + 2 * attention


def test_the_decision_network():
    decision = network().decision
    assert count_parameters(decision)["total"] == 66_220
    assert slice_costs(network(), (128, 128)).decision == 4_083_200
    assert 16 * paper_flops(decision, 4, 128) == 16 * 4_898_560  # the published 0.078 G are 16 crops
    assert slice_costs(network(), (240, 240)).decision == 14_701_832


def test_mobilenet_as_the_decision_network_costs_what_table_5_says():
    with torch.device("meta"):
        decision = build_decision("mobilenetv2_100", 4, 5)
    assert 16 * paper_flops(decision, 4, 128) / 1e9 == pytest.approx(1.758, abs=0.0005)


@pytest.mark.parametrize("size", [(128, 128), (240, 240), (33, 70)])
def test_the_decision_network_costs_its_layers(size):
    with torch.device("meta"):
        decision = DecisionNetwork(2, 4)
    assert count_flops(decision, 2, size) == layer_flops(decision, 2, size)


def test_a_patch_costs_the_largest_candidate_on_every_slice():
    kwargs = arch_kwargs_at([[1, 1, 1], [1, 2, 2]])
    report = planned_report(METHODS["med_danet"], 4, 4, [6, 128, 128], kwargs)
    assert report["true"] == {"gmacs": 6 * MACS_128[3] / 1e9, "gflops": 12 * MACS_128[3] / 1e9}
    assert report["parameters"]["total"] == sum(PARAMETERS) + 66_220


def test_routing_spends_the_decision_and_what_was_chosen():
    costs = slice_costs(network(), (128, 128))
    assert costs.spent([3, 0, 0, 0, 0]) == 3 * 4_083_200
    assert costs.spent([1, 2, 0, 0, 1]) == 4 * 4_083_200 + 2 * MACS_128[0] + MACS_128[3]


def test_the_report_of_a_validation():
    report = slice_costs(network(), (128, 128)).report([3, 1, 0, 0, 0])
    assert report["choices"] == ["skip", "UNet-12", "UNet-16", "TransBTS-16 L1", "TransBTS-16 L4"]
    assert report["slice_size"] == [128, 128]
    assert report["ratios"] == [0.75, 0.25, 0, 0, 0]
    assert report["gmacs"] == pytest.approx((4 * 4_083_200 + MACS_128[0]) / 1e9)
    assert report["gmacs_decision"] == pytest.approx(4 * 4_083_200 / 1e9)
    assert report["gmacs_unrouted"] == pytest.approx(4 * MACS_128[3] / 1e9)


def test_sixteen_windows_cover_a_slice_in_the_papers_first_setting():
    """240 pixels, crops of 128, stride 128 // 3: its tables give 16 times the figure of one inference for a slice."""
    offsets = [*range(0, 240 - 128, 128 // 3), 240 - 128]
    assert offsets == [0, 42, 84, 112]
    assert 16 * paper_flops(network().candidates[0], 4, 128) / 1e9 == pytest.approx(9.68, abs=0.01)


def test_presets_name_banks_that_can_be_built():
    for name, count in (("n2", 2), ("n4", 4), ("n6", 6)):
        bank = read_bank(PRESETS[name]["candidates"])
        macs = list(slice_costs(network(bank=PRESETS[name]["candidates"]), (128, 128)).candidates)
        assert len(bank) == count and macs == sorted(macs)


@pytest.mark.parametrize(
    ("bank", "message"),
    [
        ([], "at least one candidate"),
        ("unet", "must be a list"),
        ([{"width": 3}], 'Candidate 1 must be a dict with a "type"'),
        ([{"type": "vnet"}], "candidate 1 must be unet, transbts, or a dotted class path"),
        ([{"type": "unet"}], "Candidate 1 .unet. needs width"),
        ([{"type": "unet", "width": 0}], "'width' of candidate 1 must be a positive integer"),
        (
            [{"type": "unet", "width": 3, "layers": 2}],
            "Unknown option of candidate 1 .unet.: layers. Known: type, width",
        ),
        ([{"type": "transbts", "width": 3, "layers": 1, "embedding": 10, "heads": 4}], "'embedding' of candidate 1"),
        ([{"type": "a.b", "kwargs": {}, "kw_requires_import": ["x"]}], "'kwargs' must be a dict that has all"),
    ],
)
def test_bad_banks_are_refused_in_words(bank, message):
    with pytest.raises(ConfigurationError, match=message):
        read_bank(bank)
