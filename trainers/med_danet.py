"""MedDANetTrainer: first the bank, then the decision network, in one training (arXiv 2206.06575, section 3.4).

A part that does not learn in a phase has no gradients and stays as it is. Candidates share nothing, so that they are
trained one after the other on the same batch: only one keeps its feature maps at a time. Ranks average the gradients
of the part that has just been computed, and never through DDP's forward pass, whose graph would change with the phase.
"""

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch import distributed as dist

from nnunet_ext.costs.unet import unet_macs
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_json
from nnunet_ext.layers.gradients import average_gradients, forget_moments
from nnunet_ext.layers.norm import settle_statistics
from nnunet_ext.layers.precision import autocast_of
from nnunet_ext.med_danet.accounting import EpochNotes, noted_cases, report_text, row_text, validation_report
from nnunet_ext.med_danet.bank import PAPER_BANK, take_bank
from nnunet_ext.med_danet.choice import UNKNOWN, decision_loss, scaled_costs, slice_labels, truth_and_valid
from nnunet_ext.med_danet.costs import slice_costs
from nnunet_ext.med_danet.evidence import EVIDENCE_FILE, calibrated, evidence, joined, lines_of, safe_threshold
from nnunet_ext.med_danet.labelled import LabelledSlices, varied
from nnunet_ext.med_danet.network import MedDANet, arch_kwargs_at
from nnunet_ext.med_danet.options import MedDANetOptions
from nnunet_ext.med_danet.phases import Phases, continued, thinned, unfinished_text
from nnunet_ext.med_danet.routing import IN_PLANE, lowest_nearby
from nnunet_ext.med_danet.seen import seen_slices
from nnunet_ext.trainers.base import ExtTrainer, NoScheduler
from nnunet_ext.trainers.loaders import finish
from nnunet_ext.trainers.recording import RecordingPredictor, validating_with
from nnunet_ext.trainers.whole_cases import StoredSlices, case_of, tiles_of
from nnunet_ext.weights.random_state import mixed_seed

CLIP = 12  # norm of gradients, nnU-Net's
SETTLING_STEPS = 8  # of an epoch's end, on whose slices the decision network's BatchNorm settles


class MedDANetTrainer(ExtTrainer):
    """Adam, nnU-Net's loss for each candidate, weighted cross-entropy on equation 4's labels for the decisions."""

    method = "med_danet"
    network_class = MedDANet
    options_class = MedDANetOptions
    arch_kwargs_at = staticmethod(arch_kwargs_at)
    final_keeps_moments = False
    options: MedDANetOptions
    dataloader_train: Any

    @classmethod
    def checked_options(cls, plans: dict, configuration: str, dataset_json: dict) -> MedDANetOptions:
        """As `ExtTrainer`'s; and options that name candidates must fit the bank."""
        options = super().checked_options(plans, configuration, dataset_json)
        assert isinstance(options, MedDANetOptions)
        planned = PlansManager(plans).get_configuration(configuration)
        if len(planned.pool_op_kernel_sizes) < 2:
            raise ConfigurationError(
                f"{configuration} has a patch of {list(planned.patch_size)} and a single level, from which no U-Net "
                f"can be made to compare with. Plan with images of at least 8 pixels a side."
            )
        candidates = len(planned.network_arch_init_kwargs.get("candidates") or PAPER_BANK)
        options.weights(candidates), options.leaving([1] * candidates)
        if options.skip_neighbours and len(planned.patch_size) == 2:
            raise ConfigurationError(
                f"A 2d configuration sees slices one by one: 'skip_neighbours' must be 0 or null, found "
                f"{options.skip_neighbours}."
            )
        return options

    def compile_parts(self) -> list[Any]:
        """The candidates."""
        return self.net.compile_candidates()

    def trained_parts(self) -> list[nn.Module]:
        """Candidates and decision network, which learn apart."""
        return [*self.net.candidates, self.net.decision]

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """nnU-Net's, but 3D patches are rotated within slices only, and prediction mirrors only in them.

        Rotations out of the plane would show the candidates slices that no image has. A flip of the slice axis gives
        the same slices again.
        """
        rotation, dummy_2d, size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        patch = self.configuration_manager.patch_size
        if len(patch) == 3:
            size = list(size)
            size[0], dummy_2d = patch[0], True
            if self.options.mirroring:
                self.inference_allowed_mirroring_axes = (1, 2)
        return rotation, dummy_2d, size, axes

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """One Adam for all parts, which leaves parameters without gradients alone; rates are set before each step."""
        optimizer = torch.optim.Adam(
            self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay, amsgrad=True
        )
        return optimizer, NoScheduler()

    def on_initialized(self) -> None:
        """Prepares costs and phases, and says them."""
        network = self.net
        network.set_regions(self.label_manager.has_regions)
        self.slice_costs = slice_costs(network, self.configuration_manager.patch_size[-2:])
        macs = self.slice_costs.candidates
        self.metric = self.options.metric(scaled_costs(macs))
        self.class_weights = self.options.weights(len(macs))
        self.phases = Phases(self.options, len(macs), self.options.leaving(macs))
        self._step, self._notes = 0, EpochNotes(len(macs))
        self._latest_slices: deque[Tensor] = deque(maxlen=SETTLING_STEPS)
        self._labelled: LabelledSlices | None = None
        self.print_to_log_file(self.phases.text(self.slice_costs.titles, network.largest))

    @property
    def decides(self) -> bool:
        """Whether the decision network learns in this epoch."""
        return self.phases.decides(self.current_epoch)

    def _learning(self) -> list[nn.Module]:
        active = self.phases.active(self.current_epoch)
        return [self.net.decision] if self.decides else [self.net.candidates[index] for index in active]

    def _set_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.phases.rate(self.current_epoch, self._step)

    def on_train_start(self) -> None:
        """nnU-Net's; a training without a phase for the bank takes a finished one before."""
        if not self.was_initialized:
            self.initialize()
        if self.current_epoch == 0 and self.options.bank_weights is not None:
            take_bank(self.net, self.options.bank_weights)
            self.print_to_log_file(f"The candidates are those of {self.options.bank_weights}.")
        super().on_train_start()

    def _set_rules(self) -> None:
        """What the options say about skipping, into the network, so that checkpoints know it."""
        flat, axes = len(self.configuration_manager.patch_size), self.inference_allowed_mirroring_axes or ()
        neighbours = self.options.skip_neighbours
        self.net.skip_neighbours.fill_(int(flat == 3) if neighbours is None else neighbours)
        if self.options.skip_threshold is not None:
            self.net.skip_threshold.fill_(self.options.skip_threshold)
        self.net.mirror_axes.copy_(torch.tensor([flat - 2 in axes, flat - 1 in axes]))

    def on_train_epoch_start(self) -> None:
        """nnU-Net's; then freezes what does not learn, and draws from random numbers that belong to the epoch."""
        self._set_rules()
        self._step, self._notes = 0, EpochNotes(len(self.net.candidates))
        self._set_rate()
        super().on_train_epoch_start()
        if self.current_epoch == self.options.decision_start:
            self._best_ema = None  # that of the bank's best candidate could never be reached by a routed one
            forget_moments(self.optimizer, self.net.candidates)  # nothing reads them any more
            self._say_last_losses()
        if not self.decides:
            self.net.decision_trained.fill_(False)  # pretrained weights may say otherwise
        learning = self._learning()
        for part in (*self.net.candidates, self.net.decision):
            learns = any(part is other for other in learning)
            part.train(learns).requires_grad_(learns)
        self.net.arrange_for_cpus(False)  # as a validation leaves it, steps would round otherwise than after --c
        if self.decides and self.options.labels == "once" and self._labelled is None:
            self._label()
        # Dropout and the choice of slices are then the same after --c, and differ between ranks.
        torch.manual_seed(mixed_seed(self.seed, self.current_epoch, self.local_rank))

    def _say_last_losses(self) -> None:
        rows = [row["candidate_losses"] for row in reversed(self.history) if row.get("phase") == "bank"]
        columns = zip(*rows, strict=True)  # the latest epoch first; a candidate that has left has no loss there
        losses = [next((loss for loss in column if loss is not None), None) for column in columns]
        if any(loss is not None for loss in losses):
            costs = self.slice_costs
            self.print_to_log_file(unfinished_text(costs.titles, costs.candidates, losses))

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """nnU-Net's; from the end of its first epoch on the decision network may choose, with settled statistics."""
        super().on_train_epoch_end(train_outputs)
        if self.decides:
            if self._latest_slices:
                with autocast_of(self.device):
                    settle_statistics(self.net.decision, torch.cat(tuple(self._latest_slices)))
            self._latest_slices.clear()
            self.net.decision_trained.fill_(True)

    def _case(self, dataset: Any, name: str) -> tuple[Tensor, Tensor]:
        return case_of(dataset, name, self.label_manager, self.is_cascaded)

    # labels that are made once

    def _label(self) -> None:
        """Labels all slices of the training cases; nnU-Net's batches of them are not needed any more."""
        size, (cases, _) = self.configuration_manager.patch_size[-2:], self.get_tr_and_val_datasets()
        self._stored = StoredSlices(cases, size, self.label_manager, self.is_cascaded)
        step = dist.get_world_size() if self.is_ddp else 1
        mine = [
            pair
            for number in range(self.local_rank, len(self._stored.names), step)
            for pair in self._labels_of_case(number)
        ]
        places, labels = zip(*sum(self.gathered(mine), []), strict=True)
        self._labelled = LabelledSlices(torch.cat(places), torch.cat(labels))
        self.print_to_log_file(self._labelled.text(self.slice_costs.titles))
        finish(self.dataloader_train)
        self.dataloader_train = repeat({})

    def _labels_of_case(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for places, slices, target in self._stored.of_case(number):
            parts = (tensor.split(self.options.slices_per_step) for tensor in (places, slices, target))
            for some, *pair in zip(*parts, strict=True):
                yield some, self._labels_of(*(tensor.to(self.device) for tensor in pair)).cpu()

    def _drawn(self, labelled: LabelledSlices) -> tuple[Tensor, Tensor]:
        """Slices `[N, C, H, W]` and their labels: as many as a batch has."""
        planar = len(self.configuration_manager.patch_size) == 2
        drawn = labelled.draw(self.batch_size if planar else self.options.slices_per_step)
        slices = self._stored.at(labelled.places[drawn]).to(self.device)
        axes = [axis for axis, may in zip(IN_PLANE, self.net.mirror_axes.tolist(), strict=True) if may]
        return varied(slices, axes), labelled.labels[drawn].to(self.device)

    # steps

    def train_step(self, batch: dict) -> dict:
        """One step of all candidates that learn, or of the decision network."""
        self._set_rate()
        self.optimizer.zero_grad(set_to_none=True)
        if self._labelled is not None:
            losses = [self._decision_loss(*self._drawn(self._labelled))]
        else:
            data, target = (batch[key].to(self.device, non_blocking=True) for key in ("data", "target"))
            losses = self._losses_of_batch(
                *thinned(data, target, self.options.slices_per_step, self._foreground(target))
            )
        if any(p.grad is not None for part in self._learning() for p in part.parameters()):
            self._update()
        self._step += 1
        return {"loss": np.mean([loss.cpu().numpy() for loss in losses])}

    def _losses_of_batch(self, data: Tensor, target: Tensor) -> list[Tensor]:
        if not self.decides:
            return self._bank_losses(data, target)
        slices = self.net.fold(data)
        return [self._decision_loss(slices, self._labels_of(slices, self.net.fold(target)))]

    def _foreground(self, target: Tensor) -> Tensor:
        """`[B, D]`, which slices hold some (2d: D = 1)."""
        truth, _ = truth_and_valid(self.net.fold(target), self.net.num_classes, **self._told())
        return truth.flatten(1).any(1).unflatten(0, (len(target), -1))

    def _update(self) -> None:
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        for part in self._learning():
            torch.nn.utils.clip_grad_norm_(part.parameters(), CLIP)
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()

    def _on_any_rank(self, fact: Tensor) -> bool:
        """A batch from which no rank learns takes no step: Adam would follow the decay alone, at the full rate."""
        fact = fact.any().float()
        if self.is_ddp:
            dist.all_reduce(fact, dist.ReduceOp.MAX)
        return bool(fact)

    def _told(self) -> dict[str, Any]:
        """How labels are to be read, for `choice.truth_and_valid`."""
        ignore = self.label_manager.ignore_label if self.label_manager.has_ignore_label else None
        return {"regions": self.label_manager.has_regions, "ignore_label": ignore}

    def _backward(self, loss: Tensor, part: nn.Module) -> Tensor:
        """Gradients of one part, averaged over the ranks; returns the loss as it was."""
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
        if self.is_ddp:
            average_gradients(part)
        return loss.detach()

    def _bank_losses(self, data: Tensor, target: Tensor) -> list[Tensor]:
        """The terms of equation 5, each with nnU-Net's loss, one candidate after the other."""
        _, valid = truth_and_valid(self.net.fold(target), self.net.num_classes, **self._told())
        if not self._on_any_rank(valid):
            return [torch.zeros(())]
        losses = []
        for index in self.phases.active(self.current_epoch):
            with autocast_of(self.device):
                loss = self.loss(self.net.candidate(index, data), target)
            losses.append(self._backward(loss, self.net.candidates[index]))
            self._notes.add_loss(index, float(losses[-1]))
        return losses

    def _labels_of(self, slices: Tensor, target: Tensor) -> Tensor:
        with autocast_of(self.device):
            return slice_labels(self.net, slices, target, self.metric, **self._told())

    def _decision_loss(self, slices: Tensor, labels: Tensor) -> Tensor:
        """Equation 7."""
        known = labels != UNKNOWN
        if not self._on_any_rank(known):
            return torch.zeros(())
        with autocast_of(self.device):
            logits = self.net.decision(slices)
        self._notes.add_labels(labels[known].tolist(), logits.argmax(1)[known].tolist())
        self._latest_slices.append(slices)
        return self._backward(decision_loss(logits, labels, self.class_weights), self.net.decision)

    # validation and results

    def on_validation_epoch_start(self) -> None:
        """nnU-Net's; notes what is chosen."""
        super().on_validation_epoch_start()
        self.net.record = []

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's; notes how sure the decision network is of skipping, for the threshold."""
        result = super().validation_step(batch)
        if self.net.routes:
            with torch.no_grad(), autocast_of(self.device):
                skip = self.net.decided(batch["data"].to(self.device)).shares[..., 0]
            skip = lowest_nearby(skip, int(self.net.skip_neighbours))
            self._notes.add_skips(skip.flatten().tolist(), self._foreground(batch["target"]).flatten().tolist())
        return result

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """nnU-Net's; sets the threshold; the moving mean of the Dice starts again with the routed network."""
        super().on_validation_epoch_end(val_outputs)
        if self.net.routes and self.options.skip_threshold is None:
            skip, foreground = zip(*sum(self.gathered(self._notes.skips), []), strict=True)
            self.net.skip_threshold.fill_(safe_threshold(skip, foreground, self.options.skip_risk))
        if self.decides and self.current_epoch == self.options.decision_start:
            means = self.logger.local_logger.my_fantastic_logging
            means["ema_fg_dice"][-1] = means["mean_fg_dice"][-1]
        self._notes.add_choices([choice for choices in self.net.record or [] for choice in choices])
        self.net.record = None

    def on_train_end(self) -> None:
        """Sets the threshold by the validation's whole cases and says whether routing pays; then nnU-Net's."""
        if self.net.routes:
            self._weigh_up()
        super().on_train_end()

    def _weigh_up(self) -> None:
        network, options = self.net.eval(), self.options
        _, dataset = self.get_tr_and_val_datasets()
        names = dataset.identifiers[self.local_rank :: dist.get_world_size()] if self.is_ddp else dataset.identifiers
        mine = [(name, self._seen_case(dataset, name)) for name in names]
        cases = [case for _, case in sorted(sum(self.gathered(mine), []), key=lambda named: named[0])]
        allowed = options.skip_risk if options.skip_threshold is None else None
        if allowed is not None:
            network.skip_threshold.fill_(calibrated(cases, allowed))
        if self.local_rank != 0:
            return
        report = evidence(cases, self.slice_costs, float(network.skip_threshold), int(network.skip_neighbours), allowed)
        write_json(os.path.join(self.output_folder, EVIDENCE_FILE), report)
        for line in lines_of(report):
            self.print_to_log_file(line)

    def _seen_case(self, dataset: Any, name: str) -> dict[str, np.ndarray]:
        parts, neighbours = [], int(self.net.skip_neighbours)
        for tile, true, inside in tiles_of(*self._case(dataset, name), self.configuration_manager.patch_size):
            with autocast_of(self.device):
                seen = seen_slices(
                    self.net, tile.to(self.device), true.to(self.device), self.metric, neighbours, **self._told()
                )
            parts.append({column: values[inside.numpy()] for column, values in seen.items()})
        return joined(parts)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's with batches in 2d; then writes what routing chose and spent over all tiles and mirrored passes."""
        with validating_with(RecordingPredictor) as made:
            super().perform_actual_validation(save_probabilities)
        cases = sorted(sum(self.gathered(self._routed_cases(made[0])), []), key=lambda case: case["case"])
        if not cases or self.local_rank != 0:
            return
        network, planned = self.net, self.configuration_manager
        size, strides = planned.patch_size[-2:], planned.pool_op_kernel_sizes
        unet = unet_macs(strides, network.input_channels, network.num_classes, size)
        report = validation_report(cases, self.slice_costs, unet)
        write_json(os.path.join(self.output_folder, "validation", "med_danet_spent.json"), report)
        self.print_to_log_file(report_text(report, self.slice_costs.titles[network.largest]))

    def _routed_cases(self, predictor: RecordingPredictor) -> list[dict[str, Any]]:
        """What `accounting.validation_report` needs of this rank's cases; none where nothing was routed."""
        if not self.net.routes:
            return []
        _, keys = self.do_split()
        if self.is_ddp:
            keys = keys[self.local_rank :: dist.get_world_size()]
        data = self.dataset_class(self.preprocessed_dataset_folder, keys)
        return noted_cases(data, predictor.votes, self.dataset_json["labels"])

    def history_row(self) -> dict[str, Any]:
        """Phase, mean loss of each candidate, labels of the training and choices of the validation (skip first)."""
        return self._notes.row(self.decides)

    def on_epoch_end(self) -> None:
        """nnU-Net's; and a checkpoint at the border between the phases."""
        self.print_to_log_file(row_text(self.history_row()))
        super().on_epoch_end()
        if self.current_epoch == self.options.decision_start < self.num_epochs:
            forget_moments(self.optimizer, self.net.candidates)
            if self.current_epoch % self.save_every:
                self.current_epoch -= 1  # nnU-Net saves the number of the next epoch
                self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_latest.pth"))
                self.current_epoch += 1

    def rates_at(self, epoch: int, num_epochs: int) -> dict[str, float]:
        """The rate of the phase."""
        return {"learning rate": replace(self.phases, options=self.options.of_length(num_epochs)).rate(epoch, 0)}

    def method_state(self) -> dict[str, Any]:
        """Where the border between the phases is."""
        return {"decision_start": self.options.decision_start}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """A training that is prolonged does not fall back into the bank's phase without being asked."""
        if self.decides or not self.net.routes or self.current_epoch >= self.num_epochs:
            return
        self.options, text = continued(self.options, state.get("decision_start", self.current_epoch))
        self.phases = replace(self.phases, options=self.options)
        if not self.decides:
            self.net.restart_decision(self.seed)
            forget_moments(self.optimizer, self.net.decision)
        self.print_to_log_file(text)
