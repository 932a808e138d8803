"""What a search has found by now: the code that its logits mean, its losses, and what the files say about both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_ext.dints.architecture_step import ArchitectureOptimizer
from nnunet_ext.dints.code_file import CodeFile
from nnunet_ext.dints.discretize import BUDGET_TOLERANCE, Decoded
from nnunet_ext.dints.memory_budget import memory_ratio
from nnunet_ext.dints.relaxation import Regularisers, Relaxed
from nnunet_ext.dints.search_space import Structure


@dataclass(frozen=True)
class Snapshot:
    """A search between two steps of its logits.

    Attributes:
        found: the code to be retrained.
        likeliest: the most probable feasible code, whatever memory it uses.
        ratio: memory of `found`, a share of that of all edges with its operations.
        likeliest_ratio: the same of `likeliest`.
    """

    structure: Structure
    found: Decoded
    likeliest: Decoded
    ratio: float
    likeliest_ratio: float
    relaxed: Relaxed
    terms: Regularisers

    @classmethod
    def of(cls, architecture: ArchitectureOptimizer, patch_size: Sequence[int]) -> "Snapshot":
        """The search as it is now, with its patch in voxels."""
        relaxed = architecture.supernet.relaxed()
        structure = architecture.supernet.structure
        found, likeliest = architecture.decode(), architecture.decode(in_budget=False)
        ratio, of_likeliest = (memory_ratio(decoded.code, structure, patch_size) for decoded in (found, likeliest))
        return cls(structure, found, likeliest, ratio, of_likeliest, relaxed, architecture.regularisers(relaxed))

    def row(self, sigma: float, iterations: int) -> dict[str, Any]:
        """An epoch of the history: losses of the logits, memory ratios, G, and the code.

        The code is a number a layer for its edges, and a digit an operation. `sigma` is the budget. G is that of the
        most probable code, as in section 4.4.2.
        """
        return {
            "iterations": iterations,
            "L_alpha": float(self.terms.alpha),
            "L_eta": float(self.terms.eta),
            "L_tp": float(self.terms.topology),
            "memory_ratio": float(self.terms.memory_ratio),
            "memory_ratio_of_code": self.ratio,
            "memory_ratio_of_likeliest": self.likeliest_ratio,
            "sigma": sigma,
            "G": self.likeliest.gap,
            "cost": self.found.cost,
            "active_edges": self.found.code.num_edges,
            "edges": [int("".join(map(str, row)), 2) for row in self.found.code.active],
            "operations": ["".join(map(str, row)) for row in self.found.code.operations],
        }

    def code_file(self, facts: Mapping[str, Any], patch_size: Sequence[int], dice: float) -> CodeFile:
        """The code with what is known of the search.

        Args:
            facts: of the search, first in the file.
            patch_size: of the search in voxels.
            dice: mean Dice of the supernet in validation; nan where there is none.
        """
        meta = {
            **facts,
            "patch_size": list(patch_size),
            "exact_cost": self.found.cost,
            "G": self.likeliest.gap,
            "memory_ratio": float(self.terms.memory_ratio),
            "memory_ratio_of_code": self.ratio,
            "memory_ratio_of_likeliest": self.likeliest_ratio,
            "mean_max_alpha": float(self.relaxed.log_alpha.exp().amax(2).mean()),
            "edge_probabilities": [[round(p, 4) for p in row] for row in self.relaxed.edges.tolist()],
            "dice_of_supernet": dice if math.isfinite(dice) else None,
        }
        return CodeFile(self.found.code, self.structure.use_downsample, self.structure.dimensions, meta)

    def warning(self, sigma: float) -> str | None:
        """What a user must know of a code that misses its budget; None where it meets it."""
        if abs(self.ratio - sigma) <= BUDGET_TOLERANCE:
            return None
        return (
            f"Warning: the code uses {self.ratio:.3f} of the memory of all edges, the budget is sigma {sigma}. The "
            f"expectation over edges, to which the search is driven, is {float(self.terms.memory_ratio):.3f}. "
            f"decode_within_budget=true keeps the budget, where the space has a code that does."
        )


def row_text(row: Mapping[str, Any]) -> str:
    """A row of the history, for the training log."""
    return (
        f"L_alpha {row['L_alpha']:.4f}, L_eta {row['L_eta']:.6f}, L_tp {row['L_tp']:.3f}, memory ratio expected "
        f"{row['memory_ratio']:.4f}, of the code {row['memory_ratio_of_code']:.4f}, of the most probable one "
        f"{row['memory_ratio_of_likeliest']:.4f} (budget {row['sigma']}), G {row['G']}"
    )
