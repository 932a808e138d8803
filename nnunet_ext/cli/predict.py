"""`nnunet_ext predict`: `nnUNetv2_predict` with batches of slices in 2d configurations; its arguments are nnU-Net's."""

from collections.abc import Sequence


def run_words(words: Sequence[str]) -> int:
    """Passes all arguments on; `-h` shows nnU-Net's help."""
    from nnunet_ext.prediction.command import predict

    predict(words)
    return 0
