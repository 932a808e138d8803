"""Two halves of the training cases: one trains the weights of a supernet, the other its architecture (section 3.6)."""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json, write_json


def split_in_halves(keys: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """The cases shuffled by the seed and cut in two, each half sorted; the first has one more of an odd number.

    Raises:
        ConfigurationError: fewer than two cases.
    """
    if len(keys) < 2:
        raise ConfigurationError(
            f"A search needs at least two training cases, one for the weights and one for the architecture; "
            f"this fold has {len(keys)}."
        )
    shuffled = sorted(keys)
    random.Random(seed).shuffle(shuffled)
    middle = (len(shuffled) + 1) // 2
    return sorted(shuffled[:middle]), sorted(shuffled[middle:])


def kept_halves(
    path: str | os.PathLike, keys: Sequence[str], seed: int, *, continued: bool, write: bool
) -> tuple[list[str], list[str]]:
    """The halves that the file at `path` says, where a search is continued on the same cases; else new ones.

    `write`: new ones are written there.
    """
    if continued and os.path.isfile(path):
        saved = read_json(path)
        if sorted(saved["train1"] + saved["train2"]) == sorted(keys):
            return saved["train1"], saved["train2"]
    first, second = split_in_halves(keys, seed)
    if write:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_json(path, {"train1": first, "train2": second})
    return first, second


class PairedBatches:
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
            finish(loader)


def finish(loader: Any) -> None:
    """Ends the worker processes of a loader of batchgenerators, where it has some."""
    if hasattr(loader, "_finish"):
        loader._finish()
