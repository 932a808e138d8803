"""E2ENet's packed prediction on a CPU against nnU-Net's PlainConvUNet, in turns within one process.

    python benchmarks/packed_inference.py --threads 1 2 --out benchmarks/results/packed_inference.json

Both of its modes: float32, and the one of 16 bits (`nnUNet_ext_packed=bf16`); with --connection-block 1 16, the paper's
single connections and blocks of 16.
Opponents: PlainConvUNet in torch float32 (what nnU-Net runs on a CPU), in torch under bfloat16 autocast where the
processor has bfloat16, and in OpenVINO, float32 and bfloat16, where that is installed; and the same E2ENet in torch
(dense convolutions over masked weights). All keep freed memory, as `nnunet_ext predict` does. A ratio is the opponent's
time over the packed time: above 1 the packed network is faster; "the fastest" is that of the fastest opponent of all.
Medians of the ratios within a round, and the ratio of the minima. With one thread times are the process's own, so that
others on the machine count less. Errors are norms of the difference to float32 over the norm of the logits, and the
share of equal labels. Weights and masks are random. ATEN_CPU_CAPABILITY (avx512, avx2) chooses the engine's vectors and
torch's. What was measured is kept: a run that was stopped goes on with its file.
"""

import argparse
import copy
import itertools
import json
import os
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import torch
from e2enet_forward import unet

from nnunet_ext.discovery.devices import processor
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.packed.dispatch import SWITCH, release
from nnunet_ext.e2enet.packed.library import instruction_set
from nnunet_ext.prediction.memory import keep_freed_memory

CLASSES = 16


def strides_of(patch):
    """The paper's six levels: each halves even axes that are not much shorter than the longest, down to 2 voxels."""
    size, strides = list(patch), [[1, 1, 1]]
    for _ in range(5):
        strides.append([2 if s >= 4 and s % 2 == 0 and 2 * s > max(size) else 1 for s in size])
        size = [s // n for s, n in zip(size, strides[-1], strict=True)]
    return strides


def openvino_of(network, x, precision):
    try:
        import openvino
    except ImportError:
        return None
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision})
    compiled = core.compile_model(openvino.convert_model(network, example_input=x), "CPU")
    return lambda: compiled(x.numpy())


def switched(network, x, value):
    def run():
        os.environ[SWITCH] = value
        return network(x)

    return run


def half(network, x):
    def run():
        with torch.autocast("cpu", torch.bfloat16):
            return network(x)

    return run


def seconds(call):
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    call()
    return clock() - start


def error(found, exact):
    """(norm of the difference / norm, share of equal labels)."""
    equal = (found.argmax(1) == exact.argmax(1)).float().mean()
    return {"norm": float((found.float() - exact).norm() / exact.norm()), "equal labels": float(equal)}


def opponents(patch, sparsities, blocks):
    strides = strides_of(patch)
    x = torch.randn(1, 1, *patch)
    plain = unet(1, CLASSES, strides).eval()
    plain.decoder.deep_supervision = False
    ours = {
        f"{s}{f', blocks of {block}' if block > 1 else ''}": E2ENet(
            1, CLASSES, strides=strides, sparsity=s, connection_block=block
        ).eval()
        for block, s in itertools.product(blocks, sparsities)
    }
    return strides, x, plain, ours


@torch.inference_mode()
def measure(strides, x, plain, ours, rounds, dense_rounds):
    calls = {"PlainConvUNet, torch float32": lambda: plain(x)}
    if torch.cpu._is_avx512_bf16_supported():  # elsewhere torch emulates it, hundreds of times slower
        calls["PlainConvUNet, torch bfloat16"] = half(plain, x)
    for name, precision in (("float32", "f32"), ("bfloat16", "bf16")):
        vino = openvino_of(plain, x, precision)
        if vino is not None and (precision == "f32" or torch.cpu._is_avx512_bf16_supported()):
            calls[f"PlainConvUNet, OpenVINO {name}"] = vino
    others = list(calls)
    halved = {s: copy.deepcopy(network) for s, network in ours.items()}  # a network has one program at a time
    for s in ours:
        calls[f"packed E2ENet, S={s}"] = switched(ours[s], x, "1")
        calls[f"packed E2ENet in 16 bits, S={s}"] = switched(halved[s], x, "bf16")
    if dense_rounds:
        calls |= {f"E2ENet in torch, S={s}": switched(network, x, "0") for s, network in ours.items()}
    times = {name: [] for name in calls}
    for k in range(rounds + 1):
        for name, call in calls.items():
            if not name.startswith("E2ENet in torch") or k <= dense_rounds:
                times[name].append(seconds(call))
    times = {name: values[1:] for name, values in times.items()}
    report = {
        "strides": strides,
        "clock": "process" if torch.get_num_threads() == 1 else "wall",
        "seconds": {n: {"median": statistics.median(v), "min": min(v)} for n, v in times.items()},
    }
    times["the fastest"] = [min(values) for values in zip(*(times[name] for name in others), strict=True)]
    for s, mode in itertools.product(ours, ("", " in 16 bits")):
        name = f"packed E2ENet{mode}, S={s}"
        report[name] = {}
        for other in (*others, "the fastest", f"E2ENet in torch, S={s}"):
            ratios = [v / o for v, o in zip(times.get(other, []), times[name], strict=False)]
            if ratios:
                report[name][f"time of {other} / ours"] = {
                    "median": round(statistics.median(ratios), 3),
                    "of minima": round(min(times[other]) / min(times[name]), 3),
                    "rounds": len(ratios),
                }
    unet = plain(x)
    report["errors"] = {n: error(calls[n](), unet) for n in others if n == "PlainConvUNet, torch bfloat16"}
    for s, network in ours.items():
        exact = switched(network, x, "0")()
        report["errors"] |= {
            f"packed E2ENet, S={s}": error(switched(network, x, "1")(), exact),
            f"packed E2ENet in 16 bits, S={s}": error(switched(halved[s], x, "bf16")(), exact),
        }
        if torch.cpu._is_avx512_bf16_supported():
            report["errors"][f"E2ENet, torch bfloat16, S={s}"] = error(half(network, x)(), exact)
        release(network)
        release(halved[s])
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patch", action="append", help="D,H,W; may be given again")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.7, 0.8, 0.9])
    parser.add_argument("--connection-block", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dense-rounds", type=int, default=2, help="rounds with E2ENet in torch, which takes long")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    patches = [
        tuple(map(int, p.split(",")))
        for p in args.patch or ["32,32,32", "64,64,64", "96,96,96", "20,128,128", "48,96,96"]
    ]
    lanes, flags = instruction_set()
    report = {
        "machine": processor(),
        "cpu capability of torch": torch.backends.cpu.get_cpu_capability(),
        "floats in a vector": lanes,
        "versions": {name: version(name) for name in ("torch", "dynamic-network-architectures")},
        "freed memory is kept": keep_freed_memory(),
        "patches": {},
    }
    if args.out and args.out.is_file():
        report["patches"] = json.loads(args.out.read_text())["patches"]
    torch.manual_seed(0)
    for threads in args.threads:
        torch.set_num_threads(threads)
        for patch in patches:
            name = f"{'x'.join(map(str, patch))}, {threads} threads"
            if name in report["patches"]:
                continue
            networks = opponents(patch, args.sparsity, args.connection_block)
            report["patches"][name] = measure(*networks, args.rounds, args.dense_rounds)
            print(json.dumps({name: report["patches"][name]}, indent=2), flush=True)
            if args.out:
                args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
