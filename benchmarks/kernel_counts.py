"""How many kernels each network of `benchmarks/gpu.py` asks for, eagerly: what small patches on a GPU are bound by.

    python benchmarks/kernel_counts.py --out benchmarks/results/kernel_counts.json

Operations that compute or copy are counted on torch's meta device, in a forward pass without gradients and in a step
(forward, backward; no optimizer), in float32. Views and allocations are none. Mixed precision adds casts;
`torch.compile` fuses most of what lies between convolutions and products. Routing is not here, because it depends on
the image, nor what Triton does.
"""

import argparse
from collections import Counter
from pathlib import Path

import torch
from gpu import NETS, supervised
from torch.utils._python_dispatch import TorchDispatchMode

from nnunet_ext.files import write_json

FREE = {
    "alias", "as_strided", "detach", "empty", "empty_like", "expand", "lift_fresh", "new_empty", "permute", "select",
    "slice", "split", "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view",
    "_unsafe_view", "_reshape_alias", "promote_types", "sym_size",
}  # fmt: skip
HEAVY = {"convolution", "convolution_backward", "mm", "addmm", "bmm", "mv", "baddbmm"}


class Kernels(TorchDispatchMode):
    """Counts by the name of the operation."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.split("::")[1]
        if name not in FREE:
            self.counted[name] += 1
        return function(*args, **(kwargs or {}))


def counts(work):
    with Kernels() as kernels:
        work()
    counted = kernels.counted
    return {
        "kernels": sum(counted.values()),
        "convolutions_and_products": sum(counted[name] for name in HEAVY),
        "most": dict(counted.most_common(8)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for net in {net.name: net for net in reversed(NETS)}.values():
        if net.name == "Med-DANet routed" or net.name.endswith("fused"):
            continue
        with torch.device("meta"):
            network, x = net.make(net.size), torch.empty(net.batch, 1, *net.size)
        row = {"name": net.name, "shape": [net.batch, 1, *net.size]}
        if net.predicts:
            supervised(network.eval(), False)
            with torch.no_grad():
                row["forward"] = counts(lambda: network(x))  # noqa: B023
        if net.trains:
            supervised(network.train(), True)

            def step():
                outputs = network(x)  # noqa: B023
                sum(o.sum() for o in (outputs if isinstance(outputs, (list, tuple)) else [outputs])).backward()

            row["step"] = counts(step)
        rows.append(row)
        print(net.name, *(f"{part} {row[part]['kernels']}" for part in ("forward", "step") if part in row), flush=True)
    if args.out:
        write_json(args.out, {"torch": torch.__version__, "networks": rows})


if __name__ == "__main__":
    main()
