"""Volumes between two grids: nnU-Net's resampling as one small matrix an axis."""
