"""How each method is sized to a data set and a GPU. Installed as `nnunet_ext.plans`; found by name."""
