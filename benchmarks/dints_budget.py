"""Memory ratios of the codes that come out of a search's logits, with and without decoding within the budget.

    python benchmarks/dints_budget.py --out benchmarks/results/dints_budget.json

The paper's search space (12 layers, 4 scales, patch 96^3), its Adam and its regularisers with their ramp, for the
lengths of the preset short-search (1000 steps of the architecture) and of the default search (10 000), three seeds and
three budgets. There is no segmentation loss, since a search of that size takes GPU-days: the figures say what the
budget alone does to undecided edges.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from nnunet_ext.dints.architecture_step import ArchitectureOptimizer
from nnunet_ext.dints.network import DiNTSSearchNet
from nnunet_ext.dints.options import DiNTSSearchOptions
from nnunet_ext.dints.snapshot import Snapshot
from nnunet_ext.files import write_json

PATCH, STEPS = [96, 96, 96], {"short-search": 1000, "default": 10_000}


def regularised(sigma, steps, seed):
    """The optimizer of a supernet whose logits followed the regularisers for so many steps."""
    torch.manual_seed(seed)
    # Widths do not enter the regularisers but for the memory, where only the ratio of neighbours counts.
    network = DiNTSSearchNet(1, 2, strides=[[1, 1, 1]] + [[2, 2, 2]] * 4, base_features=1)
    architecture = ArchitectureOptimizer(network, PATCH, DiNTSSearchOptions.from_plans({"sigma": sigma}))
    for step in range(steps):
        for logits in architecture.logits:
            logits.requires_grad_(True)
        total = architecture.regularisers(network.relaxed()).total((step + 1) / steps, 0.001)
        gradients = torch.autograd.grad(total, architecture.logits)
        for logits, gradient in zip(architecture.logits, gradients, strict=True):
            logits.requires_grad_(False)
            logits.grad = gradient
        architecture.adam.step()
    return architecture


def searched(sigma, steps, seed):
    architecture = regularised(sigma, steps, seed)
    start = time.process_time()
    snapshot = Snapshot.of(architecture, PATCH)
    return {
        "sigma": sigma,
        "seed": seed,
        "expected": float(snapshot.terms.memory_ratio),
        "most_probable": snapshot.likeliest_ratio,
        "within_budget": snapshot.ratio,
        "cost_most_probable": snapshot.likeliest.cost,
        "cost_within_budget": snapshot.found.cost,
        "edges_most_probable": snapshot.likeliest.code.num_edges,
        "edges_within_budget": snapshot.found.code.num_edges,
        "both_decodes_cpu_seconds": time.process_time() - start,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.out.read_text())["rows"] if args.out.is_file() else []
    for name, steps in STEPS.items():
        for sigma in (0.2, 0.5, 0.8):
            for seed in range(3):
                if any((row["search"], row["sigma"], row["seed"]) == (name, sigma, seed) for row in rows):
                    continue
                rows.append({"search": name, **searched(sigma, steps, seed)})
                print(rows[-1], flush=True)
                worst = {key: max(abs(row[key] - row["sigma"]) for row in rows)
                         for key in ("most_probable", "within_budget")}  # fmt: skip
                write_json(args.out, {"largest_distance_to_sigma": worst, "torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
