"""E2ENet's prediction on CPUs over its active connections alone, in C++ compiled on first use.

Data flow: `dispatch.py` (whether the engine serves a forward pass) -> `program.py` (a network as a list of layers) ->
`library.py` (compiles `engine.cpp` and calls it).
"""
