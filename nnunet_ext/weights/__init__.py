"""Weights in files and between networks."""
