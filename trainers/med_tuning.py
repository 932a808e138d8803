"""MedTuningTrainer: a frozen 2D transformer with pretrained weights, tuned by little (arXiv 2304.10880)."""

import os
from pathlib import Path
from typing import Any

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunet_ext.costs.complexity import count_parameters
from nnunet_ext.files import read_json, write_json
from nnunet_ext.med_tuning.costs import part_counts
from nnunet_ext.med_tuning.filters import change, slice_filters
from nnunet_ext.med_tuning.frozen import round_to_half, with_halves
from nnunet_ext.med_tuning.network import MedTuningNet, arch_kwargs_at
from nnunet_ext.med_tuning.options import MedTuningOptions
from nnunet_ext.med_tuning.weights import find_weights, load_into, wanted
from nnunet_ext.planning.options import PLANS_KEY, architecture_options
from nnunet_ext.trainers.base import ExtTrainer

_UNDECAYED = ("pos_embed", "relative_position_bias_table")


class MedTuningTrainer(ExtTrainer):
    """AdamW on what the tuning leaves trainable, warm-up and cosine by epochs, nnU-Net's loss and augmentation.

    Pretrained weights are loaded when a new training is initialised, never when one is continued, validated or used
    for prediction; `-pretrained_weights` replaces them.
    """

    method = "med_tuning"
    network_class = MedTuningNet
    options_class = MedTuningOptions
    arch_kwargs_at = staticmethod(arch_kwargs_at)
    final_keeps_moments = False
    options: MedTuningOptions
    weights: dict[str, Any] | None = None
    _is_new = True  # until a checkpoint is loaded

    @classmethod
    def planned_arch_kwargs(cls, configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """The plan's, for its patch: positions and slice filters are learned for one size."""
        patch = [int(size) for size in configuration_manager.patch_size]
        return {**super().planned_arch_kwargs(configuration_manager), "patch_size": patch}

    @classmethod
    def checked_options(cls, plans: dict, configuration: str, dataset_json: dict) -> MedTuningOptions:
        """As `ExtTrainer`'s; and a new training must find its weights, which are downloaded here if they must be."""
        options = super().checked_options(plans, configuration, dataset_json)
        assert isinstance(options, MedTuningOptions)
        manager = PlansManager(plans)
        chosen = {
            **architecture_options(cls.network_class),
            **cls.planned_arch_kwargs(manager.get_configuration(configuration)),
        }
        model = f"{cls.__name__}__{manager.plans_name}__{configuration}"
        finished = Path(str(nnUNet_results), manager.dataset_name, model).glob("fold_*/checkpoint_final.pth")
        # Where a fold is finished this may be its validation, which needs no weights; `initialize` says the rest.
        if wanted(chosen["tuning"], options) and not plans.get("continue_training") and not any(finished):
            find_weights(chosen["backbone"], options)
        return options

    def why_not_compiled(self) -> str:
        """The transform of one frequency branch."""
        chosen = self.planned_arch_kwargs(self.configuration_manager).get("frequency")
        if chosen == "fft":
            return "inductor has no code for the complex numbers of frequency 'fft'"
        return super().why_not_compiled()

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW or the authors' Adam over what is trainable, and the rate by epochs."""
        tuned = {name: p for name, p in self.net.named_parameters() if p.requires_grad}
        if self.options.optimizer == "adam":
            groups: list[dict[str, Any]] = [{"params": list(tuned.values()), "weight_decay": self.weight_decay}]
            optimizer: torch.optim.Optimizer = torch.optim.Adam(groups, self.initial_lr, amsgrad=True)
        else:
            filters = [f"{name}." for name in slice_filters(self.net)]
            free = {
                name
                for name, p in tuned.items()
                if p.ndim < 2 or name.endswith(_UNDECAYED) or name.startswith(tuple(filters))
            }
            groups = [
                {"params": [p for name, p in tuned.items() if name not in free], "weight_decay": self.weight_decay},
                {"params": [p for name, p in tuned.items() if name in free], "weight_decay": 0.0},
            ]
            fused = self.device.type in ("cpu", "cuda")  # one kernel for all tensors
            optimizer = torch.optim.AdamW([g for g in groups if g["params"]], self.initial_lr, fused=fused or None)
        return optimizer, _RateByEpoch(optimizer, self.options)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """ExtTrainer's; a training that is continued looks for no pretrained weights."""
        self._is_new = False
        super().load_checkpoint(filename_or_checkpoint)

    def rates_at(self, epoch: int, num_epochs: int) -> dict[str, float]:
        """The rate of warm-up and cosine."""
        return {"learning rate": self.options.of_length(num_epochs).rate(epoch)}

    def on_initialized(self) -> None:
        """A new training takes the pretrained weights, on every rank."""
        if self._is_new and wanted(self.net.tuning_name, self.options):
            record = load_into(self.net, self.options)
            self.weights = record.as_json()
            self.print_to_log_file(
                f"Pretrained weights of {record.backbone}: {record.tensors} of {record.tensors} tensors from "
                f"{record.source}, SHA256 {record.sha256}"
            )
            self._record_in_plans(record.sha256)
        round_to_half(self.net, self.net.frozen_names())
        self._taken = self._patch_kernel().clone()

    def _record_in_plans(self, digest: str | None) -> None:
        """Into the plans that nnU-Net writes into the model folder, which goes to other machines."""
        configurations = self.plans_manager.plans["configurations"]
        options = self.configuration_manager.configuration.get(PLANS_KEY) or {}
        configurations[self.configuration_name][PLANS_KEY] = {**options, "weights_sha256": digest}
        for values in configurations.values():
            if (values.get(PLANS_KEY) or {}).get("weights_file"):
                name = os.path.basename(values[PLANS_KEY]["weights_file"])
                values[PLANS_KEY] = {**values[PLANS_KEY], "weights_file": name}

    def _compare_with_other_folds(self) -> None:
        """Says where the folds that are there started from other weights."""
        path = Path(self.output_folder_base, "plans.json")
        others = [p for p in path.parent.glob("fold_*/checkpoint_*.pth") if str(p.parent) != self.output_folder]
        if not path.is_file() or not others:
            return
        manager = PlansManager(read_json(path)).get_configuration(self.configuration_name)
        theirs = (manager.configuration.get(PLANS_KEY) or {}).get("weights_sha256")
        ours = self.weights and self.weights["sha256"]
        if theirs != ours:
            self.print_to_log_file(
                f"WARNING: the folds in {path.parent} started from weights of SHA256 {theirs}, this one from {ours}. "
                f"An ensemble of them mixes two backbones; weights_sha256 in the plans makes that an error."
            )

    def _patch_kernel(self) -> torch.Tensor:
        backbone: Any = self.net.backbone
        return backbone.patch_embed.proj.weight.detach()

    def on_train_start(self) -> None:
        """ExtTrainer's; says what is tuned."""
        if not self.was_initialized:
            self.initialize()
        round_to_half(self.net, self.net.frozen_names())  # `-pretrained_weights` may have brought others
        if self._is_new and self.weights is not None and not torch.equal(self._patch_kernel(), self._taken):
            self.print_to_log_file("Another backbone was loaded since: the record of its weights is dropped.")
            self.weights = None
        if self.local_rank == 0:
            self._compare_with_other_folds()
        self._record_in_plans(self.weights["sha256"] if self.weights else None)
        super().on_train_start()
        parameters = count_parameters(self.net)
        tuned, total = parameters["trainable"], parameters["total"]
        self.print_to_log_file(f"trainable params: {tuned:,} / all: {total:,} / {100 * tuned / total:.2f} %")

    def history_row(self) -> dict[str, Any]:
        """How far each adapter's slice filter is from its start (largest |W_F - 1|)."""
        return {"filter_change": {name: change(f["W_F"]) for name, f in slice_filters(self.net).items()}}

    def on_epoch_end(self) -> None:
        """ExtTrainer's; writes what is tuned, from which weights, and the slice filters as they are."""
        if self.local_rank == 0:
            network = self.net
            content = {
                "epoch": self.current_epoch,
                "backbone": network.backbone_name,
                "tuning": network.tuning_name,
                "weights": self.weights,
                "parts": part_counts(network),
                "filters": slice_filters(network),
            }
            write_json(os.path.join(self.output_folder, f"{self.method}.json"), content)
        super().on_epoch_end()

    # checkpoints

    def method_state(self) -> dict[str, Any]:
        """Which pretrained weights the training started from."""
        return {"weights": self.weights}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """Takes them over."""
        self.weights = state["weights"]

    def finish_checkpoint(self, checkpoint: dict[str, Any], filename: str) -> None:
        """Frozen tensors in half precision, which they have been rounded to."""
        checkpoint["network_weights"] = with_halves(checkpoint["network_weights"], self.net.frozen_names())


class _RateByEpoch:
    """A scheduler as nnU-Net calls it: a function of the epoch alone, so that a resumed training has the same rates."""

    def __init__(self, optimizer: torch.optim.Optimizer, options: MedTuningOptions) -> None:
        self.optimizer, self.options = optimizer, options

    def step(self, epoch: int) -> None:
        """Sets the rate of the epoch in all groups."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.rate(epoch)
