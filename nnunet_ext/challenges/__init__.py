"""Challenges: from the download to a submission that is accepted, with local scores.

Every challenge is a table of facts (`facts.Challenge`) in its own file, listed in `catalogue.py`. `convert`, `export`
and `score` work from these tables; only `convert` knows nnU-Net.
"""
