"""Med-Tuning: a frozen 2D transformer, small trainable adapters across slices, a 2D decoder (arXiv 2304.10880).

Data flow: `backbones.py` (timm's ViTs and Swins, their weights fitted to our sizes) -> `tuning.py` (what is inserted
and trained: the Med-Adapters of `adapters.py`, or a method that the paper compares with) -> `decoders.py`; `network.py`
puts them together, `costs.py` counts.
"""
