"""The depth shift, against hand-written examples and against a formulation voxel by voxel."""

import itertools

import pytest
import torch

from nnunet_ext.e2enet.depth_shift import channel_shifts, depth_shift, group_sizes, shifted_concat

SPLITS = ("balanced", "reference")


def shift_of_channel(channel, channels, shift_size, split):
    """By how many slices this channel moves: channels go to groups by torch's own two ways of splitting."""
    groups = 2 * shift_size + 1
    if split == "balanced" and channels < groups:
        return 0
    parts = (torch.chunk if split == "reference" else torch.tensor_split)(torch.arange(channels), groups)
    return next(k for k, part in enumerate(parts) if channel in part) - shift_size


def slow_shift(x, shift_size, axis, split):
    out = torch.zeros_like(x)
    for c in range(x.shape[1]):
        shift = shift_of_channel(c, x.shape[1], shift_size, split)
        for d in range(x.shape[axis + 2]):
            if 0 <= d - shift < x.shape[axis + 2]:
                out[:, c].select(axis + 1, d).copy_(x[:, c].select(axis + 1, d - shift))
    return out


def numbered(channels, depth):
    """x[c, d] = 10 c + d."""
    return torch.tensor([[10.0 * c + d for d in range(depth)] for c in range(channels)]).view(1, channels, depth, 1, 1)


def test_three_channels_see_the_next_their_own_and_the_previous_slice():
    assert depth_shift(numbered(3, 4)).flatten(2)[0].tolist() == [[1, 2, 3, 0], [10, 11, 12, 13], [0, 20, 21, 22]]


def test_a_volume_of_one_slice_keeps_only_the_middle_group():
    assert depth_shift(numbered(3, 1)).flatten().tolist() == [0, 10, 0]


def test_a_volume_of_two_slices_loses_one_of_them():
    assert depth_shift(numbered(3, 2)).flatten(2)[0].tolist() == [[1, 0], [10, 11], [0, 20]]


def test_a_shift_beyond_the_volume_leaves_zeros():
    assert depth_shift(numbered(5, 1), shift_size=2).flatten().tolist() == [0, 0, 20, 0, 0]
    out = depth_shift(numbered(5, 2), shift_size=2).flatten(2)[0]
    assert out.tolist() == [[0, 0], [11, 0], [20, 21], [0, 30], [0, 0]]


@pytest.mark.parametrize(
    ("channels", "reference", "balanced"),
    [
        (1, [1], [1, 0, 0]),
        (2, [1, 1], [1, 1, 0]),
        (3, [1, 1, 1], [1, 1, 1]),
        (4, [2, 2], [2, 1, 1]),
        (5, [2, 2, 1], [2, 2, 1]),
        (320, [107, 107, 106], [107, 107, 106]),
        (832, [278, 278, 276], [278, 277, 277]),
        *[(c, [c // 3] * 3, [c // 3] * 3) for c in (48, 96, 192, 240, 480, 960)],
    ],
)
def test_group_sizes_of_three_groups(channels, reference, balanced):
    assert group_sizes(channels, 3, "reference") == reference
    assert group_sizes(channels, 3, "balanced") == balanced


@pytest.mark.parametrize("groups", [1, 3, 5, 7])
@pytest.mark.parametrize("channels", range(1, 40))
def test_groups_are_cut_as_torch_cuts(channels, groups):
    x = torch.arange(channels)
    assert group_sizes(channels, groups, "reference") == [len(part) for part in torch.chunk(x, groups)]
    assert group_sizes(channels, groups, "balanced") == [len(part) for part in torch.tensor_split(x, groups)]


@pytest.mark.parametrize("channels", [1, 2])
def test_an_image_of_fewer_channels_than_groups_stays_where_it_is(channels):
    x = numbered(channels, 4)
    assert torch.equal(depth_shift(x), x)


def test_the_reference_split_displaces_a_single_channel_as_a_whole():
    assert channel_shifts(1, 1, "reference") == [(1, -1)]
    assert depth_shift(numbered(1, 4), split="reference").flatten().tolist() == [1, 2, 3, 0]


def test_shift_size_zero_is_the_identity():
    x = numbered(7, 4)
    assert torch.equal(depth_shift(x, shift_size=0), x)
    assert channel_shifts(7, 0) == []


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("shift_size", "axis"), itertools.product(range(4), range(3)))
def test_every_voxel_comes_from_where_the_slow_formulation_takes_it(shift_size, axis, split):
    for channels in range(1, 13):
        x = torch.randn(2, channels, 5, 4, 3)
        found = depth_shift(x, shift_size, axis, split)
        assert torch.equal(found, slow_shift(x, shift_size, axis, split)), f"{channels} channels"


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("widths", [(4, 4, 2), (1, 1), (5, 3, 3), (2, 9), (3, 3, 3), (7,)])
@pytest.mark.parametrize("shift_size", [1, 2])
def test_concatenation_and_shift_in_one_pass_equal_the_shift_of_the_concatenation(widths, split, shift_size):
    sources = [torch.randn(2, width, 4, 3, 5) for width in widths]
    shifts = channel_shifts(sum(widths), shift_size, split)
    for axis in range(3):
        expected = slow_shift(torch.cat(sources, 1), shift_size, axis, split)
        assert torch.equal(shifted_concat(sources, shifts, axis), expected)


def test_concatenation_without_shifts_is_torchs_own():
    sources = [torch.randn(1, width, 2, 2, 2) for width in (2, 3)]
    assert torch.equal(shifted_concat(sources, []), torch.cat(sources, 1))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("shift_size", "axis"), [(1, 0), (1, 2), (2, 1)])
def test_gradients_equal_those_of_the_slow_formulation(shift_size, axis, split):
    sources = [torch.randn(2, width, 4, 3, 5, dtype=torch.double, requires_grad=True) for width in (4, 4, 3)]
    weight = torch.randn(2, 11, 4, 3, 5, dtype=torch.double)
    shifts = channel_shifts(11, shift_size, split)
    found = torch.autograd.grad((shifted_concat(sources, shifts, axis) * weight).sum(), sources)
    expected = torch.autograd.grad((slow_shift(torch.cat(sources, 1), shift_size, axis, split) * weight).sum(), sources)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradients_agree_with_finite_differences():
    sources = tuple(torch.randn(1, width, 3, 2, 2, dtype=torch.double, requires_grad=True) for width in (2, 3))
    shifts = channel_shifts(5, 1)
    assert torch.autograd.gradcheck(lambda *s: shifted_concat(list(s), shifts).sin(), sources)


def test_sources_of_different_precision_are_promoted_and_get_gradients_of_their_own():
    half = torch.randn(1, 3, 2, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    full = torch.randn(1, 3, 2, 2, 2, requires_grad=True)
    out = shifted_concat([half, full], channel_shifts(6, 1))
    assert out.dtype == torch.float32
    out.sum().backward()
    assert (half.grad.dtype, full.grad.dtype) == (torch.bfloat16, torch.float32)


def test_non_contiguous_input_is_shifted_as_well():
    x = torch.randn(2, 4, 5, 6, 6).transpose(2, 4)
    assert torch.equal(depth_shift(x), slow_shift(x, 1, 0, "balanced"))


def test_the_input_is_left_as_it_was():
    x = numbered(3, 4)
    before = x.clone()
    depth_shift(x).mul_(0)
    assert torch.equal(x, before)
