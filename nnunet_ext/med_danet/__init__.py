"""Med-DANet: a decision network routes each slice to skip or to one of a bank of 2D candidates (arXiv 2206.06575).

Data flow: `bank.py` (which candidates the plans name; plain numbers) -> `candidates.py` and `decision.py` (their
networks) -> `network.py` (the bank with its router). `choice.py` makes the labels that the decision network learns,
`costs.py` says what a slice costs.
"""
