"""Shallow: two convolutions, to show what a method is made of."""
