"""Runs the engine compiled with a sanitizer over drawn networks: `python packed_sanitized.py SANITIZER CASES [SEED]`.

SANITIZER is `address,undefined`, `thread` or `none`. Each case draws strides, widths, size, depth, batch, channels,
shifts, kernel axis, sparsity, blocks, segments of the width and threads, and runs in float32 and in 16 bits. The arena
is filled with NaN before the second of two passes, which must give the same, and the first must be the network's own.
The sanitizer's library has to be preloaded; `test_packed_sanitizers.py` does that in a process of its own.
ATEN_CPU_CAPABILITY (avx512, avx2, default) chooses the vectors, CXX the compiler.
"""

import copy
import functools
import math
import os
import random
import sys

import torch
from torch import nn

from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.packed import dispatch, library, program

TOLERANCES = {"1": 3e-4, "bf16": 0.3}  # of the largest logit, against float64; few channels average little
LARGEST = 3_000_000  # values of the finest feature maps, which are as large as the deepest level times all strides


def drawn(rng):
    """Arguments of a network and the shape of its input, small enough for a fraction of a second."""
    while True:
        levels = rng.randint(3, 5)
        strides = [[1, 1, 1]] + [[rng.choice((1, 1, 2, 2, 2, 3, 4)) for _ in range(3)] for _ in range(levels - 1)]
        kernel = rng.choice(([1, 3, 3], [3, 1, 3], [3, 3, 1]))
        lowest = [math.prod(stride[axis] for stride in strides) for axis in range(3)]
        size = [rng.randint(1, 33) if axis == kernel.index(1) else rng.randint(4, 40) for axis in range(3)]
        while math.prod(math.ceil(n / s) for n, s in zip(size, lowest, strict=True)) < 4:
            size[rng.randrange(3)] += 16
        voxels = math.prod(math.ceil(n / s) * s for n, s in zip(size, lowest, strict=True))
        kwargs = {
            "strides": strides,
            "features_per_stage": [rng.randint(1, 33) for _ in range(levels)],
            "kernel_size": kernel,
            "shift_size": rng.choice((0, 1, 1, 2, 3, 7)),
            "sparsity": rng.choice((None, 0.3, 0.8, 0.8, 0.97)),
        }
        kwargs["connection_block"] = rng.choice((1, 4)) if kwargs["sparsity"] else 1
        shape = (rng.randint(1, 5), rng.randint(1, 5), *size)
        if shape[0] * voxels * sum(kwargs["features_per_stage"]) <= LARGEST:
            return kwargs, shape


def any_divisor(rng, sizes, *_):
    """A number of segments that the width can be cut into."""
    narrowest = min(width for _, _, width in sizes)
    return rng.choice([k for k in range(1, narrowest + 1) if narrowest % k == 0])


def predicted(network, x):
    with torch.no_grad():
        return network(x)


def check(kwargs, shape, threads):
    """Whether the engine computes what the network does in float64, twice, the second time over an arena of NaN."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = E2ENet(shape[1], 3, **kwargs).eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter)
    x = torch.randn(shape)
    exact = predicted(copy.deepcopy(network).double(), x.double())
    for switch, tolerance in TOLERANCES.items():
        os.environ[dispatch.SWITCH] = switch
        first = predicted(network, x)
        assert network in dispatch._packs, "the engine did not run"
        dispatch._packs[network].program._memory.view(torch.int32).fill_(-1)  # NaN in float32, float16 and bfloat16
        assert torch.equal(predicted(network, x), first), f"what was in the arena before shows ({switch})"
        difference = float((first - exact).abs().max() / exact.abs().max())
        assert difference <= tolerance, f"{difference} ({switch})"


def main():
    sanitizer, cases, seed = sys.argv[1], int(sys.argv[2]), int((sys.argv[3:] or [0])[0])
    if sanitizer != "none":
        library.FLAGS += [f"-fsanitize={sanitizer}", "-g", "-O1"]
        program.Arena.allocate = lambda arena: torch.zeros(arena._size)  # on the heap, with the sanitizer's borders
    rng, failed = random.Random(seed), 0
    for number in range(cases):
        kwargs, shape = drawn(rng)
        program.width_segments = functools.partial(any_divisor, rng)
        try:
            check(kwargs, shape, rng.choice((1, 2, 3, 7)))
        except AssertionError as error:
            failed += 1
            print(f"case {number} {kwargs} {shape}: {error}", flush=True)
    print(f"{library.compiler()}, {library.engine().packed_lanes()} lanes, {os.environ.get('ATEN_CPU_CAPABILITY')}")
    print(f"all {cases} cases ran, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
