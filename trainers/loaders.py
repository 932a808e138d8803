"""Loaders beside nnU-Net's own, and the end of those that nobody asks any more."""

from collections.abc import Callable, Iterator
from typing import Any


class PairedBatches:
    """Batches of `weights`, each with a batch of `architecture` under that key while `is_joint()`.

    `architecture` makes its loader when the first such batch is asked for: until then its workers would only wait.
    """

    def __init__(
        self, weights: Iterator[dict], architecture: Callable[[], Iterator[dict]], is_joint: Callable[[], bool]
    ) -> None:
        self.weights, self.is_joint = weights, is_joint
        self._make = architecture
        self.architecture: Iterator[dict] | None = None

    def __next__(self) -> dict:
        batch = dict(next(self.weights))
        if self.is_joint():
            if self.architecture is None:
                self.architecture = self._make()
            batch["architecture"] = next(self.architecture)
        return batch

    def finish(self) -> None:
        """Ends the worker processes."""
        for loader in (self.weights, self.architecture):
            finish(loader)


def finish(loader: Any) -> None:
    """Ends the worker processes of a loader of batchgenerators, where it has some."""
    if hasattr(loader, "_finish"):
        loader._finish()
