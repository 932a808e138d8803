"""All methods on one GPU beside nnU-Net's networks: are results right, how fast, in how much memory, and do they train?

    python benchmarks/gpu.py --out benchmarks/results/gpu_CARD.jsonl                      # everything, below 9 minutes
    python benchmarks/gpu.py --section speed --only E2ENet U-Net --out FILE.jsonl         # a part of it
    python benchmarks/gpu.py --together --out FILE.jsonl                                  # the same in about 7 minutes
    python benchmarks/gpu.py --tiny --device cpu                                          # does the script work?

Sections: `correctness` (mixed precision and float32 on the card against float32 on the CPU, an update of E2ENet's
connections, routing against each candidate alone), `speed` (forward pass and training step, eager, compiled, and
compiled with CUDA graphs where patches are small, with the first call and peak memory) and `training` (`nnUNetv2_train`
for each trainer on the data set --dataset, which is planned and preprocessed for nnUNetPlans; as nnU-Net runs it,
compiled on CUDA).

Every result is a line of JSON, written at once; with --out, what the file has already is passed over, so that a run
that was cut goes on. Mixed precision is float16 on CUDA, as nnU-Net has it, and bfloat16 on a CPU. A step is forward,
loss, backward, unscaling, clipping and SGD with momentum. Times are wall-clock medians of --rounds after two warm-ups
(ms); `first_s` is the first call (s), with compilation; memory is the allocator's peak (GiB), in a forward pass without
the optimizer's, and with CUDA graphs all that it has reserved. Nothing else may run on the card.

With --together every network that is compiled has a process of its own; all compile at once, beside the trainings, and
when all have, each is timed alone on the card: `first_s` and the trainings' seconds are then those beside the others.
What is eager follows, one after the other. `gpu_carry.sh` beside this makes a folder with all that a machine without
network needs.
"""

import argparse
import json
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from stock_commands import command
from torch import nn

from nnunet_ext.demo.phantoms import generate_dataset
from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet
from nnunet_ext.dints.network import arch_kwargs_at as dints_kwargs
from nnunet_ext.dints.network import search_arch_kwargs_at as search_kwargs
from nnunet_ext.e2enet.network import E2ENet
from nnunet_ext.e2enet.topology import DynamicTopology
from nnunet_ext.med_danet.network import MedDANet
from nnunet_ext.med_danet.network import arch_kwargs_at as med_danet_kwargs
from nnunet_ext.med_tuning.network import MedTuningNet
from nnunet_ext.methods import METHODS
from nnunet_ext.planning.derive import settings_words

FORMS = {  # options of torch.compile
    "eager": None,
    "compiled": {},
    "graphs": {"triton.cudagraphs": True},
    "channels_last": {"force_layout_optimization": True},
}
CLASSES = 16
CUBE, PLANAR, SMALL, TINY_CUBE, TOKENS = (128,) * 3, (32, 128, 128), (40, 56, 40), (64,) * 3, (16, 224, 224)


def strides_of(size):
    """Down to sides of at least 4, by two where an axis has room; as nnU-Net's plans have them."""
    sides, strides = list(size), [[1, 1, 1]]
    while len(strides) < 6 and max(sides) >= 8:
        step = [2 if side >= 8 and side * 2 > max(sides) else 1 for side in sides]
        sides = [side // s for side, s in zip(sides, step, strict=True)]
        strides.append(step)
    return strides


def unet(kind, blocks, size):
    strides = strides_of(size)
    levels = len(strides)
    common = {"norm_op": nn.InstanceNorm3d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}, "nonlin": nn.LeakyReLU}
    widths = [min(32 * 2**level, 320) // NARROW["unet"] for level in range(levels)]
    return kind(
        1, levels, widths, nn.Conv3d, 3, strides, blocks[:levels], CLASSES,
        [blocks[-1] if kind is PlainConvUNet else 1] * (levels - 1), conv_bias=True, deep_supervision=True,
        nonlin_kwargs={"inplace": True}, **common,
    )  # fmt: skip


COMPILED_TINY = ("E2ENet S=.8", "Med-Tuning med_adapter")
NARROW = {
    "unet": 1,
    "e2enet": {},
    "dints": {},
    "search": {},
    "med_tuning": {},
}  # of --tiny: what U-Nets' widths are divided by, widths


def e2enet(size, **settings):
    return E2ENet(1, CLASSES, strides=strides_of(size), deep_supervision=True, **{**settings, **NARROW["e2enet"]})


def dints(size):
    return DiNTSNet(1, CLASSES, **{**dints_kwargs(strides_of(size)), **NARROW["dints"]})


def dints_search(size):
    return DiNTSSearchNet(1, CLASSES, **{**search_kwargs(strides_of(size)[:5]), **NARROW["dints"], **NARROW["search"]})


def med_danet(size):
    return MedDANet(1, CLASSES, **med_danet_kwargs(strides_of(size), size))


def med_tuning(size, **settings):
    return MedTuningNet(1, CLASSES, patch_size=list(size), **settings, **NARROW["med_tuning"])


class Fused(nn.Module):
    """E2ENet with the Triton kernels, eagerly."""

    def __init__(self, size, **settings):
        super().__init__()
        self.whole = e2enet(size, **settings)

    def forward(self, x):
        with mock.patch.dict(os.environ, nnUNet_ext_fused="1"):
            return self.whole(x)


class Candidate(nn.Module):
    """One candidate of Med-DANet on every slice."""

    def __init__(self, index, size):
        super().__init__()
        self.whole, self.index = med_danet(size), index

    def forward(self, x):
        return self.whole.candidate(self.index, x)


class Routed(nn.Module):
    """Half of the slices skipped, the others to M1 and M2: group sizes as data have them, whatever is decided."""

    def __init__(self, size):
        super().__init__()
        self.whole = med_danet(size)
        self.whole.decision_trained.fill_(True)
        self.whole.decision.register_forward_hook(self._instead)

    @staticmethod
    def _instead(_, inputs, shares):
        wanted = torch.arange(len(shares), device=shares.device) // 3 % 4  # 0 0 0 1 1 1 2 2 2 3 3 3 0 ...
        wanted = torch.where(wanted == 3, 0, wanted).view(4, -1)[:1].repeat(4, 1).flatten()
        return 20 * nn.functional.one_hot(wanted, shares.shape[1]).to(shares.dtype)

    def forward(self, x):
        return self.whole(x)


@dataclass
class Net:
    """A network at a size: how it is made, and what is asked of it."""

    name: str
    make: Callable[[Sequence[int]], nn.Module]
    batch: int
    size: Sequence[int]
    trains: bool = True
    predicts: bool = True
    forms: Sequence[str] = ("eager",)

    def label(self, size: Sequence[int]) -> str:
        """Name and shape of the input, by which --only and --profile choose."""
        return f"{self.name} {'x'.join(map(str, [self.batch, 1, *size]))}"


UNET, RESENC = partial(unet, PlainConvUNet, [2] * 6), partial(unet, ResidualEncoderUNet, [1, 3, 4, 6, 6, 6])
U_NET, E2, DINTS = ("U-Net", UNET), ("E2ENet S=.8", e2enet), ("DiNTS published", dints)
COMPILED = ("eager", "compiled")
GRAPHS = (*COMPILED, "graphs")
LAYOUTS = (*COMPILED, "channels_last")
NETS = [
    Net(*U_NET, 2, CUBE, forms=LAYOUTS),
    Net("ResEnc M", RESENC, 2, CUBE, forms=COMPILED),
    Net(*E2, 2, CUBE, forms=LAYOUTS),
    Net("E2ENet S=.8, fused", Fused, 2, CUBE),
    Net("E2ENet S=.8, keeps everything", partial(e2enet, memory_efficient=False), 2, CUBE),
    Net("E2ENet S=.8, blocks of 16", partial(e2enet, connection_block=16), 2, CUBE, forms=COMPILED),
    Net("E2ENet S=.8, blocks of 16, fused", partial(Fused, connection_block=16), 2, CUBE),
    Net("E2ENet S=.9, blocks of 16", partial(e2enet, connection_block=16, sparsity=0.9), 2, CUBE),
    Net(*DINTS, 2, CUBE, forms=COMPILED),
    Net("DiNTS search", dints_search, 2, (96, 96, 96), predicts=False),
    Net(*U_NET, 2, PLANAR, forms=COMPILED),
    Net(*E2, 2, PLANAR, forms=COMPILED),
    Net(*DINTS, 2, PLANAR),
    Net("Med-DANet M1", partial(Candidate, 0), 2, PLANAR, forms=GRAPHS),
    Net("Med-DANet M4", partial(Candidate, 3), 2, PLANAR, forms=GRAPHS),
    Net("Med-DANet routed", Routed, 2, PLANAR, trains=False, forms=COMPILED),
    Net("Med-Tuning med_adapter", partial(med_tuning, tuning="med_adapter"), 1, TOKENS, forms=GRAPHS),
    Net("Med-Tuning full", partial(med_tuning, tuning="full"), 1, TOKENS, forms=GRAPHS),
    Net("Med-Tuning head", partial(med_tuning, tuning="head"), 1, TOKENS),
    *(Net(*net, 1, TINY_CUBE, forms=GRAPHS) for net in (U_NET, E2, DINTS)),
    Net(*U_NET, 8, SMALL, forms=GRAPHS),
    Net(*E2, 8, SMALL, forms=COMPILED),
    Net(*DINTS, 8, SMALL, forms=GRAPHS),
]


class Report:
    """Lines of JSON; what is there already is known by section, name, shape and form."""

    def __init__(self, path, about):
        self.path, self.about, self.known = path, about, set()
        if path and path.is_file():
            self.known = {self.key(json.loads(line)) for line in path.read_text().splitlines()}

    @staticmethod
    def key(row):
        return tuple(str(row.get(name)) for name in ("section", "name", "shape", "form", "card"))

    def has(self, **row):
        return self.key({**self.about, **row}) in self.known

    def add(self, **row):
        line = json.dumps({**self.about, **row})
        print(line, flush=True)
        if self.path:
            with self.path.open("a") as file:
                file.write(line + "\n")


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(work, device, rounds):
    """Median and least milliseconds."""
    times = []
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return {"ms": round(1e3 * statistics.median(times), 2), "least_ms": round(1e3 * min(times), 2)}


def half(device):
    return torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16)


def supervised(network, on):
    part = getattr(network, "decoder", getattr(network, "whole", network))
    if isinstance(getattr(part, "deep_supervision", None), bool):
        part.deep_supervision = on


class Measured:
    """One network in one form: what is timed of it."""

    def __init__(self, net, form, args, device, size):
        torch.manual_seed(0)
        self.net, self.form, self.args, self.device = net, form, args, device
        self.network = self.run = net.make(size).to(device)
        self.x = torch.randn(net.batch, 1, *size, device=device)
        options = FORMS[form]
        if options is not None and isinstance(self.network, Routed):
            self.network.whole.compile_candidates(**({"options": options} if options else {}))
        elif options is not None:
            inductor = {"options": options} if args.backend == "inductor" and options else {}
            self.run = torch.compile(self.network, backend=args.backend, **inductor)
        self.tuned = [p for p in self.network.parameters() if p.requires_grad]
        self.scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
        self.optimizer = torch.optim.SGD(self.tuned, 1e-3, momentum=0.99, nesterov=True)
        self.works = {"forward": self.forward} if net.predicts else {}
        if net.trains:
            self.works["step"] = self.step

    def forward(self, run=None):
        self.network.eval()
        supervised(self.network, False)
        with torch.no_grad(), half(self.device):
            (run or self.run)(self.x)

    def step(self, run=None):
        self.network.train()
        supervised(self.network, True)
        self.optimizer.zero_grad(set_to_none=True)
        with half(self.device):
            outputs = (run or self.run)(self.x)
            outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
            loss = sum(output.float().square().mean() for output in outputs)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.tuned, 12)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def first_calls(self) -> dict[str, float]:
        """Seconds of the first call of each, with compilation."""
        # What cuDNN finds beside other processes must not stay: other precision flags are another key of its choices.
        torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = False
        seconds = {}
        for name, work in self.works.items():
            start = time.perf_counter()
            self._when_there_is_memory(work)
            synchronize(self.device)
            seconds[name] = round(time.perf_counter() - start, 1)
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return seconds

    def _when_there_is_memory(self, work):
        for _ in range(10 if self.args.together else 0):
            try:
                return work()
            except torch.OutOfMemoryError:  # others beside this compile and try their networks too
                torch.cuda.empty_cache()
                time.sleep(3)
        return work()

    def timings(self) -> dict[str, dict]:
        """Of each work; alone on the card."""
        torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = True
        found = {}
        for name, work in self.works.items():
            if self.form == "graphs":
                work(self.network)  # cuDNN cannot choose while a graph is recorded
            for _ in range(0 if self.args.tiny else 2):
                work()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            found[name] = timed(work, self.device, self.args.rounds)
            if self.device.type == "cuda":
                found[name]["peak_gib"] = round(self._peak(name) / 2**30, 3)
            self.optimizer.zero_grad(set_to_none=True)
        return found

    def _peak(self, name):
        if self.form == "graphs":
            return torch.cuda.memory_reserved()
        momentum = sum(4 * p.numel() for p in self.tuned if self.optimizer.state.get(p)) if name == "forward" else 0
        return torch.cuda.max_memory_allocated() - momentum

    def profile(self) -> str:
        """The kernels of three steps (forward passes where there are none), by their time on the card."""
        work = self.works.get("step", self.works.get("forward"))
        with torch.profiler.profile() as profiler:
            for _ in range(3):
                work()
            synchronize(self.device)
        return profiler.key_averages().table(sort_by="self_device_time_total", row_limit=40, max_name_column_width=110)


def measuring(net, form, args, device, size) -> Iterator[dict]:
    """First what the first calls took, then the row; a failure is a result."""
    row = {}
    try:
        measured = Measured(net, form, args, device, size)
        row["parameters_m"] = round(sum(p.numel() for p in measured.network.parameters()) / 1e6, 3)
        row["first_s"] = measured.first_calls()
        yield row
        row.update(measured.timings())
        if args.profile and any(part in f"{net.label(size)} {form}" for part in args.profile):
            row["profile"] = measured.profile()
    except Exception as error:  # the other networks are measured all the same
        row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
    yield row


def wanted_speeds(args, report):
    """Net, form and size of all rows that are asked for and not there, with what tells the row from others."""
    for form in FORMS:
        for net in args.nets:
            size = [max(16 if side > 32 else 4, side // 8) for side in net.size] if args.tiny else list(net.size)
            about = {"section": "speed", "name": net.name, "shape": [net.batch, 1, *size], "form": form}
            there = form in (args.forms or net.forms) and (
                form == "eager" or not args.tiny or (form == "compiled" and net.name in COMPILED_TINY)
            )
            if there and args.wants(f"{net.label(size)} {form}") and not report.has(**about):
                yield net, form, size, about


def finish(row, about, args, report):
    if args.out and "profile" in row:
        name = re.sub(r"\W+", "_", f"{about['name']} {about['shape']} {about['form']}")
        args.out.with_name(f"{args.out.stem}_{name}.txt").write_text(row.pop("profile"))
    report.add(**about, **row)


def speed(args, device, report):
    for net, form, size, about in list(wanted_speeds(args, report)):
        *_, row = measuring(net, form, args, device, size)
        finish(row, about, args, report)
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def one_of_many(pipe, number, args):
    """A process of --together: the first calls, then, when it is told to, the timings."""
    args = parsed(args)
    net, form, size, _ = list(wanted_speeds(args, Report(None, {})))[number]
    for row in measuring(net, form, args, torch.device(args.device), size):
        pipe.send(row)
        if "error" in row:
            break
        pipe.recv()


def together(args, device, report):
    """The sections speed and training, with all that compiles at once; speeds are then taken one by one, eager last."""
    every = [about for *_, about in wanted_speeds(args, Report(None, {}))]
    os.environ.update(TORCHINDUCTOR_COMPILE_THREADS="1", OMP_NUM_THREADS="1")
    context = multiprocessing.get_context("spawn")
    started = []
    for number, about in enumerate(every if "speed" in args.section else []):
        if about["form"] == "eager" or report.has(**about):
            continue
        here, there = context.Pipe()
        process = context.Process(target=one_of_many, args=(there, number, args.words), daemon=True)
        process.start()
        started.append((process, here, about))
    end = time.monotonic() + args.patience
    if "training" in args.section:
        training(args, device, report)
    waiting = []
    for process, pipe, about in started:
        if not pipe.poll(max(0.1, end - time.monotonic())):
            process.kill()
            report.add(**about, error=f"no first call within {args.patience} s")
            continue
        row = pipe.recv()
        if "error" in row:
            report.add(**about, **row)
        else:
            waiting.append((process, pipe, about))
    for process, pipe, about in waiting:
        try:
            pipe.send("go")
            finish(pipe.recv(), about, args, report)
        except EOFError:
            report.add(**about, error="the process ended")
        process.kill()
        process.join()  # its memory is free
    if "speed" in args.section:
        speed(args, device, report)


def relative(found, expected):
    return float((found.float().cpu() - expected).norm() / expected.norm())


def first(output):
    return output[0] if isinstance(output, (list, tuple)) else output


def correctness(args, device, report):
    size = [16, 16, 16] if args.tiny else [64, 64, 64]
    seen = set()
    for net in args.nets:
        about = {"section": "correctness", "name": net.name}
        if net.name in seen or not net.predicts or not args.wants(net.name) or report.has(**about):
            continue
        seen.add(net.name)
        row = {}
        try:
            torch.manual_seed(1)
            network, x = net.make(size).eval(), torch.randn(1, 1, *size)
            supervised(network, False)
            with torch.no_grad():
                expected = first(network(x))
                network, x = network.to(device), x.to(device)
                row["float32"] = relative(first(network(x)), expected)
                with half(device):
                    row["half"] = relative(first(network(x)), expected)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        report.add(**about, **row)
    if args.wants("connections") and not report.has(section="correctness", name="connections"):
        report.add(section="correctness", name="connections", **moving_connections(device, size))
    if args.wants("routing") and not report.has(section="correctness", name="routing"):
        report.add(section="correctness", name="routing", **routing(device, size))


def moving_connections(device, size):
    """An update of E2ENet's connections: as many are active after it, and some are others."""
    torch.manual_seed(0)
    network = e2enet(size, base_features=8).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99)
    options = {"total_steps": 100, "update_every": 2, "drop_rate": 0.5, "final_drop_rate": 0.05}
    topology = DynamicTopology(network, optimizer, dynamic=True, seed=0, **options)
    before = {name: set(layer.index.tolist()) for name, layer in topology.layers.items()}
    for _ in range(2):
        optimizer.zero_grad()
        sum(output.square().mean() for output in network(torch.randn(1, 1, *size, device=device))).backward()
        optimizer.step()
    after = {name: set(layer.index.tolist()) for name, layer in topology.layers.items()}
    return {
        "counts_kept": all(len(before[name]) == len(after[name]) for name in before),
        "share_moved": sum(len(after[name] - before[name]) for name in before) / sum(map(len, before.values())),
    }


def routing(device, size):
    """Logits of routed slices against the chosen candidate on all of them, largest difference over largest logit."""
    torch.manual_seed(0)
    network, x = Routed(size).to(device).eval(), torch.randn(1, 1, *size, device=device)
    with torch.no_grad():
        network.whole.record = []
        found = network.whole.fold(network(x))
        choices = network.whole.record[0]
        candidates = [network.whole.fold(network.whole.candidate(index, x)) for index in (0, 1)]
        expected = [candidates[c - 1][n] if c else found[n] for n, c in enumerate(choices)]
    worst = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
    return {"choices": sorted(set(choices)), "worst": worst / float(found.abs().max())}


@contextmanager
def phantoms():
    """nnU-Net's folders with a few small volumes, planned and preprocessed; number of the data set."""
    with tempfile.TemporaryDirectory() as root:
        folders = {f"nnUNet_{name}": f"{root}/{name}" for name in ("raw", "preprocessed", "results")}
        few = {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1"}  # each would import torch anew
        with mock.patch.dict(os.environ, {**few, **folders}):
            generate_dataset(f"{root}/raw/Dataset998_Phantoms", 5, 0, (16, 32, 32))
            # In this process, which is faster; nnU-Net reads its folders when it is imported.
            from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import plan_and_preprocess_entry

            with mock.patch.object(sys, "argv", ["", *"-d 998 -c 3d_fullres -np 1 -npfp 1".split()]):
                plan_and_preprocess_entry()
            os.environ["nnUNet_n_proc_DA"] = "0"  # which planning does not take
            yield 998


def training(args, device, report):
    """The stock command for nnU-Net's trainer and each of ours; seconds of its epochs, and of all."""
    with phantoms() if args.tiny else nullcontext(args.dataset) as dataset:
        train_each(dataset, args, device, report)


def train_each(dataset, args, device, report):
    trainers = {"nnUNetTrainer_5epochs": ("nnUNetPlans", None)}
    for method in METHODS.values():
        trainers[method.trainer] = (method.plans_name, method.name)
    if args.tiny:
        trainers = {"E2ENetTrainer": trainers["E2ENetTrainer"]}

    def train(trainer):
        about = {"section": "training", "name": trainer}
        if args.wants(trainer) and not report.has(**about):
            report.add(**about, **training_of(trainer, *trainers[trainer], dataset, args, device))

    with ThreadPoolExecutor(len(trainers) if args.together else 1) as pool:
        list(pool.map(train, trainers))


def training_of(trainer, plans, method, dataset, args, device):
    """Plans, trains and validates; a failure is a result."""
    short = {"num_epochs": 2, "num_iterations_per_epoch": 40, "num_val_iterations_per_epoch": 5}
    if args.tiny:
        short = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
    row = {}
    try:
        if method is not None:
            random = {"pretrained": False} if method == "med_tuning" else {}
            small = {"patch_size": [16, 32, 32], "base_features": 4, "batch_size": 2} if args.tiny else {}
            plans = f"{plans}_gpu"
            command(
                "nnunet_ext", "plan", dataset, "--method", method, "--from", "nnUNetPlans", "--name", plans,
                "--configuration", "3d_fullres", "--overwrite", *settings_words({**short, **random, **small}),
            )  # fmt: skip
        words = [dataset, "3d_fullres", 0, "-tr", trainer, "-p", plans, "-device", device.type]
        start = time.perf_counter()
        command("nnUNetv2_train", *words)
        row["wall_s"] = round(time.perf_counter() - start, 1)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error)[:300]}"
    results = Path(os.environ["nnUNet_results"])
    logs = sorted(results.glob(f"*/{trainer}__{plans}__3d_fullres/fold_0/training_log_*.txt"))
    if logs:
        text = logs[-1].read_text()
        row["epoch_s"] = [float(seconds) for seconds in re.findall(r"Epoch time: ([\d.]+) s", text)]
        row["pseudo_dice"] = re.findall(r"Pseudo dice (\[.*\])", text)[-1:]
    return row


SECTIONS = {"correctness": correctness, "speed": speed, "training": training}


def parsed(words):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="networks ('U-Net 2x1x128x128x128 compiled', or a part) and trainers",
    )
    parser.add_argument("--forms", nargs="+", choices=FORMS, help="of the speeds; default: each net's own")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dataset", type=int, default=4, help="of the section training")
    parser.add_argument("--together", action="store_true", help="compile and train all at once, time one by one")
    parser.add_argument("--patience", type=float, default=240, help="seconds for all first calls of --together")
    parser.add_argument(
        "--profile", nargs="+", metavar="NAME", help="write the kernels of rows that hold it beside --out"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes, two compiled eagerly, one trainer on phantoms: a test"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(words)
    args.words = words
    args.wants = lambda name: not args.only or any(part in name for part in args.only)
    args.backend = "eager" if args.tiny else "inductor"
    args.nets = NETS
    if args.tiny:
        args.rounds, args.nets = 1, list({net.name: net for net in reversed(NETS)}.values())[::-1]
        NARROW.update(unet=8, e2enet={"base_features": 8}, dints={"base_features": 4}, search={"num_layers": 3})
        NARROW["med_tuning"] = {"backbone": "vit_tiny_patch16_224", "depths": [1, 1, 1, 1]}
    return args


def main():
    args = parsed(sys.argv[1:])
    device = torch.device(args.device)
    os.environ["nnUNet_ext_packed"] = "0"  # torch on the CPU, too, is what results are compared with
    card = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    report = Report(args.out, {"card": card, "torch": torch.__version__})
    if args.together:
        together(args, device, report)
    for section in args.section:
        if section == "correctness" or not args.together:
            SECTIONS[section](args, device, report)


if __name__ == "__main__":
    main()
