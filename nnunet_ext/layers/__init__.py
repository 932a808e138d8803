"""Pieces that networks of several methods share; plain torch."""
