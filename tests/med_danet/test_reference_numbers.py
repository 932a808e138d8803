"""Parameters and costs of the paper's networks: exact counts, and the paper's own rounded figures."""

import pytest
import torch

from nnunet_ext.costs.complexity import complexity_report, count_flops, count_parameters
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.med_danet.bank import PAPER_BANK, read_bank
from nnunet_ext.med_danet.candidates import build_candidate
from nnunet_ext.med_danet.costs import (
    bank_costs,
    candidate_cost,
    cost_report,
    decision_parts,
    spent_macs,
    spent_report,
    total,
)
from nnunet_ext.med_danet.decision import DecisionNetwork
from nnunet_ext.med_danet.network import MedDANet, arch_kwargs_from_strides
from nnunet_ext.med_danet.presets import PRESETS

PARAMETERS = [907_540, 1_611_332, 6_518_596, 15_971_140]
MACS_128 = [574_095_360, 1_017_118_720, 2_304_770_048, 4_922_015_744]
MACS_240 = [2_018_304_000, 3_575_808_000, 8_696_217_600, 19_678_003_200]
PAPER_128 = [0.605, 1.067, 2.358, 4.979]
PAPER_240 = [2.126, 3.750, 8.882, 19.878]


def costs(side):
    return bank_costs(4, 4, (side, side), {"candidates": PAPER_BANK, "position_size": [side, side]})


def test_parameters_of_the_four_candidates():
    assert [part.parameters for part in costs(128)] == PARAMETERS


def test_true_multiply_adds_are_exact():
    assert [part.macs for part in costs(128)] == MACS_128
    assert [part.macs for part in costs(240)] == MACS_240


def test_the_papers_convention_gives_the_papers_figures():
    assert [part.paper / 1e9 for part in costs(128)] == pytest.approx(PAPER_128, abs=0.0005)
    # The second is printed as 3.75, with fewer digits than the others.
    for part, figure, tolerance in zip(costs(240), PAPER_240, (0.0005, 0.003, 0.0005, 0.0005), strict=True):
        assert part.paper / 1e9 == pytest.approx(figure, abs=tolerance)


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("size", [(128, 128), (40, 56), (37, 90)])
def test_the_arithmetic_is_what_the_networks_have(number, size):
    candidate = read_bank(PAPER_BANK)[number]
    with torch.device("meta"):
        network = build_candidate(candidate, 3, 5, (16, 16))
    expected = candidate_cost(candidate, 3, 5, size)
    assert count_parameters(network)["total"] == expected.parameters
    assert count_flops(network, 3, size) / 2 == expected.macs


def test_the_decision_network():
    part = total(decision_parts(4, 5, (128, 128)))
    assert (part.parameters, part.macs) == (66_220, 4_083_200)
    assert 16 * part.paper == 16 * 4_898_560  # the published 0.078 G are 16 crops
    assert total(decision_parts(4, 5, (240, 240))).macs == 14_701_832


@pytest.mark.parametrize("size", [(128, 128), (240, 240), (33, 70)])
def test_the_decision_networks_arithmetic_is_what_it_has(size):
    with torch.device("meta"):
        network = DecisionNetwork(2, 4)
    part = total(decision_parts(2, 4, size))
    assert count_parameters(network)["total"] == part.parameters
    assert count_flops(network, 2, size) / 2 == part.macs


def test_the_network_costs_what_the_arithmetic_says():
    kwargs = arch_kwargs_from_strides([[1, 1, 1], [1, 2, 2]])
    with torch.device("meta"):
        network = MedDANet(4, 4, **kwargs)
    report = cost_report(4, 4, [6, 70, 90], kwargs)
    assert report == complexity_report(network, 4, [6, 70, 90])
    assert report["parameters"]["total"] == sum(PARAMETERS) + 66_220


def test_routing_spends_the_decision_and_what_was_chosen():
    bank, decision = costs(128), total(decision_parts(4, 5, (128, 128)))
    assert spent_macs([3, 0, 0, 0, 0], bank, decision) == 3 * 4_083_200
    assert spent_macs([1, 2, 0, 0, 1], bank, decision) == 4 * 4_083_200 + 2 * MACS_128[0] + MACS_128[3]


def test_the_report_of_a_validation():
    report = spent_report([3, 1, 0, 0, 0], 4, 4, (128, 128), read_bank(PAPER_BANK))
    assert report["ratios"] == [0.75, 0.25, 0, 0, 0]
    assert report["gmacs"] == pytest.approx((4 * 4_083_200 + MACS_128[0]) / 1e9)
    assert report["gmacs_unrouted"] == pytest.approx(4 * MACS_128[3] / 1e9)


def test_sixteen_windows_cover_a_slice_in_the_papers_first_setting():
    """240 pixels, crops of 128, stride 128 // 3: its tables give 16 times the figure of one inference for a slice."""
    offsets = [*range(0, 240 - 128, 128 // 3), 240 - 128]
    assert offsets == [0, 42, 84, 112]
    assert 16 * costs(128)[0].paper / 1e9 == pytest.approx(9.68, abs=0.01)


def test_presets_name_banks_that_can_be_built():
    for name, count in (("n2", 2), ("n4", 4), ("n6", 6)):
        bank = read_bank(PRESETS[name]["candidates"])
        macs = [candidate_cost(candidate, 4, 4, (128, 128)).macs for candidate in bank]
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
