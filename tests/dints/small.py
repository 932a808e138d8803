"""Codes and networks of few layers."""

import numpy as np

from nnunet_ext.dints.discretize import decode
from nnunet_ext.dints.search_space import OPERATIONS, edges

CUBES = [[1, 1, 1]] + [[2, 2, 2]] * 4


def random_code(depth=4, layers=12, dimensions=3, seed=0):
    """A feasible code: the decode of random logits."""
    rng = np.random.default_rng(seed)
    count = len(edges(depth))
    logits = rng.normal(0, 2, (layers, count)), rng.normal(0, 1, (layers, count, len(OPERATIONS[dimensions])))
    return decode(*logits).code


def depth_for(strides):
    """As many scales as the strides have room for."""
    return min(5, len(strides) - 1)
