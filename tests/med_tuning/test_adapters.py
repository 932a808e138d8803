"""The Med-Adapter: its frequency branch in both forms, its branches, its interaction between stages, its start."""

import math

import pytest
import torch
import torch.nn.functional as F

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.med_tuning.adapters import (
    DepthwiseConv,
    FrequencyBranch,
    Interaction,
    MedAdapter,
    PointwiseConv,
    SeparableBranch,
    hidden_width,
)


def branches(slices, seed=0):
    """The two forms with the same weights, not the symmetric ones at the start."""
    torch.manual_seed(seed)
    circulant, fft = FrequencyBranch(slices), FrequencyBranch(slices, "fft")
    with torch.no_grad():
        for parameter in circulant.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    fft.load_state_dict(circulant.state_dict(), strict=True)
    return circulant, fft


def filled(module, seed=0):
    """Every parameter random, so that nothing is zero by its start."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3)
    return module


def differences(slices, dtype, least=0.0):
    """Of output and gradients between the two forms, relative to the largest value.

    Gradients flow from magnitudes above `least` only: that of a magnitude near zero is its phase, which is as inexact
    as the magnitude is small.
    """
    circulant, fft = (branch.to(dtype) for branch in branches(slices, seed=slices))
    z = torch.randn(1, 3, slices, 3, 2, dtype=dtype)
    mine, theirs = z.clone().requires_grad_(), z.clone().requires_grad_()
    found, expected = circulant(mine), fft(theirs)
    upstream = torch.randn_like(z) * (expected.detach() > least)
    found.backward(upstream)
    expected.backward(upstream)
    pairs = zip((mine, *circulant.parameters()), (theirs, *fft.parameters()), strict=True)
    gradients = max(float((one.grad - other.grad).abs().max() / other.grad.abs().max()) for one, other in pairs)
    return float((found - expected).detach().abs().max() / expected.detach().max()), gradients


def test_both_forms_of_the_frequency_branch_agree():
    for slices in range(1, 131):
        output, gradient = differences(slices, torch.float32, least=0.1)
        assert output <= 1e-6 and gradient <= 1e-5, (slices, output, gradient)


@pytest.mark.parametrize("slices", [1, 2, 31, 64, 129])
def test_both_forms_agree_in_float64_everywhere(slices):
    assert max(differences(slices, torch.float64)) <= 1e-11


@pytest.mark.parametrize("form", ["circulant", "fft"])
@pytest.mark.parametrize("slices", [1, 4, 7])
def test_the_frequency_branch_is_the_papers_equation_written_out(form, slices):
    """Sums over all voxels and all frequencies, term by term, in float64."""
    branch = dict(zip(("circulant", "fft"), branches(slices), strict=True))[form].double()
    z = torch.randn(1, 2, slices, 2, 3, dtype=torch.float64)
    sizes = z.shape[2:]
    waves = []
    for size in sizes:
        turns = [[-2 * math.pi * n * k / size for n in range(size)] for k in range(size)]
        waves.append(torch.exp(1j * torch.tensor(turns, dtype=torch.float64)))
    spectrum = torch.einsum("bcdhw,xd,yh,zw->bcxyz", z.to(torch.complex128), *waves)
    spectrum = spectrum * branch.weight + branch.bias
    expected = torch.einsum("bcxyz,xd,yh,zw->bcdhw", spectrum, *[wave.conj() for wave in waves]) / math.prod(sizes)
    torch.testing.assert_close(branch(z), expected.abs(), atol=1e-12, rtol=1e-12)


def test_the_constants_of_the_filter_are_exact_in_any_precision_and_not_stored():
    branch = FrequencyBranch(7)
    assert set(branch.state_dict()) == {"weight", "bias"}
    exact = FrequencyBranch(7).double()
    changed = FrequencyBranch(7).float().double(), FrequencyBranch(7).half().float()
    for one, other in zip(changed, (exact, branch), strict=True):
        assert torch.equal(one.waves, other.waves) and torch.equal(one.turned, other.turned)
    n = torch.arange(7, dtype=torch.float64)
    assert torch.allclose(exact.waves[:7], (2 * math.pi * torch.outer(n, n) / 7).cos(), atol=1e-14)
    with torch.device("meta"):
        shadow = FrequencyBranch(7)
    torch.testing.assert_close(shadow.to_empty(device="cpu").waves, branch.waves)


@pytest.mark.parametrize("form", ["circulant", "fft"])
@pytest.mark.parametrize("slices", [1, 6, 128])
def test_at_the_start_it_is_the_magnitude_with_one_added_to_the_first_token(form, slices):
    z = torch.randn(2, 3, slices, 4, 5)
    shifted = z.clone()
    shifted[:, :, 0, 0, 0] += 1
    torch.testing.assert_close(FrequencyBranch(slices, form)(z), shifted.abs(), atol=1e-6, rtol=1e-6)


def test_it_is_a_circular_filter_along_the_slices_of_every_channel_and_pixel():
    branch = branches(9)[0]
    with torch.no_grad():
        branch.bias.zero_()
    z = torch.randn(1, 1, 9, 1, 1)
    kernel = torch.complex(*branch.kernel())
    expected = [abs(sum(kernel[(d - e) % 9] * z[0, 0, e, 0, 0] for e in range(9))) for d in range(9)]
    torch.testing.assert_close(branch(z).flatten(), torch.stack(expected), atol=1e-6, rtol=1e-6)
    elsewhere = branch(F.pad(z, (2, 0, 1, 0)))
    torch.testing.assert_close(elsewhere[0, 0, :, 1, 2], branch(z).flatten())


def test_gradients_are_finite_where_the_magnitude_is_zero():
    branch = FrequencyBranch(4)
    z = torch.zeros(1, 2, 4, 2, 2, requires_grad=True)
    branch(z).sum().backward()
    assert z.grad.isfinite().all() and branch.weight.grad.isfinite().all()


def test_the_frequency_branch_works_in_float32_under_autocast():
    branch = branches(64)[0]
    z = (torch.randn(1, 2, 64, 4, 4) + 30).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = branch(z)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, branch(z.float()).bfloat16(), atol=0, rtol=0)


def test_circulant_form_has_no_complex_numbers():
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            seen.append(isinstance(out, torch.Tensor) and out.is_complex())
            return out

    with Watch():
        FrequencyBranch(6)(torch.randn(1, 2, 6, 2, 2, requires_grad=True)).sum().backward()
    assert seen and not any(seen)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("last", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("size", [None, (1, 5, 5), (3, 1, 1)])
def test_convolutions_in_2d_and_linear_layers_are_the_3d_ones(batch, last, size):
    """Values, gradients and the order in memory, which must not have to be changed before the next layer."""
    if size is None:
        conv = PointwiseConv(4, 6).double()
    else:
        pad = [side // 2 for side in size]
        conv = DepthwiseConv(4, 4, size, padding=pad, groups=4).double()
    x = torch.randn(batch, 4, 3, 5, 6, dtype=torch.float64).contiguous(memory_format=last).requires_grad_()
    found, expected = conv(x), torch.nn.Conv3d.forward(conv, x)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(expected)
    inputs = (x, conv.weight, conv.bias)
    for mine, theirs in zip(*(torch.autograd.grad(y, inputs, upstream) for y in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)
    if last is torch.channels_last_3d:
        assert found.is_contiguous(memory_format=last)


def test_separable_convolutions_are_one_with_the_outer_product_of_their_kernels():
    branch = filled(SeparableBranch(2, 5)).eval()
    planar, axial, norm = branch[0], branch[1], branch[2]
    with torch.no_grad():
        planar.bias.zero_()  # else the axial convolution's zeros at the ends are not its padding's
    kernel = axial.weight * planar.weight
    assert kernel.shape == (2, 1, 5, 5, 5)
    z = torch.randn(1, 2, 7, 6, 8)
    expected = F.relu(norm(F.conv3d(z, kernel, axial.bias, padding=2, groups=2)))
    torch.testing.assert_close(branch(z), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["concat", "add", "max"])
def test_the_first_stage_takes_in_zeros(mode):
    for stride, previous in ((1, 4), (2, 2)):
        interaction = filled(Interaction(4, previous, stride, mode))
        x = torch.randn(2, 4, 3, 5, 6)
        zeros = torch.zeros(2, previous, 3, 5 * stride, 6 * stride)
        torch.testing.assert_close(interaction(x, None), interaction(x, zeros))
        interaction(x, None).sum().backward()
        assert not interaction.align.weight.grad.any()
        assert interaction.align.bias.grad.any()


def test_an_adapter_is_its_equations_written_out():
    adapter = filled(MedAdapter(10, 4, 3, interaction="concat", previous=2, stride=2)).eval()
    x, before = torch.randn(2 * 3, 4, 5, 10), torch.randn(2, 2, 3, 8, 10)
    z = F.gelu(adapter.down(x)).reshape(2, 3, 4, 5, 4).permute(0, 4, 1, 2, 3).contiguous()
    parts = adapter.branches
    mixed = adapter.mix(parts["conv3"](z) + parts["conv5"](z) + parts["frequency"](z))
    fused = adapter.interaction.fuse(torch.cat([mixed, adapter.interaction.align(before)], 1))
    expected = x + F.gelu(adapter.up((z + fused).permute(0, 2, 3, 4, 1).reshape(6, 4, 5, 4)))
    found, handed_on = adapter(x, before)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(handed_on, fused, atol=1e-5, rtol=1e-5)


def test_adapters_within_a_stage_hand_on_what_they_get():
    adapter, before = MedAdapter(10, 4, 3), torch.randn(2, 2, 3, 8, 10)
    assert adapter(torch.randn(6, 4, 5, 10), before)[1] is before
    assert adapter(torch.randn(6, 4, 5, 10), None)[1] is None


def test_an_adapter_starts_as_the_identity_and_learns_from_the_first_step_on():
    x = torch.randn(6, 4, 5, 10)
    adapter = MedAdapter(10, 4, 3)
    out = adapter(x, None)[0]
    assert torch.equal(out, x)
    out.sin().sum().backward()
    assert adapter.up.weight.grad.any() and adapter.up.bias.grad.any()
    assert not torch.equal(MedAdapter(10, 4, 3, zero_init=False)(x, None)[0], x)


def test_slices_of_different_volumes_do_not_mix():
    adapter = filled(MedAdapter(10, 4, 3)).eval()
    x = torch.randn(2, 3, 4, 5, 10)
    both = adapter(x.flatten(0, 1), None)[0].unflatten(0, (2, 3))
    for number in range(2):
        torch.testing.assert_close(adapter(x[number], None)[0], both[number], atol=1e-5, rtol=1e-5)
    changed = x.clone()
    changed[0, 0] += 1
    assert not torch.equal(adapter(changed.flatten(0, 1), None)[0][2], both[0, 2]), "slices of one volume do"


@pytest.mark.parametrize(("width", "alpha", "expected"), [(768, 6, 128), (96, 5, 19), (100, 7.5, 13), (8, 8, 1)])
def test_widths_inside_are_rounded_down(width, alpha, expected):
    assert hidden_width(width, alpha) == expected


@pytest.mark.parametrize("alpha", [0, 0.5, -2, 97, True, "6", None])
def test_bad_alphas_are_refused(alpha):
    with pytest.raises(ConfigurationError, match="'alpha' must be a number from 1 to the backbone's width 96"):
        hidden_width(96, alpha)
