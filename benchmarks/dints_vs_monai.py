"""DiNTS against MONAI's implementation: discretization, and the two steps of a search in time and kept activations.

    python benchmarks/dints_vs_monai.py --out benchmarks/results/dints_vs_monai.json

Both supernets have the same weights and logits and get the same patch; before anything is timed their losses are
compared. Steps run in one process in turns; the figures are medians over the rounds of the ratio within a round. Kept
activations are all tensors that autograd saves, parameters aside, each storage once. MONAI's steps are those of its
tutorial: a step of the weights with the logits frozen, a step of the logits with the weights frozen, with the losses of
its TopologySearch. Needs monai.
"""

import argparse
import json
import platform
import resource
import statistics
import time
import warnings
from pathlib import Path

import monai
import numpy as np
import torch
from monai.networks.nets.dints import DiNTS, TopologySearch

from nnunet_ext.dints.architecture_step import ArchitectureOptimizer
from nnunet_ext.dints.discretize import decode
from nnunet_ext.dints.monai_names import from_monai
from nnunet_ext.dints.network import DiNTSSearchNet
from nnunet_ext.dints.options import DiNTSSearchOptions
from nnunet_ext.dints.relaxation import relax

SIGMA, LAMBDA = 0.8, 0.001
STRIDES = [[1, 1, 1]] + [[2, 2, 2]] * 4


class Ours:
    """Steps as DiNTSSearchTrainer makes them, without AMP; that of the architecture is the package's own."""

    def __init__(self, width, patch):
        self.net = DiNTSSearchNet(1, 3, strides=STRIDES, base_features=width)
        self.weights = [p for p in self.net.parameters() if p.requires_grad]
        options = DiNTSSearchOptions.from_plans({"sigma": SIGMA, "topology_weight": LAMBDA})
        self.architecture = ArchitectureOptimizer(self.net, patch, options)
        self.sgd = torch.optim.SGD(self.weights, 0.025, momentum=0.9, weight_decay=4e-5)

    def weight_loss(self, x, y):
        return torch.nn.functional.cross_entropy(self.net(x), y)

    def architecture_loss(self, x, y):
        logits = [p.detach().requires_grad_() for p in self.architecture.logits]
        relaxed = relax(*logits)
        segmentation = torch.nn.functional.cross_entropy(self.net(x, relaxed), y)
        return segmentation + self.architecture.regularisers(relaxed).total(1.0, LAMBDA)

    def weight_step(self, x, y):
        self.sgd.zero_grad(set_to_none=True)
        self.weight_loss(x, y).backward()
        self.sgd.step()

    def architecture_step(self, x, y):
        self.architecture.step(x, y, torch.nn.functional.cross_entropy, 1.0)


class Theirs:
    """The same with MONAI's classes, as its tutorial uses them."""

    def __init__(self, width, patch):
        self.space = TopologySearch(
            channel_mul=width / 32, num_blocks=12, num_depths=4, use_downsample=True, device="cpu"
        )
        self.net = DiNTS(self.space, 1, 3, use_downsample=True)
        self.logits = [self.space.log_alpha_a, self.space.log_alpha_c]
        held = {id(logits) for logits in self.logits}
        self.weights = [p for p in self.net.parameters() if id(p) not in held]
        self.in_size = (1, 1, *patch)
        self.sgd = torch.optim.SGD(self.weights, 0.025, momentum=0.9, weight_decay=4e-5)
        self.adam = torch.optim.Adam(self.logits, 0.008)

    def _freeze(self, logits):
        for p in self.logits:
            p.requires_grad_(not logits)
        for p in self.weights:
            p.requires_grad_(logits)

    def weight_loss(self, x, y):
        self._freeze(logits=True)
        return self._segmentation(x, y)

    def _segmentation(self, x, y):
        """MONAI's axes are x, y, z."""
        return torch.nn.functional.cross_entropy(self.net(x.permute(0, 1, 4, 3, 2)), y.permute(0, 3, 2, 1))

    def architecture_loss(self, x, y):
        self._freeze(logits=False)
        segmentation = self._segmentation(x, y)
        probability, _ = self.space.get_prob_a(child=True)
        cell_prob = torch.softmax(self.space.log_alpha_c, -1)
        entropy_alpha = -(cell_prob * torch.log(cell_prob)).mean()
        entropy_eta = -(probability * torch.log(probability + 1e-5)).mean()
        topology = self.space.get_topology_entropy(probability)
        full = self.space.get_ram_cost_usage(self.in_size, full=True)
        used = self.space.get_ram_cost_usage(self.in_size)
        return segmentation + entropy_alpha + entropy_eta + LAMBDA * topology + (used / full - SIGMA).abs()

    def weight_step(self, x, y):
        self.sgd.zero_grad(set_to_none=True)
        self.weight_loss(x, y).backward()
        self.sgd.step()

    def architecture_step(self, x, y):
        self.adam.zero_grad(set_to_none=True)
        self.architecture_loss(x, y).backward()
        self.adam.step()


def same_start(ours, theirs):
    ours.net.load_state_dict(from_monai(ours.net.structure, theirs.net.state_dict()))


def kept_bytes(side, loss, x, y):
    own = {p.untyped_storage().data_ptr() for p in side.net.parameters()}
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = loss(x, y)
    total = sum(storage.nbytes() for storage in storages.values())
    side.net.zero_grad(set_to_none=True)
    return total, float(value.detach())


def seconds(call, *arguments):
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def ratios(rounds, first, second):
    """Times of two calls in turns; the medians, and the median of second / first within a round."""
    times = [(seconds(first), seconds(second)) for _ in range(rounds)]
    ours, theirs = zip(*times, strict=True)
    return {
        "ours_s": statistics.median(ours),
        "monai_s": statistics.median(theirs),
        "monai_over_ours": statistics.median(b / a for a, b in times),
        "rounds": rounds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patch", type=int, nargs=3, default=[32, 32, 32])
    parser.add_argument("--width", type=int, default=8, help="F_0 (the paper: 16)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--decodes", type=int, default=3, help="rounds of the discretization")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    theirs, ours = Theirs(args.width, args.patch), Ours(args.width, args.patch)
    same_start(ours, theirs)
    x, y = torch.randn(1, 1, *args.patch), torch.randint(0, 3, (1, *args.patch))
    result = {
        "patch": args.patch, "width": args.width, "layers": 12, "scales": 4, "threads": args.threads,
        "cpu": platform.processor() or platform.machine(), "torch": torch.__version__, "monai": monai.__version__,
    }  # fmt: skip
    for name in ("weight", "architecture"):
        (kept, loss), (their_kept, their_loss) = (
            kept_bytes(side, getattr(side, f"{name}_loss"), x, y) for side in (ours, theirs)
        )
        # MONAI's logarithms have 1e-5 inside; 1e-3 is far below what another weight or logit would change
        assert abs(loss - their_loss) < 1e-3 * abs(their_loss), (name, loss, their_loss)
        step = f"{name}_step"
        getattr(ours, step)(x, y), getattr(theirs, step)(x, y)  # warm up
        result[step] = {
            **ratios(args.rounds, lambda s=step: getattr(ours, s)(x, y), lambda s=step: getattr(theirs, s)(x, y)),
            "ours_kept_mb": kept / 1e6,
            "monai_kept_mb": their_kept / 1e6,
            "less_kept": 1 - kept / their_kept,
        }
    both = ("weight_step", "architecture_step")
    result["search_step"] = {
        "monai_over_ours": sum(result[s]["monai_s"] for s in both) / sum(result[s]["ours_s"] for s in both),
        "less_kept_at_peak": 1
        - max(result[s]["ours_kept_mb"] for s in both) / max(result[s]["monai_kept_mb"] for s in both),
    }

    with torch.no_grad():
        for logits in theirs.logits:
            logits.copy_(torch.randn_like(logits))
    logits = [p.detach().numpy().astype(np.float64) for p in theirs.logits]
    decode(*logits)
    result["decode"] = ratios(args.decodes, lambda: decode(*logits), theirs.space.decode)
    code, found = decode(*logits).code, theirs.space.decode()
    result["decode"]["same_code"] = bool(np.array_equal(np.array(found[1]), np.array(code.active)))
    result["decode"]["peak_rss_mb_after_monais"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
