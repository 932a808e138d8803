"""The continuous relaxation and the losses of a search (DiNTS, sections 3.3 to 3.5), exact in the log domain.

With p_e = sigmoid(a_e), equation 2 is a softmax over the patterns: log eta_j = sum_e cp_j(e) a_e - log Z, since the
common factor prod(1 - p_e) cancels. So log eta comes from one log-softmax, and nothing overflows or divides by zero
at any logit. A node's features need only the marginal probability of each edge, since equation 1 is linear in the
patterns. All this is done in float64 (float32 where a device has no other), outside of autocast: it is little work.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from nnunet_ext.dints.search_space import edges, patterns, receivers, senders
from nnunet_ext.layers.precision import without_autocast

REFERENCE_FLOOR = 1e-5  # what the reference implementation adds inside its logarithms


@dataclass(frozen=True)
class Tables:
    """Constants of a depth on a device: `patterns [M, E]` of 0 and 1, and the patterns by the nodes that they join.

    `arrivals [A, K]`: for each set of nodes (A = 2^D - 1) the K patterns whose edges arrive at exactly these, F_in.
    `departures [A, K]`: those whose edges leave from exactly these, F_out. Shorter rows are filled with M.
    """

    patterns: Tensor
    arrivals: Tensor
    departures: Tensor


@lru_cache
def tables(depth: int, device: torch.device) -> Tables:
    """The constants for D scales."""
    with torch.inference_mode(False):  # they may be made during a prediction and used in a training
        return Tables(
            torch.tensor(patterns(depth), dtype=_precision(device), device=device),
            _groups(depth, [receivers(depth, pattern) for pattern in patterns(depth)], device),
            _groups(depth, [senders(depth, pattern) for pattern in patterns(depth)], device),
        )


def _precision(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _groups(depth: int, masks: Sequence[int], device: torch.device) -> Tensor:
    members: list[list[int]] = [[] for _ in range(2**depth)]
    for index, mask in enumerate(masks):
        members[mask].append(index)
    length = max(map(len, members))
    rows = [row + [len(masks)] * (length - len(row)) for row in members[1:]]  # no pattern leaves all nodes out
    return torch.tensor(rows, device=device)


@dataclass(frozen=True)
class Relaxed:
    """Probabilities of an architecture's logits: `log_eta [L, M]`, edges `[L, E]`, `log_alpha [L, E, N]`."""

    depth: int
    log_eta: Tensor
    edges: Tensor
    log_alpha: Tensor

    @property
    def weights(self) -> Tensor:
        """`[L, E, N]` in float32: what each operation is weighted with, its probability times its edge's."""
        return (self.edges[..., None] * self.log_alpha.exp()).float()


def relax(logits_a: Tensor, logits_c: Tensor) -> Relaxed:
    """Equation 2, its marginals, and the softmax over operations.

    Args:
        logits_a: `[L, E]`, of the edges.
        logits_c: `[L, E, N]`, of the operations.
    """
    depth = (logits_a.shape[1] + 2) // 3
    assert len(edges(depth)) == logits_a.shape[1]
    with without_autocast(logits_a.device):
        table = tables(depth, logits_a.device).patterns
        log_eta = torch.log_softmax(logits_a.to(table.dtype) @ table.T, 1)
        return Relaxed(depth, log_eta, log_eta.exp() @ table, torch.log_softmax(logits_c.to(table.dtype), 2))


def entropy(log_p: Tensor, floor: float = 0.0) -> Tensor:
    """Mean of -p log p over all elements (equation 5; L_alpha and L_eta). `floor` is added inside the logarithm."""
    p = log_p.exp()
    return -(p * (log_p if floor == 0 else (p + floor).log())).mean()


def topology_loss(relaxed: Relaxed, floor: float = 0.0) -> Tensor:
    """L_tp, equations 6 and 7: a sum over layers and node sets, with gradients through both factors.

    Every pattern belongs to one node set on each side, so that 1 - p is the probability of all other sets: both
    logarithms are log-sum-exps, finite wherever the logits are.
    """
    constants = tables(relaxed.depth, relaxed.log_eta.device)
    log_in, log_not_in = _log_probabilities(relaxed.log_eta[:-1], constants.arrivals)
    log_out, log_not_out = _log_probabilities(relaxed.log_eta[1:], constants.departures)
    if floor != 0:
        log_out, log_not_out = ((log.exp() + floor).log() for log in (log_out, log_not_out))
    return -(log_in.exp() * log_out + log_not_in.exp() * log_not_out).sum()


def _log_probabilities(log_eta: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log(1 - p) of each group of patterns, `[L, A]`."""
    padded = torch.nn.functional.pad(log_eta, (0, 1), value=-torch.inf)
    log_p = padded[:, members].logsumexp(2)
    itself = torch.eye(len(members), dtype=torch.bool, device=log_p.device)
    return log_p, log_p[:, None, :].masked_fill(itself, -torch.inf).logsumexp(2)


def memory_use(relaxed: Relaxed, table: Tensor) -> tuple[Tensor, Tensor]:
    """Expected memory M_e (equation 8) and the full memory M_a, in the units of `table`.

    Args:
        table: `[E, N]`, what an edge with an operation takes (`memory_budget.edge_memory`).

    M_a is that of the current operations on all edges, as in the reference implementation: equation 9 as printed sums
    over patterns and operations alike, and no architecture could then reach the paper's budgets of 0.5 and 0.8.
    """
    by_edge = (relaxed.log_alpha.exp() * table).sum(2)
    return (relaxed.edges * by_edge).sum(), by_edge.sum()


@dataclass(frozen=True)
class Regularisers:
    """The terms of L_arch besides the segmentation loss, and the memory ratio M_e / M_a."""

    alpha: Tensor
    eta: Tensor
    topology: Tensor
    memory: Tensor
    memory_ratio: Tensor

    def total(self, ramp: float, topology_weight: float) -> Tensor:
        """Equation 11 without the segmentation loss; `ramp` is t / t_all."""
        return ramp * (self.alpha + self.eta + topology_weight * self.topology + self.memory)


def regularisers(relaxed: Relaxed, table: Tensor, sigma: float, floor: float = 0.0) -> Regularisers:
    """Equations 5, 7 and 10. `floor`: 0 is exact, `REFERENCE_FLOOR` for figures of the reference implementation."""
    with without_autocast(relaxed.log_eta.device):
        used, full = memory_use(relaxed, table)
        ratio = used / full
        return Regularisers(
            alpha=entropy(relaxed.log_alpha),  # the reference has no floor here
            eta=entropy(relaxed.log_eta, floor),
            topology=topology_loss(relaxed, floor),
            memory=(ratio - sigma).abs(),
            memory_ratio=ratio,
        )
