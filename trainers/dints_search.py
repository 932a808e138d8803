"""DiNTSSearchTrainer: searches a topology on the user's data (He et al., CVPR 2021, sections 3.4 to 3.6 and 4.1).

Weights alone learn first, on one half of the training cases; then each step of the weights is followed by one of the
architecture's logits, on the other half. Every epoch of that phase writes the code which the logits mean by then.
"""

import math
import os
import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import timedelta
from time import monotonic
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from torch import Tensor
from torch import distributed as dist

from nnunet_ext.dints.architecture_code import CodeFile
from nnunet_ext.dints.discretize import Decoded, decode
from nnunet_ext.dints.memory_budget import edge_memory, memory_ratio
from nnunet_ext.dints.network import DiNTSNet, DiNTSSearchNet, search_arch_kwargs
from nnunet_ext.dints.options import DiNTSOptions, search_patch, stepped_rate
from nnunet_ext.dints.relaxation import Regularisers, regularisers, relax
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json, write_json
from nnunet_ext.planning.options import PLANS_KEY, architecture_options, refuse_unknown
from nnunet_ext.trainers.base import ExtTrainer, NoScheduler, named_arch_kwargs, unwrap

_JOINT_COST = 2.5  # seconds of a joint iteration over those of a weights-only one, until it is measured
DISCRETE = "discrete_"  # prefix of what the discrete net scores in validation


class DiNTSSearchTrainer(ExtTrainer):
    """Searches; the fold's folder gets `architecture.json` and the best codes by validation."""

    method = "dints_search"
    network_class = DiNTSSearchNet
    options_class = DiNTSOptions
    options: DiNTSOptions

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        options, planned = self.options, self.plans_manager.get_configuration(configuration)
        # Patch and batch of the search; the plans, which are saved beside the model, stay as they are.
        sizes = {
            "patch_size": search_patch(options, planned.patch_size, planned.pool_op_kernel_sizes),
            "batch_size": options.search_batch_size,
        }
        self.configuration_manager = ConfigurationManager({**planned.configuration, **sizes})
        self.num_epochs = math.ceil(options.search_iterations / self.num_iterations_per_epoch)
        self.initial_lr = options.search_lr * options.search_batch_size
        self.weight_decay = options.search_weight_decay
        self.iterations = 0
        self.best = {"continuous": -math.inf, "discrete": -math.inf}
        self.seconds: dict[bool, float] = {}  # of an iteration, by whether it is a joint one
        self.decoded: Decoded | None = None
        self.discrete_dice: float | None = None
        self._random_state: dict[str, Any] | None = None

    @staticmethod
    def arch_kwargs_from_configuration(configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """The supernet that the options describe, over the plan's strides."""
        options = DiNTSOptions.from_plans(configuration_manager.configuration.get(PLANS_KEY))
        planned = named_arch_kwargs(configuration_manager, DiNTSNet) or {}
        refuse_unknown(planned, architecture_options(DiNTSNet), f"arch_kwargs of {DiNTSNet.__name__}")
        strides = configuration_manager.pool_op_kernel_sizes
        return search_arch_kwargs(options, strides, planned.get("use_downsample", True))

    @classmethod
    def checked_options(cls, plans: dict, configuration: str, dataset_json: dict) -> DiNTSOptions:
        """As `ExtTrainer`'s; and the search's own patch must have as many axes as the plan's."""
        options = super().checked_options(plans, configuration, dataset_json)
        assert isinstance(options, DiNTSOptions)
        patch, axes = options.search_patch_size, len(plans_patch(plans, configuration))
        if patch is not None and len(patch) != axes:
            raise ConfigurationError(f"Option 'search_patch_size' needs {axes} numbers for this plan, found {patch}.")
        return options

    def _do_i_compile(self) -> bool:
        return False

    # optimizers

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """SGD for the weights; the logits have their own Adam."""
        weights = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(weights, self.initial_lr, momentum=0.9, weight_decay=self.weight_decay)
        return optimizer, NoScheduler()

    def on_initialized(self) -> None:
        """Makes the optimizer of the logits and the table of the memory budget."""
        network = unwrap(self.network)
        assert isinstance(network, DiNTSSearchNet)
        self.supernet = network
        self.logits = [network.log_alpha_a, network.log_alpha_c]
        self.architecture_optimizer = torch.optim.Adam(self.logits, self.options.search_architecture_lr)
        self.architecture_scaler = torch.amp.GradScaler("cuda") if self.device.type == "cuda" else None
        table = edge_memory(network.structure, self.configuration_manager.patch_size)
        self.memory_table = torch.tensor(table, device=self.device)

    @property
    def is_joint(self) -> bool:
        """Whether the next iteration moves the architecture too."""
        return self.iterations >= self.options.search_joint_start

    @property
    def ramp(self) -> float:
        """t / t_all of equation 11, t counting the joint iterations from 1."""
        done = self.iterations - self.options.search_joint_start + 1
        return min(1.0, max(0.0, done / self.options.search_joint_iterations))

    # data

    def halves(self, keys: list[str]) -> tuple[list[str], list[str]]:
        """train1 and train2: the training cases shuffled by the seed and cut in two; saved, and kept on `--c`."""
        path = os.path.join(self.output_folder, "search_halves.json")
        if self.current_epoch and os.path.isfile(path):
            saved = read_json(path)
            if sorted(saved["train1"] + saved["train2"]) == sorted(keys):
                return saved["train1"], saved["train2"]
        if len(keys) < 2:
            raise ConfigurationError(
                f"A search needs at least two training cases, one for the weights and one for the architecture; "
                f"this fold has {len(keys)}."
            )
        shuffled = sorted(keys)
        random.Random(self.seed).shuffle(shuffled)
        middle = (len(shuffled) + 1) // 2
        first, second = sorted(shuffled[:middle]), sorted(shuffled[middle:])
        if self.local_rank == 0:
            os.makedirs(self.output_folder, exist_ok=True)
            write_json(path, {"train1": first, "train2": second})
        return first, second

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's, with one half of the training cases."""
        training, validation = self.do_split()
        previous = self.folder_with_segs_from_previous_stage
        first, second = (
            self.dataset_class(self.preprocessed_dataset_folder, keys, folder_with_segs_from_previous_stage=previous)
            for keys in (self.halves(list(training))[self._half], validation)
        )
        return first, second

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Pairs of batches from the two halves; the second comes only when the architecture moves."""
        self._half = 0
        weights, validation = super().get_dataloaders()
        self._half = 1
        architecture, unused = super().get_dataloaders()
        _finish(unused)
        return _Pairs(weights, architecture, lambda: self.is_joint), validation

    def on_train_start(self) -> None:
        """ExtTrainer's; a search that is continued then goes on with the random numbers at which it stopped."""
        super().on_train_start()
        self.print_to_log_file(
            f"Search of {self.num_epochs} epochs: the architecture moves from iteration "
            f"{self.options.search_joint_start} of {self.options.search_iterations} on, budget sigma "
            f"{self.options.sigma}. Patch {self.configuration_manager.patch_size}, batch {self.batch_size}."
        )
        if self._random_state is not None:
            _set_random_state(self._random_state)
            self._random_state = None

    def on_train_end(self) -> None:
        """nnU-Net's, and the end of the loaders that it does not know."""
        super().on_train_end()
        if isinstance(self.dataloader_train, _Pairs):
            self.dataloader_train.finish()

    # steps

    def on_train_epoch_start(self) -> None:
        """nnU-Net's, which logs the learning rate."""
        self._set_rate()
        self._started, self._first = monotonic(), self.iterations
        super().on_train_epoch_start()

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """nnU-Net's; measures the time of an iteration."""
        joint = self.iterations > self.options.search_joint_start
        self.seconds[joint] = (monotonic() - self._started) / max(1, self.iterations - self._first)
        super().on_train_epoch_end(train_outputs)

    def _set_rate(self) -> None:
        options = self.options
        rate = stepped_rate(
            self.iterations,
            self.initial_lr,
            options.search_lr,
            options.search_warmup_iterations,
            options.search_halve_every,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step of the weights, then, in the joint phase, one of the architecture."""
        self._set_rate()
        result = super().train_step(batch)
        if self.is_joint:
            self.architecture_step(batch["architecture"])
        self.iterations += 1
        return result

    def architecture_step(self, batch: dict) -> None:
        """One step of Adam on the logits by equation 11; first order, the weights are taken as they are."""
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"].to(self.device, non_blocking=True)
        for logits in self.logits:
            logits.requires_grad_(True)
        try:
            relaxed = relax(*self.logits)
            # Not through DDP, which would wait for gradients of the weights; the logits' are averaged below.
            with torch.autocast("cuda", enabled=self.device.type == "cuda"):
                segmentation = self.loss(self.supernet(data, relaxed), target)
            loss = segmentation + self._regularisers(relaxed).total(self.ramp, self.options.search_topology_weight)
            scaler = self.architecture_scaler
            gradients = torch.autograd.grad(loss if scaler is None else scaler.scale(loss), self.logits)
        finally:
            for logits in self.logits:
                logits.requires_grad_(False)
        for logits, gradient in zip(self.logits, gradients, strict=True):
            if self.is_ddp:
                dist.all_reduce(gradient)
                gradient /= dist.get_world_size()
            logits.grad = gradient
        if scaler is None:
            self.architecture_optimizer.step()
        else:
            scaler.step(self.architecture_optimizer)
            scaler.update()
        self.architecture_optimizer.zero_grad(set_to_none=True)

    def _regularisers(self, relaxed: Any) -> Regularisers:
        return regularisers(relaxed, self.memory_table, self.options.sigma, self.options.search_loss_floor)

    # validation of the supernet and of the discrete net in it

    def on_validation_epoch_start(self) -> None:
        """nnU-Net's; then finds the code that the logits mean."""
        super().on_validation_epoch_start()
        self.decoded = self.decode()

    def decode(self) -> Decoded:
        """The most probable feasible code of the logits as they are now."""
        edges, operations = (logits.detach().cpu().double().numpy() for logits in self.logits)
        return decode(edges, operations)

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's for the supernet; once the architecture has moved, also for the code alone, same weights."""
        if self.iterations <= self.options.search_joint_start or self.decoded is None:
            return super().validation_step(batch)
        copy = {"data": batch["data"], "target": deepcopy(batch["target"])}  # nnU-Net edits targets in place
        result = super().validation_step(copy)
        self.supernet.fixed_code = self.decoded.code
        try:
            discrete = super().validation_step(batch)
        finally:
            self.supernet.fixed_code = None
        return {**result, **{f"{DISCRETE}{key}": value for key, value in discrete.items()}}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """nnU-Net's for the supernet's scores; the discrete net's mean Dice beside them."""
        discrete = [
            {key.removeprefix(DISCRETE): value for key, value in output.items() if key.startswith(DISCRETE)}
            for output in val_outputs
        ]
        super().on_validation_epoch_end(
            [{key: value for key, value in output.items() if not key.startswith(DISCRETE)} for output in val_outputs]
        )
        self.discrete_dice = self._mean_dice(discrete) if discrete and discrete[0] else None

    def _mean_dice(self, outputs: list[dict]) -> float:
        """Mean over the classes of 2 TP / (2 TP + FP + FN), sums over all patches and ranks; nan without any class."""
        collated = collate_outputs(outputs)
        sums = np.stack([np.sum(collated[key], 0) for key in ("tp_hard", "fp_hard", "fn_hard")])
        if self.is_ddp:
            everywhere: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(everywhere, sums)
            sums = np.sum(everywhere, 0)
        tp, fp, fn = sums
        present = 2 * tp + fp + fn > 0
        return float((2 * tp / np.maximum(2 * tp + fp + fn, 1))[present].mean()) if present.any() else math.nan

    # results

    def on_epoch_end(self) -> None:
        """Writes the codes, then does nnU-Net's; the best ones are those of the best epoch by each mean Dice."""
        assert self.decoded is not None
        if self.iterations > self.options.search_joint_start:
            scores = {
                "continuous": float(self.logger.get_value("mean_fg_dice", step=-1)),
                "discrete": math.nan if self.discrete_dice is None else self.discrete_dice,
            }
            names = ["architecture.json"]
            for name, score in scores.items():
                if score > self.best[name]:
                    self.best[name] = score
                    names.append(f"architecture_best_{name}.json")
            if self.local_rank == 0:
                file = self.code_file(scores)
                for name in names:
                    file.write(os.path.join(self.output_folder, name))
        row = self.history_row()
        shown = "" if row["discrete_dice"] is None else f", Dice of the discrete net {row['discrete_dice']:.4f}"
        self.print_to_log_file(
            f"L_alpha {row['L_alpha']:.4f}, L_eta {row['L_eta']:.6f}, L_tp {row['L_tp']:.3f}, memory ratio "
            f"{row['memory_ratio']:.4f} (budget {self.options.sigma}), G {row['G']}{shown}"
        )
        self.print_to_log_file(f"Time left: about {timedelta(seconds=round(self.seconds_left()))}")
        super().on_epoch_end()

    def code_file(self, scores: dict[str, float]) -> CodeFile:
        """The code that the logits mean now, with the facts of the search."""
        assert self.decoded is not None
        relaxed = self.supernet.relaxed()
        structure, patch = self.supernet.structure, self.configuration_manager.patch_size
        meta = {
            "dataset": self.plans_manager.dataset_name,
            "plans": self.plans_manager.plans_name,
            "configuration": self.configuration_name,
            "fold": self.fold,
            "epoch": self.current_epoch,
            "iterations": self.iterations,
            "seed": self.seed,
            "sigma": self.options.sigma,
            "patch_size": list(patch),
            "exact_cost": self.decoded.cost,
            "G": self.decoded.gap,
            "memory_ratio": float(self._regularisers(relaxed).memory_ratio),
            "memory_ratio_of_code": memory_ratio(self.decoded.code, structure, patch),
            "mean_max_alpha": float(relaxed.log_alpha.exp().amax(2).mean()),
            "edge_probabilities": [[round(p, 4) for p in row] for row in relaxed.edges.tolist()],
            "dice": {name: score if math.isfinite(score) else None for name, score in scores.items()},
        }
        return CodeFile(self.decoded.code, structure.use_downsample, structure.dimensions, meta)

    def seconds_left(self) -> float:
        """An estimate: iterations left of each kind at the pace of the last epoch of that kind."""
        options, epoch = self.options, self.num_iterations_per_epoch
        weights = self.seconds.get(False, self.seconds.get(True, 0.0) / _JOINT_COST)
        joint = self.seconds.get(True, _JOINT_COST * weights)
        remaining = self.num_epochs * epoch - self.iterations
        of_weights = max(0, options.search_joint_start - self.iterations)
        return of_weights * weights + (remaining - of_weights) * joint

    def history_row(self) -> dict[str, Any]:
        """Losses of the logits, memory ratio, G, and the code: a number a layer for its edges, a digit an operation."""
        found = self.decode()
        terms = self._regularisers(self.supernet.relaxed())
        return {
            "iterations": self.iterations,
            "L_alpha": float(terms.alpha),
            "L_eta": float(terms.eta),
            "L_tp": float(terms.topology),
            "memory_ratio": float(terms.memory_ratio),
            "sigma": self.options.sigma,
            "G": found.gap,
            "cost": found.cost,
            "active_edges": found.code.num_edges,
            "edges": [int("".join(map(str, row)), 2) for row in found.code.active],
            "operations": ["".join(map(str, row)) for row in found.code.operations],
            "discrete_dice": _finite(self.discrete_dice),
        }

    # checkpoints

    def method_state(self) -> dict[str, Any]:
        """The clock, Adam of the logits, the best scores, and all random numbers; the logits are in the state dict."""
        return {
            "iterations": self.iterations,
            "architecture_optimizer": self.architecture_optimizer.state_dict(),
            "architecture_scaler": None if self.architecture_scaler is None else self.architecture_scaler.state_dict(),
            "best": dict(self.best),
            "random": _random_state(),
        }

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Continues from `method_state()`."""
        self.iterations = state["iterations"]
        self.architecture_optimizer.load_state_dict(state["architecture_optimizer"])
        if self.architecture_scaler is not None and state["architecture_scaler"] is not None:
            self.architecture_scaler.load_state_dict(state["architecture_scaler"])
        self.best = dict(state["best"])
        if not self.is_ddp:  # the state is that of the first rank, and ranks must draw other data
            self._random_state = state["random"]
            _set_random_state(state["random"])


def plans_patch(plans: dict, configuration: str) -> list[int]:
    """The patch of a configuration, which may inherit it."""
    values = plans["configurations"][configuration]
    while "patch_size" not in values:
        values = plans["configurations"][values["inherits_from"]]
    return list(values["patch_size"])


class _Pairs:
    """Batches of `weights`, each with a batch of `architecture` under that key while `is_joint()`."""

    def __init__(self, weights: Iterator[dict], architecture: Iterator[dict], is_joint: Callable[[], bool]) -> None:
        self.loaders, self.is_joint = (weights, architecture), is_joint

    def __next__(self) -> dict:
        batch = dict(next(self.loaders[0]))
        if self.is_joint():
            batch["architecture"] = next(self.loaders[1])
        return batch

    def finish(self) -> None:
        """Ends the worker processes."""
        for loader in self.loaders:
            _finish(loader)


def _finish(loader: Any) -> None:
    if isinstance(loader, (NonDetMultiThreadedAugmenter, MultiThreadedAugmenter)):
        loader._finish()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _random_state() -> dict[str, Any]:
    """The states of the generators that training draws from in this process, as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, Tensor.numpy(keys).astype(np.uint32), *rest))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
