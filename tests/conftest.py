"""What holds for all tests: small worker pools, no compilation unless asked for, one thread, helpers with asserts."""

import os

# nnU-Net reads these when it is imported.
os.environ.update(nnUNet_def_n_proc="1", nnUNet_n_proc_DA="1", nnUNet_compile="f")

import pytest

pytest.register_assert_rewrite("contract", "e2enet.small", "end_to_end")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny networks are fastest in one thread, and sums are taken in the same order on every machine."""
    import torch

    torch.set_num_threads(1)
