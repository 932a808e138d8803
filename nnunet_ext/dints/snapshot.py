"""What a search has found by now: the code that its logits mean, its losses, and the files about both."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_ext.dints.code_file import CodeFile
from nnunet_ext.dints.architecture_step import ArchitectureOptimizer
from nnunet_ext.dints.discretize import Decoded
from nnunet_ext.dints.memory_budget import memory_ratio
from nnunet_ext.dints.relaxation import Regularisers, Relaxed
from nnunet_ext.dints.search_space import Structure


@dataclass(frozen=True)
class Snapshot:
    """A search between two steps of its logits."""

    structure: Structure
    decoded: Decoded
    relaxed: Relaxed
    terms: Regularisers

    @classmethod
    def of(cls, architecture: ArchitectureOptimizer) -> "Snapshot":
        """The search as it is now."""
        relaxed = architecture.supernet.relaxed()
        structure = architecture.supernet.structure
        return cls(structure, architecture.decode(), relaxed, architecture.regularisers(relaxed))

    def row(self, sigma: float, iterations: int, discrete_dice: float | None) -> dict[str, Any]:
        """An epoch of the history: losses of the logits, memory ratio, G, and the code.

        The code is a number a layer for its edges, and a digit an operation. `sigma` is the budget.
        """
        return {
            "iterations": iterations,
            "L_alpha": float(self.terms.alpha),
            "L_eta": float(self.terms.eta),
            "L_tp": float(self.terms.topology),
            "memory_ratio": float(self.terms.memory_ratio),
            "sigma": sigma,
            "G": self.decoded.gap,
            "cost": self.decoded.cost,
            "active_edges": self.decoded.code.num_edges,
            "edges": [int("".join(map(str, row)), 2) for row in self.decoded.code.active],
            "operations": ["".join(map(str, row)) for row in self.decoded.code.operations],
            "discrete_dice": finite(discrete_dice),
        }

    def code_file(self, facts: Mapping[str, Any], patch_size: Sequence[int], scores: Mapping[str, float]) -> CodeFile:
        """The code with what is known of the search.

        Args:
            facts: of the search, first in the file.
            patch_size: of the search in voxels.
            scores: mean Dice in validation, by what was validated.
        """
        meta = {
            **facts,
            "patch_size": list(patch_size),
            "exact_cost": self.decoded.cost,
            "G": self.decoded.gap,
            "memory_ratio": float(self.terms.memory_ratio),
            "memory_ratio_of_code": memory_ratio(self.decoded.code, self.structure, patch_size),
            "mean_max_alpha": float(self.relaxed.log_alpha.exp().amax(2).mean()),
            "edge_probabilities": [[round(p, 4) for p in row] for row in self.relaxed.edges.tolist()],
            "dice": {name: finite(score) for name, score in scores.items()},
        }
        return CodeFile(self.decoded.code, self.structure.use_downsample, self.structure.dimensions, meta)


class CodeFiles:
    """The codes in a fold's folder: `architecture.json`, and the best by each score.

    `best` holds the highest scores so far, "continuous" of the supernet and "discrete" of the code alone in it.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = folder
        self.best = {"continuous": -math.inf, "discrete": -math.inf}

    def write(self, file: CodeFile, scores: Mapping[str, float], *, write: bool = True) -> None:
        """Notes the scores (nan is never the best), and writes the file under each name that it has earned."""
        names = ["architecture.json"]
        for name, score in scores.items():
            if score > self.best[name]:
                self.best[name] = score
                names.append(f"architecture_best_{name}.json")
        for name in names if write else []:
            file.write(os.path.join(self.folder, name))


def row_text(row: Mapping[str, Any]) -> str:
    """A row of the history, for the training log."""
    discrete = row["discrete_dice"]
    return (
        f"L_alpha {row['L_alpha']:.4f}, L_eta {row['L_eta']:.6f}, L_tp {row['L_tp']:.3f}, memory ratio "
        f"{row['memory_ratio']:.4f} (budget {row['sigma']}), G {row['G']}"
        + ("" if discrete is None else f", Dice of the discrete net {discrete:.4f}")
    )


def mean_dice(tp: np.ndarray, fp: np.ndarray, fn: np.ndarray) -> float:
    """Mean over the classes of 2 TP / (2 TP + FP + FN) from counts `[K]`; nan where no class is anywhere."""
    size = 2 * tp + fp + fn
    present = size > 0
    return float((2 * tp / np.maximum(size, 1))[present].mean()) if present.any() else math.nan


def finite(value: float | None) -> float | None:
    """The value, or None where JSON has no number for it."""
    return value if value is not None and math.isfinite(value) else None
