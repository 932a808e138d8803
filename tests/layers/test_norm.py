"""BatchNorm that is given the statistics of some data."""

import pytest
import torch
from torch import nn

from nnunet_ext.layers.norm import SliceNorm, settle_statistics


def test_settled_statistics_are_those_of_the_data_under_the_weights():
    torch.manual_seed(0)
    part = nn.Sequential(
        nn.Conv2d(1, 3, 3), SliceNorm(3), nn.ReLU(), nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, momentum=None)
    )
    for module in (part[1], part[4]):
        module.running_mean.fill_(9)
        module.running_var.fill_(9)
    before = [p.clone() for p in part.parameters()]
    part.eval()
    x = torch.randn(5, 1, 8, 8)
    settle_statistics(part, x)
    assert not part.training and not part[1].training
    assert (part[1].momentum, part[4].momentum) == (0.1, None)
    assert all(torch.equal(a, b) for a, b in zip(before, part.parameters(), strict=True))
    with torch.no_grad():
        first = part[0](x)
        mean, variance = first.mean((0, 2, 3)), first.var((0, 2, 3))
        torch.testing.assert_close(part[1].running_mean, mean)
        torch.testing.assert_close(part[1].running_var, variance)
        normed = (first - mean.view(1, -1, 1, 1)) / (first.var((0, 2, 3), correction=0).view(1, -1, 1, 1) + 1e-5).sqrt()
        second = part[3](normed.relu())
        torch.testing.assert_close(part[4].running_mean, second.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)


def test_a_part_that_fails_gets_its_momentum_back():
    part = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(3, 1, 1)).eval()
    with pytest.raises(RuntimeError):
        settle_statistics(part, torch.randn(2, 2, 4, 4))
    assert part[0].momentum == 0.1 and not part.training
