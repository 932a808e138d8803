"""Does a search of DiNTS find more than chance? Searched codes against random ones of the same memory.

    python benchmarks/dints_search.py --work WORK --out benchmarks/results/dints_search_phantoms.json
    python benchmarks/dints_search.py --data nnUNet_preprocessed/Dataset004_Hippocampus/nnUNetPlans_3d_fullres \\
        --patch 32 48 32 --layers 6 --depths 3 --width 8 --weight-steps 300 --joint-steps 600 --rate 0.03 \\
        --train-steps 600 --work WORK --out benchmarks/results/dints_search_hippocampus.json

For each seed one search is run, with the package's own steps, schedule and decoding, on two halves of the training
cases. Its code is compared with random feasible codes, decoded from random logits within the memory ratio of the
searched code, and with the code of the same search without its segmentation loss, that is from the regularisers alone.
Every code is then trained from scratch on all training cases, from the same seeds, and scored on cases that neither
has seen: mean Dice over cases and structures, mean over the seeds of the training.

Statistics over the searches: the rank of the searched code among itself and its random codes, with the exact
probability of a rank sum as good or better by chance (one-sided), and the mean difference to them. Phantoms are those
of the demo; a data set is read from nnU-Net's preprocessed folder (its first --cases cases).

Results of each piece are kept in WORK, so that a run that was killed goes on.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_ext.demo.phantoms import generate_case
from nnunet_ext.dints.architecture_code import ArchitectureCode
from nnunet_ext.dints.architecture_step import ArchitectureOptimizer
from nnunet_ext.dints.discretize import decode_in_budget
from nnunet_ext.dints.memory_budget import edge_memory, memory_ratio
from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet
from nnunet_ext.dints.options import DiNTSSearchOptions
from nnunet_ext.dints.schedule import SearchSchedule
from nnunet_ext.discovery.devices import processor
from nnunet_ext.files import write_json

MOMENTUM, RATE = 0.9, 0.02  # of the training of a code, which falls to nothing by nnU-Net's poly rule


# data: lists of (image [1, *size], labels [*size]) as numpy arrays


def phantoms(args):
    size, wanted = tuple(args.patch), args.cases + args.tests
    cases = []
    for number in range(wanted):
        image, labels, _ = generate_case(0, number, size)
        image = image.astype(np.float32)
        cases.append((((image - image.mean()) / image.std())[None], labels.clip(0, args.classes - 1)))
    return cases[: args.cases], cases[args.cases :]


def preprocessed(args):
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    dataset = nnUNetDatasetBlosc2(args.data)
    names = sorted(dataset.identifiers)
    np.random.default_rng(0).shuffle(names)
    cases = []
    for name in names[: args.cases + args.tests]:
        image, labels, *_ = dataset.load_case(name)
        cases.append((np.asarray(image[:1]), np.asarray(labels[0]).clip(0)))
    return cases[: args.cases], cases[args.cases :]


def batch(cases, args, rng):
    """`[B, 1, *patch]` and `[B, 1, *patch]`: random crops, mirrored at random, padded where a case is smaller."""
    images, targets = [], []
    for number in rng.integers(len(cases), size=args.batch):
        image, labels = cases[number]
        lacking = [max(0, p - s) for p, s in zip(args.patch, labels.shape, strict=True)]
        corner = [int(rng.integers(max(0, s - p) + 1)) for p, s in zip(args.patch, labels.shape, strict=True)]
        where = tuple(slice(c, c + p) for c, p in zip(corner, args.patch, strict=True))
        pads = [(0, n) for n in lacking]
        flips = tuple(axis for axis in range(3) if rng.random() < 0.5)
        images.append(np.flip(np.pad(image[0][where], pads), flips)[None].copy())
        targets.append(np.flip(np.pad(labels[where], pads), flips)[None].astype(np.float32).copy())
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(targets))


def dice_of(network, cases, classes):
    """Mean over cases and over the structures that are in either map."""
    scores = []
    network.eval()
    with torch.no_grad():
        for image, labels in cases:
            found = network(torch.from_numpy(image)[None])[0].argmax(0).numpy()
            for k in range(1, classes):
                a, b = found == k, labels == k
                if a.any() or b.any():
                    scores.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    network.train()
    return float(np.mean(scores))


def loss_function():
    return DC_and_CE_loss(
        {"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {}, dice_class=MemoryEfficientSoftDiceLoss
    )


# codes


def options_of(args):
    steps = args.weight_steps + args.joint_steps
    return DiNTSSearchOptions.from_plans(
        {
            "num_epochs": steps, "weight_epochs": args.weight_steps, "num_iterations_per_epoch": 1,
            "warmup_iterations": args.weight_steps // 2, "halve_every": max(1, 2 * steps // 5),
            "architecture_lr": args.rate, "sigma": args.sigma,
        }
    )  # fmt: skip


def strides_of(args):
    return [[1, 1, 1]] + [[2, 2, 2]] * args.depths


def supernet_of(args, seed):
    torch.manual_seed(seed)
    return DiNTSSearchNet(
        1, args.classes, strides=strides_of(args), num_layers=args.layers, num_depths=args.depths,
        base_features=args.width,
    )  # fmt: skip


def search(cases, args, seed):
    """The code of a search, as DiNTSSearchTrainer makes its steps."""
    network, options, loss = supernet_of(args, seed), options_of(args), loss_function()
    architecture, schedule = ArchitectureOptimizer(network, args.patch, options), SearchSchedule(options, args.batch)
    weights = [p for p in network.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(weights, schedule.peak_rate, 0.9, weight_decay=options.weight_decay)
    rng, half = np.random.default_rng(seed), len(cases) // 2
    for step in range(options.iterations):
        for group in sgd.param_groups:
            group["lr"] = schedule.rate(step)
        data, target = batch(cases[:half], args, rng)
        sgd.zero_grad(set_to_none=True)
        loss(network(data), target).backward()
        torch.nn.utils.clip_grad_norm_(weights, 12)  # nnU-Net's
        sgd.step()
        if schedule.is_joint(step):
            architecture.step(*batch(cases[half:], args, rng), loss, schedule.ramp(step))
    return architecture.decode().code


def regularised(args, seed):
    """The code of the same start and schedule without the segmentation loss."""
    network, options = supernet_of(args, seed), options_of(args)
    architecture, schedule = ArchitectureOptimizer(network, args.patch, options), SearchSchedule(options, args.batch)
    for step in range(options.joint_start, options.iterations):
        for logits in architecture.logits:
            logits.requires_grad_(True)
        terms = architecture.regularisers(network.relaxed())
        total = terms.total(schedule.ramp(step), options.topology_weight)
        for logits, gradient in zip(architecture.logits, torch.autograd.grad(total, architecture.logits), strict=True):
            logits.requires_grad_(False)
            logits.grad = gradient
        architecture.adam.step()
    return architecture.decode().code


def random_code(args, ratio, seed):
    """A feasible code of random logits with that memory ratio."""
    network = supernet_of(args, 0)
    table = np.array(edge_memory(network.structure, args.patch))
    rng = np.random.default_rng(seed)
    shapes = tuple(network.log_alpha_a.shape), tuple(network.log_alpha_c.shape)
    return decode_in_budget(*(rng.normal(size=shape) for shape in shapes), table, ratio).code


def trained(code, train, tests, args, seed):
    """Mean Dice of the code after a training from scratch."""
    torch.manual_seed(1000 + seed)
    network = DiNTSNet(1, args.classes, strides=strides_of(args), base_features=2 * args.width, **code.settings())
    sgd = torch.optim.SGD(network.parameters(), RATE, MOMENTUM, weight_decay=3e-5, nesterov=True)
    rng, loss = np.random.default_rng(1000 + seed), loss_function()
    for step in range(args.train_steps):
        for group in sgd.param_groups:
            group["lr"] = RATE * (1 - step / args.train_steps) ** 0.9
        data, target = batch(train, args, rng)
        sgd.zero_grad(set_to_none=True)
        loss(network(data), target).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        sgd.step()
    return dice_of(network, tests, args.classes)


# statistics


def exact_p(ranks, size):
    """Probability that ranks 1 to `size`, one of each block by chance, have a sum of at most that of `ranks`."""
    ways = np.array([1.0])
    for _ in ranks:
        ways = np.convolve(ways, np.r_[0.0, np.full(size, 1 / size)])
    return float(ways[: sum(ranks) + 1].sum())


def compared(blocks, one, many):
    """`one` of each block against its `many`."""
    ranks = [1 + sum(score > block[one] for score in block[many]) for block in blocks]
    differences = [block[one] - statistics.mean(block[many]) for block in blocks]
    return {
        "ranks": ranks,
        "of": 1 + len(blocks[0][many]),
        "p_one_sided": exact_p(ranks, 1 + len(blocks[0][many])),
        "mean_difference": statistics.mean(differences),
        "differences": differences,
    }


class Kept:
    """Results by name in a file: what is there is not computed again."""

    def __init__(self, path):
        self.path = path
        self.values = json.loads(path.read_text()) if path.is_file() else {}

    def __call__(self, name, make):
        if name not in self.values:
            start = time.process_time()
            self.values[name] = {"value": make(), "cpu_seconds": round(time.process_time() - start, 1)}
            write_json(self.path, self.values)
            print(f"{time.strftime('%H:%M:%S')} {name}: {str(self.values[name])[:120]}", flush=True)
        return self.values[name]["value"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="nnU-Net's preprocessed folder of a configuration (default: phantoms)")
    parser.add_argument("--patch", type=int, nargs=3, default=[16, 32, 32])
    parser.add_argument("--classes", type=int, default=None, help="background included (phantoms: 5, data: 3)")
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--tests", type=int, default=16)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--depths", type=int, default=3)
    parser.add_argument("--width", type=int, default=4, help="of the supernet; codes are trained with twice of it")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--weight-steps", type=int, default=60)
    parser.add_argument("--joint-steps", type=int, default=120)
    parser.add_argument("--rate", type=float, default=0.1, help="of Adam on the logits")
    parser.add_argument("--train-steps", type=int, default=100)
    parser.add_argument("--searches", type=int, default=6)
    parser.add_argument("--randoms", type=int, default=3, help="random codes for each search")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each code")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.classes = args.classes or (3 if args.data else 5)
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    kept = Kept(args.work / "pieces.json")
    train, tests = preprocessed(args) if args.data else phantoms(args)

    def score(name, code):
        runs = [
            kept(f"{name}, training {seed}", lambda seed=seed: trained(code, train, tests, args, seed))
            for seed in range(args.seeds)
        ]
        return statistics.mean(runs)

    def code_of(name, make):
        return ArchitectureCode.of(*kept(name, lambda: list(make().settings().values())))

    structure, blocks = supernet_of(args, 0).structure, []
    for seed in range(args.searches):
        found = code_of(f"searched {seed}", lambda seed=seed: search(train, args, seed))
        ratio = memory_ratio(found, structure, args.patch)
        codes = {"searched": [found], "random": [random_code(args, ratio, 100 * seed + k) for k in range(args.randoms)]}
        blocks.append({"codes": codes})
    for seed, block in enumerate(blocks):
        for kind, codes in block["codes"].items():
            block[kind] = [score(f"{kind} {seed} {k}", code) for k, code in enumerate(codes)]
    for seed, block in enumerate(blocks):  # last, since they are not what is asked first
        codes = block["codes"]["regularised"] = [
            code_of(f"regularised {seed}", lambda seed=seed: regularised(args, seed))
        ]
        block["regularised"] = [score(f"regularised {seed} {k}", code) for k, code in enumerate(codes)]
    for block in blocks:
        of = block.pop("codes")
        block["ratios"] = {kind: [memory_ratio(c, structure, args.patch) for c in codes] for kind, codes in of.items()}
        block["edges"] = {kind: [c.num_edges for c in codes] for kind, codes in of.items()}
        block["searched"] = block["searched"][0]
    result = {
        "settings": {key: value for key, value in vars(args).items() if key not in ("work", "out", "data")},
        "data": Path(args.data).parent.name if args.data else "phantoms of nnunet_ext demo",
        "torch": torch.__version__, "cpu": processor(),
        "cpu_seconds": round(sum(piece["cpu_seconds"] for piece in kept.values.values())),
        "mean_dice": {
            "searched": statistics.mean(block["searched"] for block in blocks),
            "random": statistics.mean(s for block in blocks for s in block["random"]),
            "regularised": statistics.mean(s for block in blocks for s in block["regularised"]),
        },
        "searched_against_random": compared(blocks, "searched", "random"),
        "searched_against_regularised": compared(blocks, "searched", "regularised"),
        "blocks": blocks,
    }  # fmt: skip
    print(json.dumps({key: value for key, value in result.items() if key != "blocks"}, indent=2))
    if args.out:
        write_json(args.out, result)


if __name__ == "__main__":
    main()
