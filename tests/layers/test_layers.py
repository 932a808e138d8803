"""Padding, norms, precision and gradients that several methods share."""

import pytest
import torch
from layers.ranks import average_on_one_rank
from torch import nn

from nnunet_ext.layers.norm import SliceNorm
from nnunet_ext.layers.padding import crop, pad_to, pad_to_multiple
from nnunet_ext.layers.precision import without_autocast
from nnunet_ext.layers.unwrap import unwrap


@pytest.mark.parametrize(
    ("size", "steps", "padded"), [((5, 8, 9), (4, 4, 4), (8, 8, 12)), ((7, 16), (8, 4), (8, 16)), ((3,), (3,), (3,))]
)
def test_zeros_come_at_the_end_of_each_axis_and_go_again(size, steps, padded):
    x = torch.rand(2, 3, *size) + 1
    found = pad_to_multiple(x, steps)
    assert found.shape[2:] == padded
    assert torch.equal(crop(found, size), x)
    assert float(found.sum()) == pytest.approx(float(x.sum()))
    assert torch.equal(found, pad_to(x, padded))


def test_what_fits_is_not_copied():
    x = torch.rand(1, 1, 4, 8)
    assert pad_to_multiple(x, (4, 4)) is x and crop(x, (4, 8)) is x


def test_products_keep_their_precision_under_autocast():
    a = torch.rand(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with without_autocast(a.device):
            assert (a @ a).dtype is torch.float32
        assert (a @ a).dtype is torch.bfloat16
    with without_autocast(torch.device("meta")), without_autocast(torch.device("mps")):
        pass


def test_one_value_a_channel_is_normalised_by_the_running_statistics():
    norm = SliceNorm(2).train()
    norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(norm(x), (x - norm.running_mean.view(1, 2, 1, 1)) / (1 + norm.eps) ** 0.5)
    assert int(norm.num_batches_tracked) == 0
    many = torch.rand(3, 2, 2, 2)
    torch.testing.assert_close(norm(many), nn.functional.batch_norm(many, None, None, training=True))


def test_gradients_are_the_mean_over_the_ranks(tmp_path):
    torch.multiprocessing.spawn(average_on_one_rank, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"rank{rank}")
        assert found[3] is None
        assert [float(gradient.flatten()[0]) for gradient in found[:3]] == [1.5, 3.0, 4.5]


def test_wrappers_are_taken_off_in_any_order():
    network = nn.Linear(2, 2)
    assert unwrap(network) is network
    compiled = torch.compile(network, backend="eager")
    assert unwrap(compiled) is network
