"""DiNTS: differentiable network topology search (He et al., CVPR 2021).

Data flow: `search_space.py` (scales, edges, patterns; plain numbers) -> `architecture_code.py` (one topology, its file)
-> `cells.py` and `network.py` (supernet and discrete net). A search goes `relaxation.py` (probabilities and losses of
the architecture's logits) -> `discretize.py` (the best feasible code). `memory_budget.py` is what the search is held to.
"""
