"""A whole study on tiny volumes: killed twice on the way, finished, and honest about a fold that fails."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
from contract.on_request import THOROUGH
from end_to_end.stock import Workspace, make_dataset

FOLDS = range(5 if THOROUGH else 2)  # nnUNet_ext_all_methods=1 trains all
TINY = "patch_size: [16, 32, 32], batch_size: 2, save_every: 1"
STUDY = f"""
dataset: 7
folds: {list(FOLDS)}
device: cpu
schedule: {{epochs: 6, iterations: 2, val_iterations: 1}}
baseline: dense
methods:
  - name: dense
    method: e2enet
    set: {{sparsity: null, base_features: 4, max_features: 8, {TINY}}}
  - name: searched
    trainer: DiNTSTrainer
    plans: E2ENetPlans
    set: {{base_features: 2, {TINY}}}
test: {{images: raw/Dataset007_Tiny/imagesTs, labels: raw/Dataset007_Tiny/labelsTs}}
"""
PATIENCE = 900  # seconds, of a busy machine


class Run:
    """`nnunet_ext run` in a process of its own."""

    def __init__(self, workspace, *words):
        environment = {**workspace.environment, "nnUNet_n_proc_DA": "0"}
        self.log = workspace.root / "run.txt"
        with self.log.open("w") as file:
            command = workspace.command("nnunet_ext", "run", "study.yaml", *words)
            self.process = subprocess.Popen(command, cwd=workspace.root, env=environment, stdout=file, stderr=file)

    def wait_until(self, condition):
        deadline = time.time() + PATIENCE
        while not (found := condition()):
            assert self.process.poll() is None and time.time() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.02)
        return found

    def processes(self):
        """Itself and all that it has started."""
        import psutil

        return [psutil.Process(self.process.pid), *psutil.Process(self.process.pid).children(recursive=True)]

    def kill(self, of):
        """Kills those of its processes that `of` takes, at once."""
        for process in self.processes():
            if of(process.cmdline()):
                os.kill(process.pid, signal.SIGKILL)
        self.process.wait()

    def end(self):
        code = self.process.wait(PATIENCE)
        return code, self.log.read_text()


def in_the_middle(workspace):
    """A fold that has a checkpoint and is not at its end."""
    for folder in workspace.results.glob("Dataset*/*__*__*/fold_*"):
        if (folder / "checkpoint_best.pth").is_file() and not (folder / "checkpoint_final.pth").is_file():
            return folder
    return None


def logs(folder):
    return list(folder.glob("training_log_*.txt"))


@pytest.mark.slow
def test_a_study_that_is_killed_twice_ends_with_its_comparison(tmp_path):
    pytest.importorskip("snakemake")
    workspace = Workspace(tmp_path)
    make_dataset(workspace, cases=5, tests=2)
    (tmp_path / "study.yaml").write_text(STUDY)
    work = tmp_path / "study"

    # everything is killed: the training goes on with --c
    first = Run(workspace)
    killed = first.wait_until(lambda: in_the_middle(workspace))
    first.kill(lambda words: True)
    model = killed.parent.name.split("__")[1].rpartition("_")[2]
    assert model == "dense"  # the first of the file
    second = Run(workspace)
    goes_on = work / "logs" / f"train_{model}_{killed.name.removeprefix('fold_')}.txt"
    second.wait_until(lambda: goes_on.is_file() and "--c" in goes_on.read_text())

    # only Snakemake and what started it are killed: their training goes on to its end, and is not done again
    alone = second.wait_until(lambda: (found := in_the_middle(workspace)) and found != killed and found)
    assert "is being run already" in Run(workspace).end()[1]
    second.kill(lambda words: "snakemake" in words or any(word.endswith("nnunet_ext") for word in words))
    deadline = time.time() + PATIENCE
    while not (alone / "validation" / "summary.json").is_file():
        assert time.time() < deadline
        time.sleep(0.1)
    code, output = Run(workspace).end()
    assert code == 0, output[-5000:]
    assert (len(logs(killed)), len(logs(alone))) == (2, 1)
    epochs = re.findall(r": Epoch (\d+)", "".join(sorted(path.read_text() for path in logs(killed))))
    assert set(epochs) == set("012345") and len(epochs) < 12  # it did not begin anew

    status = workspace.run("nnunet_ext", "run", tmp_path / "study.yaml", "--status").stdout
    assert f"{2 * len(FOLDS)} of {2 * len(FOLDS)} trainings are finished." in status
    content = json.loads((work / "compare.json").read_text())
    assert content["baseline"] == "dense" and content["folds"] == [str(fold) for fold in FOLDS]
    assert [model["name"] for model in content["models"]] == ["dense", "searched"]
    assert all(model["costs"]["seconds"] > 0 for model in content["models"])
    assert sorted(content["test_cases"]) == ["best", "dense", "searched"]
    best = json.loads((work / "best.json").read_text())
    assert len(best["all_results"]) == 3 and set(best["entries"]) <= {"dense", "searched"}  # two models, one ensemble
    assert {path.name for path in (work / "predictions" / "best").glob("*.gz")} == {
        "case_005.nii.gz",
        "case_006.nii.gz",
    }

    # nothing is left to do
    before = {path: path.stat().st_mtime_ns for path in workspace.results.rglob("*") if path.is_file()}
    code, output = Run(workspace).end()
    assert code == 0 and "Nothing to be done" in output
    assert before == {path: path.stat().st_mtime_ns for path in workspace.results.rglob("*") if path.is_file()}

    # a fold that fails stands on the page
    (alone / "validation" / "summary.json").unlink()
    (alone / "checkpoint_final.pth").write_bytes(b"damaged")
    code, output = Run(workspace).end()
    lacks = f"{alone.parent.name.split('__')[1].rpartition('_')[2]} lacks fold {alone.name.removeprefix('fold_')}."
    assert code != 0 and f"The study is not complete: {lacks}" in output
    content = json.loads((work / "compare.json").read_text())
    assert f"The study is not complete: {lacks}" in content["notes"]
    assert alone.name.removeprefix("fold_") not in content["folds"]
