"""The Triton kernels of `grouped.py`, apart from it because Triton is not everywhere.

Sizes as there: up to three sources `[B, channels_i, D, H, W]`, of which concatenated channel c is `table[c]` (source,
channel in it, shift along `axis`); groups of `block` outputs that read `fan_in` channels each, `inputs [G, fan_in]`;
values `[G, block, fan_in, taps]`, taps in the order of kernel `[KD, KH, KW]`, of odd sizes.
"""

import triton
import triton.language as tl


@triton.jit
def _channels(inputs, table, group, fan_in, k):  # type: ignore[no-untyped-def]
    """Of the slots `k` of a group: whether there is one, source, channel, shift."""
    there = k < fan_in
    channel = tl.load(inputs + group * fan_in + k, mask=there, other=0)
    return there, tl.load(table + 3 * channel), tl.load(table + 3 * channel + 1), tl.load(table + 3 * channel + 2)


@triton.jit
def _moved(v, tap, shift, sign, axis, D, H, W, KH: tl.constexpr, KW: tl.constexpr, KD: tl.constexpr):  # type: ignore[no-untyped-def]
    """Voxels `v` moved by a tap's offset and against the shift (`sign` 1), or back (-1); whether they are inside."""
    d = v // (H * W) + sign * (tap // (KH * KW) - KD // 2)
    h = v // W % H + sign * (tap // KW % KH - KH // 2)
    w = v % W + sign * (tap % KW - KW // 2)
    d -= sign * tl.where(axis == 0, shift, 0)
    h -= sign * tl.where(axis == 1, shift, 0)
    w -= sign * tl.where(axis == 2, shift, 0)
    inside = (d >= 0) & (d < D) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    return (d * H + h) * W + w, inside


@triton.jit
def _inputs(  # type: ignore[no-untyped-def]
    x0, x1, x2, c0, c1, c2, sample, v, tap, there, source, channel, shift, axis, D, H, W,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr,
):  # fmt: skip
    """What slots read for voxels `v` and a tap, `[voxels, slots]`, 0 outside; where in their channels; if inside."""
    volume = D * H * W
    there, source, channel, shift = there[None, :], source[None, :], channel[None, :], shift[None, :]
    place, inside = _moved(v[:, None], tap, shift, 1, axis, D, H, W, KH, KW, KD)
    inside = inside & (v < volume)[:, None] & there
    value = tl.load(x0 + (sample * c0 + channel) * volume + place, mask=inside & (source == 0), other=0.0)
    value += tl.load(x1 + (sample * c1 + channel) * volume + place, mask=inside & (source == 1), other=0.0)
    value += tl.load(x2 + (sample * c2 + channel) * volume + place, mask=inside & (source == 2), other=0.0)
    return value, place, inside


@triton.jit
def _weights(values, group, block, fan_in, o, k, tap, KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr):  # type: ignore[no-untyped-def]
    """`values` of outputs `o` and slots `k`, which broadcast, for a tap; 0 where there are none."""
    at = ((group * block + o) * fan_in + k) * (KD * KH * KW) + tap
    return tl.load(values + at, mask=(o < block) & (k < fan_in), other=0.0)


@triton.jit
def _outputs(grad, sample, groups, group, block, o, place, volume, inside):  # type: ignore[no-untyped-def]
    """`grad` of outputs `o` at `place`, which broadcast; 0 where there are none or not inside."""
    at = (sample * groups * block + group * block + o) * volume + place
    return tl.load(grad + at, mask=inside & (o < block), other=0.0)


@triton.jit
def convolution(  # type: ignore[no-untyped-def]
    x0, x1, x2, c0, c1, c2, values, bias, inputs, table, out, axis, D, H, W, groups, block, fan_in,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, VOXELS: tl.constexpr, OUTPUTS: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """out[b, g block + o, v] = bias + the sum over slots k and taps t of values[g, o, k, t] x[b, channel k, v + t]."""
    group, sample, volume = tl.program_id(1), tl.program_id(2).to(tl.int64), D * H * W
    v = tl.program_id(0) * VOXELS + tl.arange(0, VOXELS)
    o = tl.arange(0, OUTPUTS)
    sums = tl.zeros((VOXELS, OUTPUTS), tl.float32)
    for start in range(0, fan_in, SLOTS):
        k = start + tl.arange(0, SLOTS)
        there, source, channel, shift = _channels(inputs, table, group, fan_in, k)
        for tap in range(KD * KH * KW):
            x, _, _ = _inputs(
                x0, x1, x2, c0, c1, c2, sample, v, tap, there, source, channel, shift, axis, D, H, W, KD, KH, KW
            )
            weight = _weights(values, group, block, fan_in, o[None, :], k[:, None], tap, KD, KH, KW)
            sums = tl.dot(x, weight, sums, input_precision="ieee")
    sums += tl.load(bias + group * block + o, mask=o < block, other=0.0).to(tl.float32)[None, :]
    to = (sample * groups * block + group * block + o[None, :]) * volume + v[:, None]
    tl.store(out + to, sums.to(out.dtype.element_ty), mask=(v < volume)[:, None] & (o < block)[None, :])


@triton.jit
def add_gradient_of_sources(  # type: ignore[no-untyped-def]
    x0, x1, x2, c0, c1, c2, values, inputs, table, grad, axis, D, H, W, group, groups, block, fan_in,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, VOXELS: tl.constexpr, OUTPUTS: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """Adds what one group gives to the gradients `x_i` of the sources; a channel has one slot at most in it."""
    sample, volume = tl.program_id(2).to(tl.int64), D * H * W
    v = tl.program_id(0) * VOXELS + tl.arange(0, VOXELS)
    k = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    o = tl.arange(0, OUTPUTS)
    there, source, channel, shift = _channels(inputs, table, group, fan_in, k)
    sums = tl.zeros((VOXELS, SLOTS), tl.float32)
    for tap in range(KD * KH * KW):
        # Of concatenated voxels, which slots have in common before they are shifted.
        place, inside = _moved(v, tap, 0, -1, axis, D, H, W, KH, KW, KD)
        seen = (inside & (v < volume))[:, None]
        g = _outputs(grad, sample, groups, group, block, o[None, :], place[:, None], volume, seen)
        weight = _weights(values, group, block, fan_in, o[:, None], k[None, :], tap, KD, KH, KW)
        sums = tl.dot(g, weight, sums, input_precision="ieee")
    # Concatenated voxel v is voxel v - shift of the source.
    middle = KD * KH * KW // 2
    before, place, inside = _inputs(
        x0, x1, x2, c0, c1, c2, sample, v, middle, there, source, channel, shift, axis, D, H, W, KD, KH, KW
    )
    source, channel = source[None, :], channel[None, :]
    value = (sums + before.to(tl.float32)).to(x0.dtype.element_ty)
    tl.store(x0 + (sample * c0 + channel) * volume + place, value, mask=inside & (source == 0))
    tl.store(x1 + (sample * c1 + channel) * volume + place, value, mask=inside & (source == 1))
    tl.store(x2 + (sample * c2 + channel) * volume + place, value, mask=inside & (source == 2))


@triton.jit
def gradient_of_values(  # type: ignore[no-untyped-def]
    x0, x1, x2, c0, c1, c2, inputs, table, grad, out, axis, D, H, W, groups, block, fan_in, chunks, CHUNK,
    KD: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, VOXELS: tl.constexpr, OUTPUTS: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """The gradient of values of the `CHUNK` voxels of a sample, in `out [B chunks, G, block, fan_in, taps]`."""
    tap = tl.program_id(1) % (KD * KH * KW)
    group = tl.program_id(1) // (KD * KH * KW)
    part, volume = tl.program_id(0), D * H * W
    sample = (part // chunks).to(tl.int64)
    k = tl.program_id(2) * SLOTS + tl.arange(0, SLOTS)
    o = tl.arange(0, OUTPUTS)
    there, source, channel, shift = _channels(inputs, table, group, fan_in, k)
    sums = tl.zeros((OUTPUTS, SLOTS), tl.float32)
    for start in range(0, CHUNK, VOXELS):
        v = part % chunks * CHUNK + start + tl.arange(0, VOXELS)
        x, _, _ = _inputs(
            x0, x1, x2, c0, c1, c2, sample, v, tap, there, source, channel, shift, axis, D, H, W, KD, KH, KW
        )
        g = _outputs(grad, sample, groups, group, block, o[:, None], v[None, :], volume, (v < volume)[None, :])
        sums = tl.dot(g, x, sums, input_precision="ieee")
    at = ((part.to(tl.int64) * groups + group) * block + o[:, None]) * fan_in + k[None, :]
    tl.store(out + at * (KD * KH * KW) + tap, sums, mask=(o < block)[:, None] & there[None, :])
