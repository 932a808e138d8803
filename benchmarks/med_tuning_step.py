"""A training step of Med-Adapters against full fine-tuning, and of the circulant frequency branch against the FFT.

    python benchmarks/med_tuning_step.py --patch 8 96 96 --rounds 7 --out benchmarks/results/med_tuning_step.json

A step is nnU-Net's: forward, loss (cross-entropy alone), backward, clipping of the gradients and fused AdamW over what
is trainable, with random weights and data. All opponents run in one process in turns; the figures are medians over the
rounds of the ratio within a round. Memory of gradients and optimizer is counted in their tensors after a step; what
autograd keeps for the backward pass is counted on torch's meta device; on CUDA (mixed precision as nnU-Net uses it) the
allocator's peak is measured too. Needs no nnU-Net.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

from nnunet_ext.discovery.devices import processor
from nnunet_ext.med_tuning.network import MedTuningNet
from nnunet_ext.prediction.memory import keep_freed_memory

STILL = {"tune_positions": False}
HALF = {"cpu_bfloat16": True}
OPPONENTS = {
    "med_adapter, circulant": {"tuning": "med_adapter", "frequency": "circulant"},
    "med_adapter, fft": {"tuning": "med_adapter", "frequency": "fft"},
    "med_adapter, positions frozen": {"tuning": "med_adapter", **STILL},
    "med_adapter, positions frozen, from block 4": {"tuning": "med_adapter", **STILL, "adapted_from": 3},
    "med_adapter, positions frozen, from block 7": {"tuning": "med_adapter", **STILL, "adapted_from": 6},
    "head (decoder alone)": {"tuning": "head"},
    "head, positions frozen": {"tuning": "head", **STILL},
    "full": {"tuning": "full"},
    "med_adapter, bfloat16": {"tuning": "med_adapter", **HALF},
    "med_adapter, bfloat16, positions frozen, from block 4": {
        "tuning": "med_adapter", **HALF, **STILL, "adapted_from": 3
    },
    "med_adapter, bfloat16, positions frozen, from block 7": {
        "tuning": "med_adapter", **HALF, **STILL, "adapted_from": 6
    },
    "full, bfloat16": {"tuning": "full", **HALF},
}  # fmt: skip
RATIOS = (
    ("med_adapter, circulant", "med_adapter, fft"),
    *((name, "full, bfloat16" if "bfloat16" in name else "full") for name in OPPONENTS if not name.startswith("full")),
    ("full, bfloat16", "full"),
)


def clocks(device):
    """Wall-clock time, and the processor time of all threads, which says more on a machine that is busy otherwise."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


class Opponent:
    """A network, its optimizer, and the step."""

    def __init__(self, args, device, **settings):
        torch.manual_seed(0)
        settings = {"backbone": args.backbone, "decoder": args.decoder, **settings}
        self.network = MedTuningNet(args.channels, args.classes, patch_size=args.patch, **settings).to(device)
        self.device = device
        self.parameters = [p for p in self.network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, 1e-4, fused=True)
        self.scaler = torch.amp.GradScaler("cuda", enabled=device.type == "cuda")

    def step(self, x, target):
        start = clocks(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, enabled=self.device.type == "cuda"):
            loss = F.cross_entropy(self.network(x), target)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return [now - then for now, then in zip(clocks(self.device), start, strict=True)]

    def tuned_bytes(self):
        """Gradients and optimizer state."""
        held = [p.grad for p in self.parameters if p.grad is not None]
        for state in self.optimizer.state.values():
            held += [value for value in state.values() if torch.is_tensor(value)]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", type=int, nargs=3, default=[8, 96, 96])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--backbone", default="vit_base_patch16_224.orig_in21k")
    parser.add_argument("--decoder", help="default: the paper's for the backbone")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    device = torch.device(args.device)
    opponents = {name: Opponent(args, device, **settings) for name, settings in OPPONENTS.items()}
    x = torch.randn(args.batch, args.channels, *args.patch, device=device)
    target = torch.randint(args.classes, (args.batch, *args.patch), device=device)
    times = {name: [] for name in opponents}
    for _ in range(args.rounds + 1):  # the first round warms up
        for name, opponent in opponents.items():
            times[name].append(opponent.step(x, target))
    result = {}
    for name, opponent in opponents.items():
        network = opponent.network
        result[name] = {
            "median_s": round(statistics.median(wall for wall, _ in times[name][1:]), 4),
            "median_processor_s": round(statistics.median(cpu for _, cpu in times[name][1:]), 4),
            "parameters": sum(p.numel() for p in network.parameters()),
            "trainable": sum(p.numel() for p in opponent.parameters),
            "gradients_and_optimizer_MB": round(opponent.tuned_bytes() / 1e6, 1),
            "kept_for_backward_MB_fp32": round(
                args.batch * 4 * network.compute_conv_feature_map_size(args.patch) / 1e6
            ),
        }
    if device.type == "cuda":
        for name in OPPONENTS:  # one alone on the device
            opponents.clear()
            torch.cuda.empty_cache()
            opponents[name] = Opponent(args, device, **OPPONENTS[name])
            for _ in range(2):
                torch.cuda.reset_peak_memory_stats()
                opponents[name].step(x, target)
            result[name]["peak_GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    ratios = {}
    for ours, theirs in RATIOS:
        rounds = list(zip(times[ours][1:], times[theirs][1:], strict=True))
        wall, cpu = ([a[clock] / b[clock] for a, b in rounds] for clock in (0, 1))
        memory = result[ours]["gradients_and_optimizer_MB"] / result[theirs]["gradients_and_optimizer_MB"]
        ratios[f"{ours} / {theirs}"] = {
            "time_median": round(statistics.median(wall), 3),
            "time_range": [round(min(wall), 3), round(max(wall), 3)],
            "processor_time_median": round(statistics.median(cpu), 3),
            "processor_time_range": [round(min(cpu), 3), round(max(cpu), 3)],
            "gradients_and_optimizer": round(memory, 3),
        }
    machine = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {args.threads} threads",
        "machine": processor(),
        "versions": {"torch": torch.__version__.partition("+")[0], "timm": timm.__version__},
    }
    settings = {key: value for key, value in vars(args).items() if key not in ("out", "device")}
    report = {**settings, **machine, "opponents": result, "ratios": ratios}
    print(json.dumps(report, indent=2))
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
