"""Runs the engine compiled with a sanitizer: `python packed_sanitized.py address,undefined` or `thread`.

The sanitizer's library has to be preloaded; `test_packed_sanitizers.py` does that in a process of its own.
"""

import sys

import torch

from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.packed import library, program

CASES = [
    ({"strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]}, (1, 1, 16, 20, 24)),
    ({"strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]]}, (3, 2, 3, 9, 70)),
    ({"strides": [[1, 1, 1], [3, 1, 3], [1, 2, 2]], "shift_size": 3}, (1, 1, 9, 16, 18)),
    ({"strides": [[1, 1, 1], [2, 3, 1], [4, 1, 2]], "kernel_size": [3, 3, 1], "sparsity": None}, (2, 1, 8, 12, 10)),
]


def main():
    library.FLAGS += [f"-fsanitize={sys.argv[1]}", "-g", "-O1"]
    program.Arena.allocate = lambda arena: torch.zeros(arena._size)  # on the heap, with the sanitizer's borders
    torch.set_num_threads(4)
    for kwargs, shape in CASES:
        torch.manual_seed(0)
        network = E2ENet(shape[1], 3, base_features=5, **kwargs).eval()
        with torch.no_grad():
            for _ in range(3):
                assert torch.isfinite(network(torch.randn(shape))).all()
    assert library.engine().packed_lanes() > 0
    print("all cases ran")


if __name__ == "__main__":
    main()
