"""Figures for people: PNG files drawn with matplotlib, without a display."""
