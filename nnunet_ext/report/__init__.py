"""One page about a trained model folder, ours or stock nnU-Net's: read it, draw it, write it as a single HTML file."""
