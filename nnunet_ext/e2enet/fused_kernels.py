"""The Triton kernels of `fused.py`, apart from it because Triton is not everywhere."""

import triton
import triton.language as tl


@triton.jit
def normalise(  # type: ignore[no-untyped-def]
    z, mean, scale, bias, out, z_channels, out_channels, first, start, count, volume, inner, depth, shift, slope,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out[b, start + c, v] = LeakyReLU(scale (z[b, first + c, v'] - mean) + bias), c < count, v' shifted, 0 outside.

    `z [B, z_channels, volume]`, `out [B, out_channels, volume]`, contiguous; mean, scale and bias `[B z_channels]` in
    float32. A step along the shifted axis, which has `depth` places, is `inner` voxels.
    """
    row = tl.program_id(0).to(tl.int64)
    sample, channel = row // count, row % count
    source = sample * z_channels + first + channel
    target = sample * out_channels + start + channel
    voxel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = voxel < volume
    place = voxel // inner % depth - shift
    there = inside & (place >= 0) & (place < depth)
    value = tl.load(z + source * volume + voxel - shift * inner, mask=there, other=0.0).to(tl.float32)
    value = (value - tl.load(mean + source)) * tl.load(scale + source) + tl.load(bias + source)
    value = tl.where(value > 0, value, value * slope)
    value = tl.where(there, value, 0.0)
    tl.store(out + target * volume + voxel, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _before_activation(z, grad, mean, scale, bias, row, place, inside, slope):  # type: ignore[no-untyped-def]
    """g, the gradient before LeakyReLU where `grad` is the one after, and z - mean; 0 and -mean outside."""
    centred = tl.load(z + place, mask=inside, other=0.0).to(tl.float32) - tl.load(mean + row)
    g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    return tl.where(centred * tl.load(scale + row) + tl.load(bias + row) > 0, g, g * slope), centred


@triton.jit
def sums_of_gradient(  # type: ignore[no-untyped-def]
    z, grad, mean, scale, bias, sums, rows, volume, slope, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of g and of g (z - mean) over the voxels of a block, in `sums [2, rows, blocks]`.

    `z` and `grad [rows, volume]`, contiguous; g is `grad` before LeakyReLU.
    """
    row = tl.program_id(0).to(tl.int64)
    voxel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = voxel < volume
    g, centred = _before_activation(z, grad, mean, scale, bias, row, row * volume + voxel, inside, slope)
    to = sums + row * tl.num_programs(1) + tl.program_id(1)
    tl.store(to, tl.sum(g, 0))
    tl.store(to + rows * tl.num_programs(1), tl.sum(g * centred, 0))


@triton.jit
def gradient(  # type: ignore[no-untyped-def]
    z, grad, mean, scale, bias, each, slant, out, volume, slope, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = scale (g - each - slant (z - mean)), with g as in `sums_of_gradient`; `each` and `slant [rows]`."""
    row = tl.program_id(0).to(tl.int64)
    voxel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = voxel < volume
    g, centred = _before_activation(z, grad, mean, scale, bias, row, row * volume + voxel, inside, slope)
    g = tl.load(scale + row) * (g - tl.load(each + row) - tl.load(slant + row) * centred)
    tl.store(out + row * volume + voxel, g.to(out.dtype.element_ty), mask=inside)
