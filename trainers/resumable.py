"""Checkpoints that are whole, hold the method's state, and of which a training continues from the newest."""

import io
import os
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext.discovery.compatibility import versions
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_atomically
from nnunet_ext.weights.checkpoints import read_checkpoint
from nnunet_ext.weights.resume import NAMES, newest_checkpoint

METHOD_STATE = "nnunet_ext"  # the key that we add to nnU-Net's checkpoints


class ResumableTrainer(nnUNetTrainer):
    """nnU-Net's checkpoints with our state, replaced only by whole ones."""

    method: ClassVar[str]
    final_keeps_moments: ClassVar[bool] = True  # False: final checkpoints leave the optimizer's state out

    continues = False  # whether this is `nnUNetv2_train --c`

    # method: what a method says of itself

    def method_state(self) -> dict[str, Any]:
        """method: what `--c` needs besides the network's state dict and the optimizer."""
        return {}

    def load_method_state(self, state: dict[str, Any]) -> None:
        """method: continues from `method_state()`."""

    def rates_at(self, epoch: int, num_epochs: int) -> dict[str, float]:
        """method: what follows a schedule, at the start of an epoch in a training of so many; nnU-Net's poly rate."""
        return {"learning rate": self.initial_lr * max(0.0, 1 - epoch / num_epochs) ** 0.9}

    def finish_checkpoint(self, checkpoint: dict[str, Any], filename: str) -> None:
        """method: changes a checkpoint, whose tensors are copies on the CPU, before it is written."""

    # checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint with our state under one extra key, on the CPU; it replaces the old one when whole."""
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)
        buffer.seek(0)
        checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)  # what we wrote a moment ago
        ours = {"method": self.method, "state": self.method_state(), "num_epochs": self.num_epochs}
        checkpoint[METHOD_STATE] = {**ours, "versions": versions()}
        if not self.final_keeps_moments and os.path.basename(filename) == "checkpoint_final.pth":
            checkpoint["optimizer_state"] = {**checkpoint["optimizer_state"], "state": {}}
        self.finish_checkpoint(checkpoint, filename)
        write_atomically(filename, lambda file: torch.save(checkpoint, file))

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """nnU-Net's, then the method's state.

        Raises:
            ConfigurationError: the file is damaged or was written by another method.
        """
        path = filename_or_checkpoint
        lines: list[str] = []
        if self.continues and os.path.dirname(path) == self.output_folder and os.path.basename(path) in NAMES:
            path, lines = newest_checkpoint(path)
        extra = read_checkpoint(path).get(METHOD_STATE)
        if extra is None or extra["method"] != self.method:
            raise ConfigurationError(f"The checkpoint {path} was not written by {type(self).__name__}.")
        super().load_checkpoint(path)
        self.load_method_state(extra["state"])
        for line in lines:
            self.print_to_log_file(line)
        if self.current_epoch < self.num_epochs:
            if not self.optimizer.state_dict()["state"]:
                self.print_to_log_file("This checkpoint has no moments of the optimizer: they start anew.")
            self._say_new_length(extra.get("num_epochs", self.num_epochs))

    def _say_new_length(self, before: int) -> None:
        if before == self.num_epochs:
            return
        try:
            old, new = (self.rates_at(self.current_epoch, length) for length in (before, self.num_epochs))
            jumps = ", ".join(f"{name} {old[name]:.4g} -> {new[name]:.4g}" for name in new)
        except ConfigurationError:
            jumps = "the schedule was another one"  # other options than the length were changed too
        self.print_to_log_file(
            f"This training was planned for {before} epochs and now has {self.num_epochs}; its schedules follow the "
            f"new length. In epoch {self.current_epoch}: {jumps}."
        )
