"""Equation 11 written out: probabilities pattern by pattern, in float64, with no logarithm of the implementation."""

import torch

from nnunet_ext.dints.memory_budget import edge_memory
from nnunet_ext.dints.relaxation import Relaxed
from nnunet_ext.dints.search_space import patterns, receivers, senders


def equation_11(network, a, c, data, target, loss, *, patch, ramp, sigma, weight, floor=0.0):
    """The loss of a step of the architecture with logits `a [L, E]` and `c [L, E, N]`, for two scales."""
    a, c = a.double(), c.double()
    table = torch.tensor(patterns(2), dtype=torch.float64)
    p = a.sigmoid()[:, None, :]
    eta = (table * p + (1 - table) * (1 - p)).prod(2)
    eta = eta / eta.sum(1, keepdim=True)  # the empty pattern is none
    edges, alpha = eta @ table, c.softmax(2)

    def entropy(q, floor=0.0):
        return -(q * (q + floor).log()).mean()

    topology = 0.0
    for layer in range(len(eta) - 1):
        for found in range(1, 4):
            arrives = torch.tensor([float(receivers(2, pattern) == found) for pattern in patterns(2)]).double()
            leaves = torch.tensor([float(senders(2, pattern) == found) for pattern in patterns(2)]).double()
            p_in, p_out = eta[layer] @ arrives, eta[layer + 1] @ leaves
            topology -= p_in * (p_out + floor).log() + (1 - p_in) * (1 - p_out + floor).log()
    by_edge = (alpha * torch.tensor(edge_memory(network.structure, patch)).double()).sum(2)
    ratio = (edges * by_edge).sum() / by_edge.sum()
    segmentation = loss(network(data, Relaxed(2, eta.log(), edges, alpha.log())), target)
    return segmentation + ramp * (entropy(alpha) + entropy(eta, floor) + weight * topology + (ratio - sigma).abs())
