"""The batching predictor against nnU-Net's, what it records of routing, and the command's arguments."""

import json

import pytest
import torch
from contract.trainer import LABELS, STRIDES
from end_to_end.stock import handmade_plans
from med_danet.small import TWO, arch_kwargs
from nnunetv2.inference import predict_from_raw_data as stock
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.med_danet.accounting import EMPTY, case_votes, counts_by_content, validation_report
from nnunet_ext.med_danet.costs import slice_costs
from nnunet_ext.med_danet.network import MedDANet
from nnunet_ext.prediction.sliding_window import LogitRows
from nnunet_ext.trainers.recording import RecordingPredictor, validating_with


class BatchingPredictor(LogitRows, stock.nnUNetPredictor):
    pass


class ByMean(torch.nn.Module):
    """A decision network that reads its choice off the mean of each slice."""

    def forward(self, x):
        wanted = x[:, 0].mean((1, 2)).round().long().clamp(0, 2)
        return 10 * torch.nn.functional.one_hot(wanted, 3).to(x.dtype)


def predictor_of(kind, configuration, network):
    predictor = kind(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    plans = PlansManager(handmade_plans(None, strides=STRIDES))
    axes = (0, 1) if configuration == "2d" else (1, 2)
    predictor.manual_initialization(network, plans, plans.get_configuration(configuration), None, LABELS, "-", axes)
    return predictor


def network_of(configuration):
    torch.manual_seed(0)
    strides = [s[1:] for s in STRIDES] if configuration == "2d" else STRIDES
    network = MedDANet(1, 3, **arch_kwargs(strides, TWO)).eval()
    network.decision = ByMean()
    network.decision_trained.fill_(True)
    return network


def volume(choices, sides=(22, 27)):
    rng = torch.Generator().manual_seed(1)
    noise = 0.1 * torch.randn(1, len(choices), *sides, generator=rng)
    return noise - noise.mean((2, 3), keepdim=True) + torch.tensor(choices).view(1, -1, 1, 1)


@pytest.mark.parametrize("mirror", [True, False])
def test_batches_of_slices_give_the_stock_predictors_logits(mirror):
    network, image = network_of("2d"), volume([0, 1, 2, 1, 0, 2, 2])
    sizes, logits = [], []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for kind in (stock.nnUNetPredictor, BatchingPredictor):
        predictor = predictor_of(kind, "2d", network)
        predictor.use_mirroring = mirror
        logits.append(predictor.predict_sliding_window_return_logits(image))
        sizes.append("next")
    expected, found = logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)
    assert torch.equal(found.argmax(0), expected.argmax(0)) and len(found.argmax(0).unique()) > 1
    border = sizes.index("next")
    passes, tiles = (4 if mirror else 1), 7 * 2 * 3
    assert sizes[:border] == [1] * tiles * passes
    assert sizes[border + 1 : -1] == [16] * 2 * passes + [10] * passes


def test_3d_is_left_to_the_stock_predictor():
    network, image = network_of("3d_fullres"), volume([0, 1, 2] * 4)
    expected, found = (
        predictor_of(kind, "3d_fullres", network).predict_sliding_window_return_logits(image)
        for kind in (stock.nnUNetPredictor, BatchingPredictor)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_each_slice_keeps_what_it_got(configuration):
    choices, sides = [2, 0, 1, 1, 0], (16, 16)  # in 3D one tile of 8 slices: 1 before, 2 after
    predictor = predictor_of(RecordingPredictor, configuration, network_of(configuration))
    predictor.predict_sliding_window_return_logits(volume(choices, sides))
    predictor.predict_sliding_window_return_logits(volume([0, 0, 1], sides))
    (votes, padding), (second, _) = predictor.votes
    assert votes == [[4 * (choice == k) for k in range(3)] for choice in choices]
    assert padding == ([0, 0, 0] if configuration == "2d" else [12, 0, 0])
    assert [row.index(4) for row in second] == [0, 0, 1]
    assert predictor.network.record is None


def test_overlapping_tiles_vote_once_each():
    predictor = predictor_of(RecordingPredictor, "3d_fullres", network_of("3d_fullres"))
    predictor.predict_sliding_window_return_logits(volume([1] * 12, (16, 16)))
    ((votes, padding),) = predictor.votes
    assert [row[1] for row in votes] == [4] * 4 + [8] * 4 + [4] * 4 and padding == [0, 0, 0]


def test_a_record_that_does_not_fit_the_tiles_is_refused():
    assert case_votes([[0, 1], [1, 1]], [[[0], [1]]], 2, 2) == [[1, 1], [0, 2]]
    with pytest.raises(ValueError, match="3 passes"):
        case_votes([[0]] * 3, [[[0]], [[1]]], 2, 2)


def test_the_accounts_of_a_validation():
    with torch.device("meta"):
        network = MedDANet(1, 3, strides=[[1, 1]], candidates=TWO)
    costs = slice_costs(network, (16, 16))
    first = {
        "case": "a",
        "votes": [[4, 0, 0], [1, 3, 0], [0, 0, 4]],
        "padding": [4, 0, 0],
        "areas": {"outer": [0, 5, 7], "inner": [0, 0, 2]},
        "foreground": [0, 5, 9],
    }
    second = {**first, "case": "b", "votes": [[0, 4, 0]] * 3, "padding": [0, 0, 0]}
    report = validation_report([first, second], costs, unet_macs=10**9)
    assert report["by_content"] == {EMPTY: [4, 4, 0], "outer": [1, 11, 4], "inner": [0, 4, 4]}
    assert report["counts"] == [9, 15, 4] and report["slices"] == 28 and report["gmacs_unet"] == 28
    assert [row["counts"] for row in report["cases"]] == [[9, 3, 4], [0, 12, 0]]
    (cheap, large), decision = costs.candidates, costs.decision
    assert report["cases"][0]["gmacs"] * 1e9 == pytest.approx(16 * decision + 3 * cheap + 4 * large)
    assert report["cases"][1]["gmacs_unrouted"] * 1e9 == pytest.approx(12 * large)
    assert json.loads(json.dumps(report)) == report
    assert counts_by_content([[1, 0]], {"outer": [3]}) == {EMPTY: [0, 0], "outer": [1, 0]}


def test_the_trainers_predictor_is_nnunets_again_afterwards():
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

    with pytest.raises(KeyError), validating_with(BatchingPredictor) as made:
        assert module.nnUNetPredictor(device=torch.device("cpu")) is made[0]
        raise KeyError
    assert module.nnUNetPredictor is stock.nnUNetPredictor
