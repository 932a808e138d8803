"""How nnU-Net's own commands find our trainers and planners."""
