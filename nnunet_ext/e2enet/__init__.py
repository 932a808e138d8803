"""E2ENet: dynamic sparse feature fusion and restricted depth shift (Wu et al., NeurIPS 2024, arXiv 2312.04727).

Data flow: `options.py` and the plans' arch_kwargs -> `network.py` (over `blocks.py`, `depth_shift.py` and `masked.py`,
or `shared_inputs.py` for connections in blocks) -> `topology.py`, which moves the connections in training. `packed/`
predicts on CPUs.
"""
