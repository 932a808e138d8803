"""MedDANetTrainer: first the bank, then the decision network, in one training (arXiv 2206.06575, section 3.4).

A part that does not learn in a phase has no gradients and stays as it is. Candidates share nothing, so that they are
trained one after the other on the same batch: only one keeps its feature maps at a time. Ranks average the gradients
of the part that has just been computed, and never through DDP's forward pass, whose graph would change with the phase.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as trainer_module
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor, nn
from torch import distributed as dist

from nnunet_ext.costs.complexity import count_flops
from nnunet_ext.files import write_json
from nnunet_ext.med_danet.accounting import case_votes, counts_of, validation_report
from nnunet_ext.med_danet.bank import PAPER_BANK
from nnunet_ext.med_danet.choice import (
    UNKNOWN,
    choice_labels,
    decision_loss,
    scaled_costs,
    slice_dice,
    truth_and_valid,
    without_unknown,
)
from nnunet_ext.med_danet.costs import slice_costs
from nnunet_ext.med_danet.network import MedDANet, arch_kwargs_from_strides
from nnunet_ext.med_danet.options import MedDANetOptions, warm_poly_rate
from nnunet_ext.planning.patches import padded_size, total_strides
from nnunet_ext.prediction.batching import BatchedTiles
from nnunet_ext.trainers.base import ExtTrainer, NoScheduler, unwrap

CLIP = 12  # norm of gradients, nnU-Net's


class MedDANetTrainer(ExtTrainer):
    """Adam, nnU-Net's loss for each candidate, weighted cross-entropy on equation 4's labels for the decisions."""

    method = "med_danet"
    network_class = MedDANet
    options_class = MedDANetOptions
    options: MedDANetOptions

    @staticmethod
    def arch_kwargs_from_configuration(configuration_manager: ConfigurationManager) -> dict[str, Any]:
        """The paper's bank over the plan's strides, with positions for the plan's slices."""
        planar = [int(side) for side in configuration_manager.patch_size[-2:]]
        return {**arch_kwargs_from_strides(configuration_manager.pool_op_kernel_sizes), "position_size": planar}

    @classmethod
    def checked_options(cls, plans: dict, configuration: str, dataset_json: dict) -> MedDANetOptions:
        """As `ExtTrainer`'s; and options that name candidates must fit the bank."""
        options = super().checked_options(plans, configuration, dataset_json)
        assert isinstance(options, MedDANetOptions)
        planned = PlansManager(plans).get_configuration(configuration).network_arch_init_kwargs
        candidates = len(planned.get("candidates") or PAPER_BANK)
        options.weights(candidates)
        options.leaving([1] * candidates)
        return options

    def _do_i_compile(self) -> bool:
        return False

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
        self.costs = scaled_costs(macs)
        self.leaving = self.options.leaving(macs)
        self.class_weights = self.options.weights(len(macs))
        self._step = 0
        self._notes: dict[str, Any] = {}
        titles = ", ".join(f"{number} {c.title}" for number, c in enumerate(network.bank, start=1))
        leave, start = self.options.leave_start, self.options.decision_start
        gone = ", ".join(str(index + 1) for index in self.leaving) or "none"
        self.print_to_log_file(
            f"Bank: {titles}. Epochs 0 to {start - 1} train it; candidates that leave at epoch {leave}: {gone}. "
            + (
                f"Epochs {start} to {self.num_epochs - 1} train the decision network; until its first is over, "
                if start < self.num_epochs
                else "No epoch is left for the decision network: "
            )
            + f"{network.bank[network.largest].title} predicts every slice."
        )

    @property
    def net(self) -> MedDANet:
        """The network itself."""
        network = unwrap(self.network)
        assert isinstance(network, MedDANet)
        return network

    # phases, functions of the epoch alone

    @property
    def decides(self) -> bool:
        """Whether the decision network learns in this epoch."""
        return self.current_epoch >= self.options.decision_start

    @property
    def active(self) -> list[int]:
        """Indices of the candidates that learn in this epoch."""
        if self.decides:
            return []
        left = self.leaving if self.current_epoch >= self.options.leave_start else []
        return [index for index in range(len(self.net.candidates)) if index not in left]

    def _learning(self) -> list[nn.Module]:
        return [self.net.decision] if self.decides else [self.net.candidates[index] for index in self.active]

    def _rate(self) -> float:
        start, end, peak = (
            (self.options.decision_start, self.num_epochs, self.options.decision_lr)
            if self.decides
            else (0, self.options.decision_start, self.initial_lr)
        )
        pace = self.num_iterations_per_epoch
        step = (self.current_epoch - start) * pace + min(self._step, pace - 1)
        return warm_poly_rate(step, (end - start) * pace, pace, peak)

    def _set_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()

    def on_train_epoch_start(self) -> None:
        """nnU-Net's; then freezes what does not learn, and draws from random numbers that belong to the epoch."""
        self._step, self._notes = 0, {"losses": {}, "labels": [0] * (len(self.costs) + 1), "known": 0, "agreed": 0}
        self._set_rate()
        super().on_train_epoch_start()
        if self.current_epoch == self.options.decision_start:
            self._best_ema = None  # that of the bank's best candidate could never be reached by a routed one
        if not self.decides:
            self.net.decision_trained.fill_(False)  # pretrained weights may say otherwise
        learning = self._learning()
        for part in (*self.net.candidates, self.net.decision):
            learns = any(part is other for other in learning)
            part.train(learns)
            for parameter in part.parameters():
                parameter.requires_grad_(learns)
        # Dropout and the choice of slices are then the same after --c, and differ between ranks.
        numbers = np.random.SeedSequence([self.seed, self.current_epoch, self.local_rank]).generate_state(1)
        torch.manual_seed(int(numbers[0]))

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """nnU-Net's; from the end of its first epoch on the decision network may choose."""
        super().on_train_epoch_end(train_outputs)
        if self.decides:
            self.net.decision_trained.fill_(True)

    # steps

    def train_step(self, batch: dict) -> dict:
        """One step of all candidates that learn, or of the decision network."""
        self._set_rate()
        data, target = self._slices_of(
            batch["data"].to(self.device, non_blocking=True), batch["target"].to(self.device, non_blocking=True)
        )
        self.optimizer.zero_grad(set_to_none=True)
        losses = [self._decision_loss(data, target)] if self.decides else self._bank_losses(data, target)
        if self.grad_scaler is not None:
            self.grad_scaler.unscale_(self.optimizer)
        for part in self._learning():
            torch.nn.utils.clip_grad_norm_(part.parameters(), CLIP)
        if self.grad_scaler is not None:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            self.optimizer.step()
        self._step += 1
        return {"loss": np.mean([loss.cpu().numpy() for loss in losses])}

    def _slices_of(self, data: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """At most `slices_per_step` slices of 3D patches, at the same random depths in every patch."""
        keep = max(1, self.options.slices_per_step // len(data))
        if data.ndim == 4 or data.shape[2] <= keep:
            return data, target
        chosen = torch.randperm(data.shape[2])[:keep].sort().values.to(data.device)
        return data.index_select(2, chosen), target.index_select(2, chosen)

    def _autocast(self) -> AbstractContextManager:
        return torch.autocast("cuda") if self.device.type == "cuda" else nullcontext()

    def _backward(self, loss: Tensor, part: nn.Module) -> Tensor:
        """Gradients of one part, averaged over the ranks; returns the loss as it was."""
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
        if self.is_ddp:
            gradients = [p.grad for p in part.parameters() if p.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
        return loss.detach()

    def _bank_losses(self, data: Tensor, target: Tensor) -> list[Tensor]:
        """The terms of equation 5, each with nnU-Net's loss, one candidate after the other."""
        losses = []
        for index in self.active:
            with self._autocast():
                loss = self.loss(self.net.candidate(index, data), target)
            losses.append(self._backward(loss, self.net.candidates[index]))
            self._notes["losses"].setdefault(index, []).append(float(losses[-1]))
        return losses

    def _decision_loss(self, data: Tensor, target: Tensor) -> Tensor:
        """Equation 7 on this batch's own labels."""
        slices = self.net.fold(data)
        labels = self.labels(slices, self.net.fold(target))
        with self._autocast():
            logits = self.net.decision(slices)
        with torch.autocast(self.device.type, enabled=False) if self.device.type == "cuda" else nullcontext():
            loss = decision_loss(logits, labels, self.class_weights)
        known = labels != UNKNOWN
        counts = torch.bincount(labels[known], minlength=len(self.class_weights)).tolist()
        self._notes["labels"] = [a + b for a, b in zip(self._notes["labels"], counts, strict=True)]
        self._notes["known"] += int(known.sum())
        self._notes["agreed"] += int((logits.argmax(1) == labels)[known].sum())
        return self._backward(loss, self.net.decision)

    @torch.no_grad()
    def labels(self, slices: Tensor, target: Tensor) -> Tensor:
        """Equation 4's labels `[N]` of slices `[N, C, H, W]`; only those with foreground run the candidates."""
        ignore = self.label_manager.ignore_label if self.label_manager.has_ignore_label else None
        regions = self.label_manager.has_regions
        truth, valid = truth_and_valid(target, self.net.num_classes, regions=regions, ignore_label=ignore)
        foreground = truth.any(1).flatten(1).sum(1)
        where = foreground.nonzero()[:, 0]
        scores = torch.zeros(len(slices), len(self.net.candidates), device=slices.device)
        if len(where):
            for index in range(len(self.net.candidates)):
                with self._autocast():
                    logits = self.net.candidate(index, slices[where])
                scores[where, index] = slice_dice(logits, truth[where], valid[where], regions=regions)
        return without_unknown(choice_labels(scores, foreground, self.costs, self.options.alpha), truth, valid)

    # validation and results

    def on_validation_epoch_start(self) -> None:
        """nnU-Net's; notes what is chosen."""
        super().on_validation_epoch_start()
        self.net.record = []

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """nnU-Net's; the moving mean of the Dice starts again with the routed network."""
        super().on_validation_epoch_end(val_outputs)
        if self.decides and self.current_epoch == self.options.decision_start:
            means = self.logger.local_logger.my_fantastic_logging
            means["ema_fg_dice"][-1] = means["mean_fg_dice"][-1]
        chosen = [choice for choices in self.net.record or [] for choice in choices]
        self.net.record = None
        self._notes["choices"] = np.bincount(np.array(chosen, int), minlength=len(self.class_weights)).tolist()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's with batches in 2d; then writes what routing chose and spent over all tiles and mirrored passes."""
        with validating_with(_RecordingPredictor) as made:
            super().perform_actual_validation(save_probabilities)
        cases = self._routed_cases(made[0])
        if self.is_ddp:
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, cases)
            cases = sorted((case for part in gathered for case in part), key=lambda case: case["case"])
        if not cases or self.local_rank != 0:
            return
        network, size = self.net, self.configuration_manager.patch_size[-2:]
        channels, classes = network.input_channels, network.num_classes
        unet = unet_macs(self.configuration_manager.pool_op_kernel_sizes, channels, classes, size)
        report = validation_report(cases, self.slice_costs, unet)
        write_json(os.path.join(self.output_folder, "validation", "med_danet_spent.json"), report)
        shares = ", ".join(f"{n} {r:.1%}" for n, r in zip(report["choices"], report["ratios"], strict=True))
        self.print_to_log_file(
            f"Routing of {report['slices']} slices: {shares}. {report['gmacs']:.2f} GMACs with the decisions, "
            f"{report['gmacs_unrouted']:.2f} with {network.bank[network.largest].title} on every slice, "
            f"{report['gmacs_unet']:.2f} with nnU-Net's 2D U-Net."
        )

    def _routed_cases(self, predictor: "_RecordingPredictor") -> list[dict[str, Any]]:
        """What `accounting.validation_report` needs of this rank's cases; none where nothing was routed."""
        if not self.net.routes:
            return []
        _, keys = self.do_split()
        if self.is_ddp:
            keys = keys[self.local_rank :: dist.get_world_size()]
        data = self.dataset_class(self.preprocessed_dataset_folder, keys)
        regions = {
            name: np.atleast_1d(value)
            for name, value in self.dataset_json["labels"].items()
            if name not in ("background", "ignore")
        }
        cases = []
        for name, (votes, padding) in zip(data.identifiers, predictor.votes, strict=True):
            labels = np.asarray(data.load_case(name)[1][:])[0]
            masks = {region: np.isin(labels, values) for region, values in regions.items()}
            areas = {region: mask.sum((1, 2)).tolist() for region, mask in masks.items()}
            foreground = np.any(list(masks.values()), axis=0).sum((1, 2)).tolist()
            cases.append({"case": name, "votes": votes, "padding": padding, "areas": areas, "foreground": foreground})
        return cases

    def history_row(self) -> dict[str, Any]:
        """Phase, mean loss of each candidate, labels of the training and choices of the validation (skip first)."""
        notes = self._notes
        known = notes.get("known", 0)
        return {
            "phase": "decision" if self.decides else "bank",
            "candidate_losses": [
                float(np.mean(notes["losses"][index])) if index in notes.get("losses", {}) else None
                for index in range(len(self.net.candidates))
            ],
            "labels": notes.get("labels") if known else None,
            "agreement": notes["agreed"] / known if known else None,
            "choices": notes.get("choices") if sum(notes.get("choices", [])) else None,
        }

    def on_epoch_end(self) -> None:
        """nnU-Net's; and a checkpoint at the border between the phases."""
        row = self.history_row()
        if row["phase"] == "bank":
            shown = ", ".join("-" if loss is None else f"{loss:.4f}" for loss in row["candidate_losses"])
            self.print_to_log_file(f"Losses of the candidates: {shown}")
        else:
            self.print_to_log_file(
                f"Labels (skip, candidates): {row['labels']}, agreement {row['agreement'] or 0:.3f}; "
                f"choices in validation: {row['choices']}"
            )
        super().on_epoch_end()
        at_border = self.current_epoch == self.options.decision_start < self.num_epochs
        if at_border and self.current_epoch % self.save_every:
            self.current_epoch -= 1  # nnU-Net saves the number of the next epoch
            self.save_checkpoint(os.path.join(self.output_folder, "checkpoint_latest.pth"))
            self.current_epoch += 1

    def save_checkpoint(self, filename: str) -> None:
        """ExtTrainer's. The best of the bank is no `checkpoint_best.pth`: that one's decision network is trained."""
        folder, name = os.path.split(filename) if isinstance(filename, str) else ("", "")
        if name == "checkpoint_best.pth" and not self.decides and self.options.decision_start < self.num_epochs:
            filename = os.path.join(folder, "checkpoint_best_bank.pth")
        super().save_checkpoint(filename)


class _RecordingPredictor(BatchedTiles, nnUNetPredictor):
    """Keeps of each case how often its slices got each choice, and the same for slices that only pad it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.votes: list[tuple[list[list[int]], list[int]]] = []

    def predict_sliding_window_return_logits(self, input_image: Tensor) -> Any:
        """nnU-Net's; `[C, D, H, W]` -> logits `[K, D, H, W]`."""
        logits = super().predict_sliding_window_return_logits(input_image)
        depth = input_image.shape[1]
        before = (len(self._case) - depth) // 2  # as nnU-Net pads
        inside, outside = self._case[before : before + depth], self._case[:before] + self._case[before + depth :]
        self.votes.append((inside, counts_of(outside) if outside else [0] * len(inside[0])))
        return logits

    def _internal_predict_sliding_window_return_logits(
        self, data: Tensor, slicers: Any, do_on_device: bool = True
    ) -> Tensor:
        network = unwrap(self.network)
        assert isinstance(network, MedDANet)
        network.record = []  # also where nnU-Net tries again without room on the device
        try:
            logits = super()._internal_predict_sliding_window_return_logits(data, slicers, do_on_device)
            depths = [[_depths(tile[1]) for tile in tiles] for tiles in self.batches(slicers)]
            self._case = case_votes(network.record, depths, data.shape[1], len(network.bank) + 1)
        finally:
            network.record = None
        return logits


@contextmanager
def validating_with(predictor: type[nnUNetPredictor]) -> Iterator[list[Any]]:
    """Within it, nnU-Net's trainer validates with `predictor`; yields the list of those that it made.

    nnU-Net's `perform_actual_validation` offers no other way than the name in its module.
    """
    stock, made = trainer_module.nnUNetPredictor, []

    def make(*args: Any, **kwargs: Any) -> nnUNetPredictor:
        made.append(predictor(*args, **kwargs))
        return made[-1]

    trainer_module.nnUNetPredictor = make
    try:
        yield made
    finally:
        trainer_module.nnUNetPredictor = stock


def _depths(where: int | slice) -> list[int]:
    return [where] if isinstance(where, int) else list(range(where.start, where.stop))


def unet_macs(strides: Any, channels: int, classes: int, size: Any) -> int:
    """True multiply-adds of nnU-Net's 2D U-Net for one slice of `size` pixels, at the in-plane strides of the plan.

    Widths and numbers of convolutions are those that nnU-Net plans by default.
    """
    levels = len(strides)
    network = PlainConvUNet(
        channels,
        levels,
        [min(32 * 2**level, 512) for level in range(levels)],
        nn.Conv2d,
        3,
        [tuple(stride[-2:]) for stride in strides],
        2,
        classes,
        2,
        norm_op=nn.InstanceNorm2d,
        nonlin=nn.LeakyReLU,
    )
    # A patch that its strides do not divide is counted as the next larger one, which it could take.
    whole = padded_size(size, total_strides(strides)[-1][-2:])
    return round(count_flops(network, channels, whole) / 2)
