"""DiNTS: differentiable network topology search (He et al., CVPR 2021).

Data flow: `search_space.py` (scales, edges, patterns; plain numbers) -> `architecture_code.py` (one topology) and
`code_file.py` (its files) -> `lean.py`, `cells.py` and `network.py` (supernet and discrete net). A search goes
`schedule.py` and `halves.py` (when, on which cases) -> `relaxation.py` (probabilities and losses of the architecture's
logits), held to `memory_budget.py` -> `architecture_step.py` -> `discretize.py` (the best feasible code within the
budget) -> `snapshot.py` (history and file).
"""
