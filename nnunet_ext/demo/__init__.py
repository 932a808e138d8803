"""The demo: nnU-Net's own commands with one of our methods, from raw data to a table and a picture."""
