"""What a job of a study's workflow does: `python -m nnunet_ext.studies.steps STUDY WORK DEVICE GPUS STEP ...`.

Most steps are one command of nnU-Net or ours. What is here is decided when the job runs: what is preprocessed already,
how a training goes on, what the best configuration is.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from nnunet_ext.discovery.commands import stock_command
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json, write_json
from nnunet_ext.studies.layout import BEST, Layout
from nnunet_ext.studies.locks import hold
from nnunet_ext.studies.study import Entry, read_study

_PATIENCE = 20  # seconds in which an interrupted command may end its own processes


class StepFailed(Exception):
    """A command ended with an error, which it has printed; the exit code."""


def main(argv: Sequence[str]) -> int:
    """Runs one step and returns the exit code of what failed in it."""
    study, work, device, gpus, step, *words = argv
    signal.signal(signal.SIGTERM, _interrupt)  # schedulers end jobs so
    try:
        layout = Layout(read_study(Path(study)), Path(work), device)
        _STEPS[step](layout, int(gpus), *words)
    except StepFailed as error:
        return int(str(error))
    except ConfigurationError as error:
        print(f"nnunet_ext: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def run(words: Sequence[str], *, keep: Sequence[IO[str]] = (), **environment: str) -> None:
    """Prints and runs a command of nnU-Net or ours, and waits for it.

    Args:
        words: name and arguments.
        keep: open files that the command inherits.
        environment: further variables.

    Raises:
        StepFailed: it ended with an error.
    """
    print(f"$ {shlex.join(words)}", flush=True)
    start = [sys.executable, "-m", "nnunet_ext"] if words[0] == "nnunet_ext" else stock_command(words[0])
    process = subprocess.Popen(
        [*start, *words[1:]],
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
        pass_fds=[file.fileno() for file in keep],
    )
    try:
        code = process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)  # nnU-Net then ends its own processes
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
        process.kill()
        raise
    if code:
        raise StepFailed(code if code > 0 else 128 - code)


def fingerprint(layout: Layout, gpus: int, processes: str) -> None:
    """nnU-Net's fingerprint of the data set, on which all plans are made."""
    words = ["nnUNetv2_extract_fingerprint", "-d", layout.number, "-np", processes, "--verify_dataset_integrity"]
    run(words)


def plan(layout: Layout, gpus: int, plans: str) -> None:
    """Plans by their planner."""
    words = ["nnUNetv2_plan_experiment", "-d", layout.number, "-pl", layout.plans_to_make()[plans]]
    if os.environ.get("nnUNet_n_proc_DA") == "0":
        # for trainings without worker processes; nnU-Net's planning takes it for a number of threads, and fails
        run(words, nnUNet_n_proc_DA="1")
    else:
        run(words)


def derive(layout: Layout, gpus: int, name: str) -> None:
    """Plans with an entry's options."""
    run(layout.derive_words(layout.study.entry(name)))


def preprocess(layout: Layout, gpus: int, processes: str) -> None:
    """Every preprocessed data set that some entry trains on and that is not whole; then nnU-Net's split."""
    seen = set()
    for entry in layout.study.entries:
        folder = data_folder(layout, entry)
        if folder in seen:
            continue
        seen.add(folder)
        if is_preprocessed(layout, folder):
            print(f"{folder} is whole: it is used as it is.", flush=True)
            continue
        words = ["nnUNetv2_preprocess", "-d", layout.number, "-plans_name", entry.plans, "-c", entry.configuration]
        run([*words, "-np", processes])
        if not is_preprocessed(layout, folder):
            raise ConfigurationError(f"{folder} is not whole after preprocessing; look at the messages above.")
    _write_splits(layout)


def data_folder(layout: Layout, entry: Entry) -> Path:
    """Where an entry's preprocessed cases are.

    Raises:
        FileNotFoundError: there are no such plans yet.
    """
    return layout.preprocessed / layout.configuration(entry)["data_identifier"]


def is_preprocessed(layout: Layout, folder: Path) -> bool:
    """Whether every training case was preprocessed to its end: its properties are written last."""
    cases = training_cases(layout.raw)
    gt = layout.preprocessed / "gt_segmentations"
    references = {path.name.partition(".")[0] for path in gt.iterdir()} if gt.is_dir() else set()
    return all((folder / f"{case}.pkl").is_file() and case.partition(".")[0] in references for case in cases)


def training_cases(raw: Path) -> list[str]:
    """Names of the training cases of a raw data set, by its dataset.json or its labels."""
    dataset_json = read_json(raw / "dataset.json")
    if "dataset" in dataset_json:
        return sorted(dataset_json["dataset"])
    ending = dataset_json["file_ending"]
    return sorted(path.name.removesuffix(ending) for path in (raw / "labelsTr").glob(f"*{ending}"))


def _write_splits(layout: Layout) -> None:
    """nnU-Net's own split, written before trainings that begin together would all write it."""
    path = layout.preprocessed / "splits_final.json"
    if not path.is_file():
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        splits = generate_crossval_split(training_cases(layout.raw))
        write_json(path, [{part: [str(case) for case in cases] for part, cases in s.items()} for s in splits])


def train(layout: Layout, gpus: int, name: str, fold: str) -> None:
    """One fold, from where it stands to its validation."""
    entry = layout.study.entry(name)
    path = layout.lock(entry, int(fold))
    lock = hold(path)
    if lock is None:
        print("Another process trains this fold; waiting for its end.", flush=True)
        lock = hold(path, wait=True)
    assert lock is not None
    with lock:
        if layout.summary(entry, int(fold)).is_file():
            print("That process has finished it.", flush=True)
            return
        run_on_gpu(layout, gpus, layout.train_words(entry, int(fold)), keep=[lock])


def run_on_gpu(layout: Layout, gpus: int, words: Sequence[str], *, keep: Sequence[IO[str]] = ()) -> None:
    """As `run`, on a GPU of its own where this machine's are shared out here; a cluster shares out its own (0 GPUs)."""
    if layout.device != "cuda" or not gpus:
        run(words, keep=keep)
        return
    lock, number = _free_gpu(gpus)
    with lock:
        run(words, keep=[*keep, lock], CUDA_VISIBLE_DEVICES=number)


def _free_gpu(count: int) -> tuple[IO[str], str]:
    """A GPU of this machine that no other job of a study holds, as CUDA_VISIBLE_DEVICES names it."""
    visible = [word for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    names = visible or [str(number) for number in range(count)]
    user = os.getuid() if hasattr(os, "getuid") else 0
    while True:
        for name in names:
            lock = hold(Path(tempfile.gettempdir()) / f"nnunet_ext-{user}" / f"gpu_{name.strip()}.lock")
            if lock is not None:
                return lock, name.strip()
        time.sleep(2)


def best(layout: Layout, gpus: int, processes: str) -> None:
    """nnU-Net's best configuration among the entries and their ensembles.

    By its function: the command takes all combinations of trainers and plans, and fails where one was not trained.
    """
    from nnunetv2.evaluation.find_best_configuration import find_best_configuration

    entries, folds = layout.study.entries, layout.study.folds
    models = tuple({"plans": e.plans, "configuration": e.configuration, "trainer": e.trainer} for e in entries)
    without = [e.name for e in entries if not all(_has_probabilities(layout, e, fold) for fold in folds)]
    remark = ""
    if layout.ensembles and without:
        remark = f"Ensembles were not tried, because {', '.join(without)} was validated without --npz"
    result: dict[str, Any] = find_best_configuration(
        layout.dataset,
        models,
        allow_ensembling=layout.ensembles and not without,
        num_processes=int(processes),
        overwrite=True,
        folds=folds,
    )
    chosen = result["best_model_or_ensemble"]["selected_model_or_models"]
    keys = [(c["trainer"], c["plans_identifier"], c["configuration"]) for c in chosen]
    names = [e.name for key in keys for e in entries if (e.trainer, e.plans, e.configuration) == key]
    write_json(layout.best, {"entries": names, "remark": remark, **result})


def _has_probabilities(layout: Layout, entry: Entry, fold: int) -> bool:
    folder = layout.summary(entry, fold).parent
    cases = len(read_json(layout.summary(entry, fold))["metric_per_case"])
    return len(list(folder.glob("*.npz"))) >= cases


def predict(layout: Layout, gpus: int, name: str, part: str) -> None:
    """One part of the test images by an entry's folds together."""
    layout.timing(layout.study.entry(name), int(part)).parent.mkdir(parents=True, exist_ok=True)
    run_on_gpu(layout, gpus, layout.predict_words(layout.study.entry(name), int(part)))


def choose(layout: Layout, gpus: int, processes: str) -> None:
    """The test predictions of the best configuration: ensembled if it is an ensemble, then postprocessed."""
    content = read_json(layout.best)
    found, target = content["best_model_or_ensemble"], layout.predictions(BEST)
    sources = [str(layout.predictions(name)) for name in content["entries"]]
    together = target.with_name(f"{BEST}_before_postprocessing")
    for folder in (together, target):
        shutil.rmtree(folder, ignore_errors=True)
    if len(sources) > 1:
        run(["nnUNetv2_ensemble", "-i", *sources, "-o", str(together), "-np", processes])
        sources = [str(together)]
    words = ["nnUNetv2_apply_postprocessing", "-i", sources[0], "-o", str(target)]
    words += ["-pp_pkl_file", found["postprocessing_file"], "-plans_json", found["some_plans_file"], "-np", processes]
    dataset_json = str(Path(found["some_plans_file"]).with_name("dataset.json"))
    run([*words, "-dataset_json", dataset_json])


def score(layout: Layout, gpus: int, name: str, processes: str) -> None:
    """Scores of the test images."""
    layout.scores(name).parent.mkdir(parents=True, exist_ok=True)
    run([*layout.score_words(name), "-np", processes])


def page(layout: Layout, gpus: int) -> None:
    """The page of what is there."""
    run(layout.page_words())


_STEPS = {
    step.__name__: step for step in (fingerprint, plan, derive, preprocess, train, best, predict, choose, score, page)
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
