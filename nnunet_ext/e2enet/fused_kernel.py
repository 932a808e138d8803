"""The Triton kernel of `fused.py`, apart from it because Triton is not everywhere."""

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
