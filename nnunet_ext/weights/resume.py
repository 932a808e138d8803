"""From which checkpoint a training continues: the newest of its folder that is whole."""

import os

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.weights.checkpoints import read_checkpoint

# As nnU-Net's `--c` looks for them; of two that are equally new the first is taken.
NAMES = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


def newest_checkpoint(asked: str) -> tuple[str, list[str]]:
    """The checkpoint to continue from beside `asked`, and lines that say why where it is another.

    nnU-Net takes the final, else the latest, else the best one. But the best can be newer than the latest, a training
    that was prolonged leaves an old final one, and a computer that stops can leave half a file.

    Raises:
        ConfigurationError: none is whole.
    """
    folder = os.path.dirname(asked)
    whole: list[tuple[int, int, str]] = []
    lines, damaged = [], []
    for rank, name in enumerate(NAMES):
        path = os.path.join(folder, name)
        if not os.path.isfile(path):
            continue
        try:
            whole.append((read_checkpoint(path, lazily=True)["current_epoch"], -rank, path))
        except (ConfigurationError, KeyError) as error:
            damaged.append(name)
            lines.append(f"{name} cannot be used: {error}")
    if not whole:
        raise ConfigurationError(
            f"No whole checkpoint is in {folder} (damaged: {', '.join(damaged)}). Start this training anew, without "
            f"--c, or bring a copy of a checkpoint. {lines[0] if lines else ''}"
        )
    epoch, _, path = max(whole)
    if path != asked:
        lines.append(f"This training continues from {os.path.basename(path)}, which stands after {epoch} epochs.")
    return path, lines
