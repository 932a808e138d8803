"""What holds for all tests: small worker pools, no compilation unless asked for, one thread, helpers with asserts."""

import os
import shutil
import tempfile

# nnU-Net reads these when it is imported.
os.environ.update(nnUNet_def_n_proc="1", nnUNet_n_proc_DA="1", nnUNet_compile="f")
os.environ["nnUNet_ext_threads"] = "1"  # of trainers and commands of ours
# Its progress.png, drawn after each epoch, has 16 million pixels otherwise.
os.environ["MATPLOTLIBRC"] = os.path.join(os.path.dirname(__file__), "matplotlibrc")
# The compiled engine goes into a cache of this run; matplotlib keeps its own, which takes long to build.
WORKER = "PYTEST_XDIST_WORKER" in os.environ
if not WORKER:  # the workers share what the first process sets
    if "MPLCONFIGDIR" not in os.environ and "XDG_CACHE_HOME" not in os.environ:
        os.environ["MPLCONFIGDIR"] = os.path.join(os.path.expanduser("~"), ".cache", "matplotlib")
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="nnunet_ext-cache-")

import pytest  # noqa: E402

pytest.register_assert_rewrite("contract", "e2enet.small", "end_to_end")


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks are fastest in one thread, and sums are taken in the same order on every machine.

    Before each test: commands that ran in this process may have asked for all cores.
    """
    import torch

    torch.set_num_threads(1)


def pytest_unconfigure():
    if not WORKER:
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
