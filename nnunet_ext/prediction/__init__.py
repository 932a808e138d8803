"""Prediction on nnU-Net's predictor."""
