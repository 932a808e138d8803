"""A network and an input size as a list of layers for the engine: volumes in one arena, weights in compressed rows."""

import ctypes
import math
import mmap
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.e2enet.blocks import NEGATIVE_SLOPE  # of every LeakyReLU, which the layers that read a volume apply
from nnunet_ext.e2enet.masked import Connections, SparseConnections
from nnunet_ext.e2enet.packed.library import Channel, Layer, engine, instruction_set, stored_type

CONVOLUTION, POINTWISE, POOLING = range(3)
CHANNEL_PAIRS, ROW_PAIRS = 1, 2  # what is multiplied together in bfloat16
ROWS = {1: 8, 2: 8}  # output rows of a block by vertical stride, 2 for larger strides; as in engine.cpp
CHUNK = 16
CACHE_LINE = 32
ITEMS_PER_THREAD = 4
DENSE = 0.75  # share of active connections from which all are multiplied: 3 products for any, 4 for an active one
# Weights of a kernel of three taps at the points of a tile (Lavin and Gray, arXiv 1509.09308): rows of G.
TRANSFORMS: dict[int, list[list[float]]] = {
    1: [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}


@dataclass
class Volume:
    """Channels `[C, H, W, lanes]` at `start` (floats into the arena); `normed`: where scale and offset stand.

    `width` is that of a segment. `row` and `plane` count elements of `item` bytes, 4 or 2.
    """

    start: int
    channels: int
    height: int
    width: int
    depth: int
    lanes: int
    row: int  # from a row to the next
    plane: int  # from a channel to the next
    item: int
    normed: tuple[int, int] | None = None

    def over(self, stride: Sequence[int]) -> tuple[int, int, int]:
        """(depth, height, width) of the volume after a layer of this stride."""
        return self.depth // stride[0], self.height // stride[1], self.width // stride[2]


class Weights:
    """The network's weights as the engine reads them; for one state of the network."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[Tensor, Tensor, Tensor]] = {}

    def of_convolution(self, conv: Any, axis: int, tile: int, pairs: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """(starts, inputs, weights) of a convolution whose kernel is 1 along `axis`.

        Weights are float32 `[points, active, 3]`, or bfloat16 in pairs: `[points, outputs * pairs, 3, 2]` of channels,
        where starts count pairs, `[points, active, 4, 2]` of rows.
        """
        key = conv, tile, pairs
        if key not in self._made:
            rows = connections(conv)
            kernels = rows.kernels.double().squeeze(axis + 1)  # [active, 3, 3]
            weights = torch.einsum("nhw,jw->jnh", kernels, torch.tensor(TRANSFORMS[tile], dtype=torch.float64))
            if pairs == CHANNEL_PAIRS:
                outputs = len(rows.starts) - 1
                counts = rows.starts.diff()
                whole = weights.new_zeros(len(weights), outputs, _up(conv.in_channels, 2), 3)
                whole[:, torch.arange(outputs).repeat_interleave(counts), rows.inputs] = weights
                weights = whole.unflatten(2, (-1, 2)).transpose(3, 4).flatten(1, 2)
                starts = torch.arange(outputs + 1) * (whole.shape[2] // 2)
                rows = rows._replace(starts=starts, inputs=rows.inputs[:0])
            elif pairs == ROW_PAIRS:
                k0, k1, k2 = weights.unbind(2)
                zero = torch.zeros_like(k0)
                weights = torch.stack([k0, k1, k2, zero, zero, k0, k1, k2], 2)
            if pairs:
                weights = _bfloat16_pairs(weights)
            self._made[key] = _ready(rows, weights)
        return self._made[key]

    def of_taps(self, conv: nn.Module, axis: int, group: int, pairs: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """(starts, inputs, weights `[taps / group, active, group]`), the tap along `axis` running fastest.

        `pairs`: of an output's connections (starts then count pairs, inputs are `[pairs, 2]`), with weights of bfloat16
        `[taps / group, pairs, group, 2]`; where their number is odd, the last one's partner is channel 0 with weight 0.
        """
        key = conv, pairs
        if key not in self._made:
            rows = connections(conv)
            kernels = rows.kernels.movedim(axis + 1, -1)
            taps = kernels[0].numel() if len(kernels) else math.prod(kernels.shape[1:])
            weights = kernels.reshape(len(kernels), taps // group, group).transpose(0, 1)
            if pairs:
                counts = rows.starts.diff()
                starts = torch.cat([rows.starts[:1], ((counts + 1) // 2).cumsum(0)])
                place = torch.arange(len(kernels)) + (2 * starts - rows.starts)[:-1].repeat_interleave(counts)
                inputs = torch.zeros(2 * int(starts[-1]), dtype=torch.int64)
                inputs[place] = rows.inputs
                whole = weights.new_zeros(len(weights), len(inputs), group)
                whole[:, place] = weights
                weights = _bfloat16_pairs(whole.unflatten(1, (-1, 2)).transpose(2, 3))
                rows = rows._replace(starts=starts, inputs=inputs)
            self._made[key] = _ready(rows, weights)
        return self._made[key]


def connections(conv: Any) -> Connections:
    """The rows of a convolution, masked or dense."""
    if isinstance(conv, SparseConnections):
        return conv.active_connections()
    weight = conv.weight.detach()
    if isinstance(conv, nn.ConvTranspose3d):
        weight = weight.transpose(0, 1)
    outputs, inputs = weight.shape[:2]
    starts = torch.arange(outputs + 1) * inputs
    return Connections(starts, torch.arange(inputs).repeat(outputs), weight.reshape(-1, *weight.shape[2:]))


def _ready(rows: Connections, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return rows.starts.int().contiguous(), rows.inputs.int().contiguous(), weights.float().contiguous()


def _bfloat16_pairs(weights: Tensor) -> Tensor:
    """Weights `[..., 2]`, rounded to bfloat16, as the engine's floats of 32 bits, flat."""
    return weights.to(torch.bfloat16).flatten().view(torch.float32)


class Arena:
    """Floats for everything that a run writes. A volume that was given back is used again for one of its size."""

    def __init__(self, margin: int) -> None:
        self.margin = margin  # before and after each volume, so that shifted reads stay inside
        self._size = 0
        self._free: dict[int, list[int]] = defaultdict(list)

    def take(self, floats: int, whole_run: bool = False) -> int:
        """Start of `floats` floats, a multiple of 16. `whole_run`: never what a volume had before."""
        if self._free[floats] and not whole_run:
            return self._free[floats].pop()
        start = self._size + self.margin
        self._size = _up(start + floats + self.margin, 16)
        return start

    def give_back(self, start: int, floats: int) -> None:
        """The floats may be used again."""
        self._free[floats].append(start)

    def allocate(self) -> Tensor:
        """The memory itself, in huge pages where the system has them; zeros."""
        size = max(4 * self._size, mmap.PAGESIZE)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(memory, dtype=torch.float32)


def width_segments(sizes: Sequence[Sequence[int]], features: Sequence[int], vector: int, batch: int) -> int:
    """Into how many segments the width is cut, so that vectors of `vector` floats are filled.

    The work of a level is taken as its positions, in whole tiles and vectors, times its features squared.

    Args:
        sizes: (depth, height, width) of each level.
        features: of each level.
        vector: floats.
        batch: copies that share the vectors.
    """

    def work(segments: int) -> float:
        total = 0.0
        for (depth, height, width), count in zip(sizes, features, strict=True):
            points = min(math.ceil(width / segments / t) * len(TRANSFORMS[t]) for t in TRANSFORMS)
            total += _up(batch * segments * depth, vector) * height * points * count**2
        return total

    narrowest = min(width for _, _, width in sizes)
    return min((k for k in range(1, min(narrowest, vector) + 1) if narrowest % k == 0), key=work)


class Program:
    """The layers of one network for inputs `[B, C, *size]`, where `size` is a multiple of the total strides."""

    def __init__(
        self, network: Any, weights: Weights, batch: int, size: Sequence[int], threads: int, item: int = 4
    ) -> None:
        self.weights, self.batch, self.threads, self.item = weights, batch, threads, item
        block = network.backbone[0][0]
        self.axis = block.shift_axis
        self.dots, self.stored = bool(engine(item).packed_dots()), stored_type(item)
        self.vector = instruction_set()[0]
        self.strides = [self._ordered(stride) for stride in network.strides]
        shift = max((abs(s) for b in network.modules() for _, s in getattr(b, "shifts", [])), default=0)
        deepest = max(stride[0] for stride in self.strides)
        sizes = [self._ordered(size)]
        for deep, high, wide in self.strides:
            depth, height, width = sizes[-1]
            sizes.append((depth // deep, height // high, width // wide))
        self.segments = width_segments(sizes[1:], network.features_per_stage, self.vector, batch)
        border = sizes[0][0] if self.segments > 1 else 0  # lanes to a voxel in the next segment
        self.arena = Arena(_up(shift + border + (deepest + 1) * self.vector, 16))
        self._layers: list[tuple[dict[str, Any], list[Volume], list[tuple[int, int]], Any]] = []
        self._masks: dict[tuple[int, int, int], Tensor] = {}
        self._sums = 0
        depth, height, width = sizes[0]
        self.input = self._volume(network.input_channels, height, width // self.segments, depth)
        self.output = self._network(network)
        self._finish()

    def __call__(self, x: Tensor) -> Tensor:
        """`x [B, C, *size]` -> logits `[B, K, *size]`, a new tensor."""
        across = 3 if self.axis == 2 else 4  # x's axis that is cut into segments
        image = x.unflatten(across, (self.segments, -1))
        if self.stored == torch.float16:
            # The first InstanceNorm undoes a scale, up to its epsilon: no image overflows.
            peak = float(x.abs().max())
            scale = 2.0 ** min(0, 10 - math.frexp(peak)[1]) if math.isfinite(peak) else 1.0
            image = image if scale == 1 else image * scale
            self._structures[0].epsilon = self._epsilon * scale**2
        self._view(self.input).copy_(image)
        engine(self.item).packed_run(
            self._structures, len(self._structures), self.threads, self._scratch_pointer, self._scratch_bytes
        )
        return self._view(self.output).clone(memory_format=torch.contiguous_format).flatten(across, across + 1)

    def _ordered(self, axes: Sequence[int]) -> tuple[int, int, int]:
        """(depth, height, width) of the engine: the axis of the shift first, the others in order."""
        rest = [n for k, n in enumerate(axes) if k != self.axis]
        return axes[self.axis], rest[0], rest[1]

    def _view(self, v: Volume) -> Tensor:
        """The volume as `[B, C, *spatial axes of the network]`, the width as segments and their width."""
        sizes = (v.channels, v.height, self.segments, v.width, self.batch, v.depth)
        strides = (v.plane, v.row, v.depth, v.lanes, self.segments * v.depth, 1)
        spatial = [1, 2, 3]
        spatial.insert(3 if self.axis == 2 else self.axis, 5)
        memory = self._memory if v.item == 4 else self._memory.view(self.stored)
        return memory.as_strided(sizes, strides, v.start * 4 // v.item).permute(4, 0, *spatial)

    # the network as layers

    def _network(self, network: Any) -> Volume:
        x, features = self.input, []
        for stage, stride in zip(network.backbone, self.strides, strict=True):
            first = self._block(stage[0], [x], stride)
            x = self._block(stage[1], [first], (1, 1, 1))
            self._release(first)
            features.append(x)
        for stage in network.fusion:
            before = features
            features = [
                self._node(node, before[level], before[level + 1], before[level - 1] if level else None)
                for level, node in enumerate(stage)
            ]
            for volume in before:
                self._release(volume)
        head = network.heads.seg_layers[0]
        return self._pointwise(head, features[0], (1, 1, 1), logits=True)

    def _node(self, node: Any, forward: Volume, below: Volume, above: Volume | None) -> Volume:
        sources = [forward, self._pointwise(node.up, below, self._ordered(node.up.stride))]
        if above is not None:
            sources.append(self._pool(above, self._ordered(node.down.stride)))
        x = self._block(node.convs[0], sources, (1, 1, 1))
        for source in sources[1:]:
            self._release(source)
        if len(node.convs) == 2:
            first, x = x, self._block(node.convs[1], [x], (1, 1, 1))
            self._release(first)
        return x

    def _block(self, block: Any, sources: list[Volume], stride: Sequence[int]) -> Volume:
        source = sources[0]
        depth, height, width = source.over(stride)
        conv = block.conv
        out = self._volume(conv.out_channels, height, width, depth)
        out.normed = (self.arena.take(out.channels * out.lanes), self.arena.take(out.channels * out.lanes))
        dense = not isinstance(conv, SparseConnections) or conv.count_active() > DENSE * conv.kernels
        flat = stride[1] == stride[2] == 1
        pairs = 0 if not self.dots else ROW_PAIRS if flat and not dense else CHANNEL_PAIRS
        points = {1: 3, 2: 4, 4: 8 if self.dots else 6}
        tile = min((4, 2, 1) if flat else (1,), key=lambda t: math.ceil(width / t) * points[t])
        row_blocks = math.ceil(height / ROWS.get(stride[1], 2))
        blocks: Any = self._cut(row_blocks, out.lanes, out.channels, tiles=math.ceil(width / tile))
        self._sums = max(self._sums, row_blocks * blocks["column_blocks"] * out.lanes * out.channels * 3)
        fields: dict[str, Any] = {
            "kind": CONVOLUTION,
            "rows": math.ceil(height / row_blocks),
            "tile": tile,
            "pairs": pairs,
            "row_blocks": row_blocks,
            **blocks,
            "epsilon": block.norm.eps,
            "slope": NEGATIVE_SLOPE,
            "gamma": block.norm.weight,
            "beta": block.norm.bias,
        }
        packed = self.weights.of_convolution(conv, self.axis, min(tile, 2) if self.dots else tile, pairs)
        self._add(fields, sources, out, stride, packed, block.shifts)
        return out

    def _pointwise(self, conv: Any, source: Volume, stride: Sequence[int], logits: bool = False) -> Volume:
        depth, height, width = (n * s for n, s in zip((source.depth, source.height, source.width), stride, strict=True))
        out = self._volume(conv.out_channels, height, width, depth, 4 if logits else self.item)
        # Pairs of taps share what they read; with a depth stride of 2 they are neighbours in depth.
        group = 2 if stride[0] == 2 or (stride[0] == 1 and stride[1] * stride[2] % 2 == 0) else 1
        if self.dots and group == 2 and math.prod(stride) % 4 == 0:
            group = 4
        blocks = self._cut(source.height, source.lanes, out.channels, column_blocks=math.ceil(source.width / CHUNK))
        fields = {
            "kind": POINTWISE,
            "group": group,
            "row_blocks": source.height,
            **blocks,
            "slope": NEGATIVE_SLOPE,
            "logits": int(logits),
        }
        self._add(fields, [source], out, stride, self.weights.of_taps(conv, self.axis, group, self.dots), [])
        return out

    def _pool(self, source: Volume, stride: Sequence[int]) -> Volume:
        depth, height, width = source.over(stride)
        out = self._volume(source.channels, height, width, depth)
        self._add({"kind": POOLING, "slope": NEGATIVE_SLOPE}, [source], out, stride, None, [])
        return out

    # bookkeeping

    def _volume(self, channels: int, height: int, width: int, depth: int, item: int = 0) -> Volume:
        item = item or self.item
        lanes = _up(self.batch * self.segments * depth, self.vector)
        # Rows that lie a power of two apart would share a few sets of the cache.
        row = width * lanes + CACHE_LINE
        volume = Volume(0, channels, height, width, depth, lanes, row, height * row + CACHE_LINE, item)
        volume.start = self.arena.take(_floats(volume))
        return volume

    def _release(self, volume: Volume) -> None:
        self.arena.give_back(volume.start, _floats(volume))

    def _cut(
        self, row_blocks: int, lanes: int, outputs: int, *, tiles: int = 1, column_blocks: int | None = None
    ) -> dict[str, int]:
        """Blocks of lanes (two cache lines each), outputs and, where not given, columns: work for every thread."""
        wanted = ITEMS_PER_THREAD * self.threads
        lane_blocks = math.ceil(lanes / (2 * CACHE_LINE))
        if column_blocks is None:
            column_blocks = min(tiles, math.ceil(wanted / (row_blocks * lane_blocks)))
        items = row_blocks * lane_blocks * column_blocks
        output_blocks = min(math.ceil(outputs / 16), math.ceil(wanted / items))
        return {"lane_blocks": lane_blocks, "column_blocks": column_blocks, "output_blocks": output_blocks}

    def _add(
        self,
        fields: dict[str, Any],
        sources: list[Volume],
        out: Volume,
        stride: Sequence[int],
        packed: tuple[Tensor, Tensor, Tensor] | None,
        shifts: list[tuple[int, int]],
    ) -> None:
        source = sources[0]
        names = ("stride_d", "stride_h", "stride_w")
        fields = {
            **fields,
            **dict(zip(names, stride, strict=True)),
            "in_channels": sum(s.channels for s in sources),
            "in_h": source.height,
            "in_w": source.width,
            "in_lanes": source.lanes,
            "in_row": source.row,
            "out_row": out.row,
            "out_plane": out.plane,
            "out_channels": out.channels,
            "out_h": out.height,
            "out_w": out.width,
            "out_lanes": out.lanes,
            "copies": self.batch,
            "depth": self.segments * out.depth,
            "segments": self.segments,
            "in_depth": source.depth,
        }
        if packed is not None:
            fields.update(zip(("starts", "inputs", "weights"), packed, strict=True))
        self._layers.append((fields, sources, shifts, out))

    def _mask(self, depth: int, shift: int, side: int = 0) -> Tensor:
        """All ones (int32 -1) at the lanes whose slice `d - shift` lies in the same copy; zeros beyond.

        Of the segment before (`side` -1) or after (1): at the lanes that have one.
        """
        if (depth, shift, side) not in self._masks:
            lane = torch.arange(self.batch * self.segments * depth)
            inside = (lane % depth - shift >= 0) & (lane % depth - shift < depth)
            segment = lane // depth % self.segments + side
            inside &= (segment >= 0) & (segment < self.segments)
            mask = torch.zeros(len(lane) + 2 * self.arena.margin + 16, dtype=torch.int32)
            mask[: len(lane)] = torch.where(inside, -1, 0)
            self._masks[depth, shift, side] = mask
        return self._masks[depth, shift, side]

    def _finish(self) -> None:
        """Addresses, once the size of the arena is known."""
        sums = self.arena.take(self._sums, whole_run=True)
        self._memory = self.arena.allocate()
        base = self._memory.data_ptr()
        self._kept: list[Any] = []  # what the structures point to
        structures = []
        for fields, sources, shifts, out in self._layers:
            layer = Layer(out=base + 4 * out.start, sums=base + 4 * sums)
            for name, value in fields.items():
                if isinstance(value, Tensor):
                    self._kept.append(value)
                    value = value.data_ptr()
                setattr(layer, name, value)
            if out.normed is not None:
                layer.scale, layer.offset = (base + 4 * start for start in out.normed)
            channels = self._channels(base, sources, shifts)
            self._kept.append(channels)
            layer.channels = ctypes.addressof(channels)
            structures.append(layer)
        self._structures = (Layer * len(structures))(*structures)
        self._epsilon = structures[0].epsilon
        scratch = max(engine(self.item).packed_scratch(ctypes.byref(layer)) for layer in self._structures)
        self._scratch_bytes = _up(scratch, 4096)
        self._scratch = torch.empty(self.threads * self._scratch_bytes + 64, dtype=torch.uint8)
        self._scratch_pointer = _up(self._scratch.data_ptr(), 64)

    def _channels(self, base: int, sources: list[Volume], shifts: list[tuple[int, int]]) -> Any:
        shift_of = [shift for count, shift in shifts for _ in range(count)]
        channels: list[Channel] = []
        for v in sources:
            for c in range(v.channels):
                shift = shift_of[len(channels)] if shifts else 0
                channel = Channel(
                    data=base + 4 * v.start + v.item * (c * v.plane - shift),
                    **{
                        name: self._mask(v.depth, shift, side).data_ptr()
                        for name, side in (("mask", 0), ("before", -1), ("after", 1))
                    },
                )
                if v.normed is not None:
                    channel.scale, channel.offset = (base + 4 * (n + c * v.lanes - shift) for n in v.normed)
                channels.append(channel)
        return (Channel * len(channels))(*channels)


def _floats(volume: Volume) -> int:
    return -(-volume.channels * volume.plane * volume.item // 4)


def _up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple
