"""Prediction of many cases in three stages that overlap: read and preprocess, network, labels and files.

One case is preprocessed ahead while the network works, and the rows of its logits become labels behind it. A case that
fails is named, and the others go on.
"""

import contextlib
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from nnunet_ext.dicom.segments import Segment
from nnunet_ext.dicom.series import Series
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.prediction.backends import with_backend
from nnunet_ext.prediction.dicom import write_dicom_seg, write_image
from nnunet_ext.prediction.export import CaseExport
from nnunet_ext.prediction.memory import give_back
from nnunet_ext.prediction.model import Model, compiled
from nnunet_ext.prediction.preprocessing import preprocess
from nnunet_ext.prediction.records import Records
from nnunet_ext.prediction.sliding_window import row_predictor
from nnunet_ext.prediction.timing import Timing

AHEAD = 2  # portions of rows that may wait for the last stage


@dataclass(frozen=True)
class Case:
    """A case to predict: the file of each channel, and the label map of the cascade's stage before.

    Of a DICOM series, `images` are the files of its slices.
    """

    name: str
    images: tuple[Path, ...]
    previous: Path | None = None
    series: Series | None = None

    @property
    def files(self) -> list[Path]:
        """All that the prediction depends on."""
        return [*self.images, *([] if self.previous is None else [self.previous])]


@dataclass(frozen=True)
class How:
    """How to predict; the defaults are nnU-Net's."""

    device: torch.device
    step_size: float = 0.5
    mirroring: bool = True
    on_device: bool = True  # logits are added up on the device, not on the CPU
    probabilities: bool = False
    exact: bool = True
    progress: bool = True
    backend: str = "auto"
    segments: Sequence[Segment] | None = None  # of DICOM segmentations, where these are wanted


class Predictor:
    """A model's networks in nnU-Net's sliding window."""

    def __init__(self, model: Model, how: How) -> None:
        self.model, self.how = model, how
        with contextlib.redirect_stdout(io.StringIO()):  # it says on CPUs that logits are added up on CPUs
            self.predictor = row_predictor()(
                tile_step_size=how.step_size, use_gaussian=True, use_mirroring=how.mirroring,
                perform_everything_on_device=how.on_device, device=how.device, allow_tqdm=False,
            )  # fmt: skip
        example = torch.zeros(1, model.channels, *model.configuration.patch_size)
        networks = with_backend([network.to(how.device) for network in model.networks], how.backend, example)
        self.networks = networks if how.backend == "openvino" else [compiled(network) for network in networks]
        self.predictor.manual_initialization(
            self.networks[0], model.plans, model.configuration, None, model.dataset, model.trainer, model.mirroring
        )

    @torch.inference_mode()
    def rows(self, data: Tensor, on_device: bool) -> Iterator[Tensor]:
        """Logits of `data [C, D, H, W]`, the mean of all folds: `[K, k, H, W]`, float16, on the CPU."""
        from acvl_utils.cropping_and_padding.padding import pad_nd_image

        predictor, device = self.predictor, self.how.device if on_device else torch.device("cpu")
        patch = predictor.configuration_manager.patch_size
        padded, inside = pad_nd_image(data, patch, "constant", {"value": 0}, True, None)
        slicers = predictor._internal_get_sliding_window_slicers(padded.shape[1:])
        parts = zip(*(self._of_fold(network, padded, slicers, device) for network in self.networks), strict=True)
        first = 0
        for rows in parts:
            total = rows[0].cpu()
            for more in rows[1:]:
                total += more.cpu()
            if len(rows) > 1:
                total /= len(rows)
            low, high = max(inside[1].start - first, 0), min(inside[1].stop - first, total.shape[1])
            first += total.shape[1]
            if low < high:
                yield total[:, low:high, inside[2], inside[3]]

    def _of_fold(self, network: Any, data: Tensor, slicers: Sequence[Any], device: torch.device) -> Iterator[Tensor]:
        rows = self.predictor.logit_rows(data, slicers, device)
        while True:
            self.predictor.network = network  # folds take turns
            cuda = self.how.device.type == "cuda"
            with torch.autocast("cuda") if cuda else contextlib.nullcontext():
                part = next(rows, None)
            if part is None:
                return
            yield part


def predict_cases(
    predictor: Predictor, cases: Sequence[Case], records: Records, timing: Timing, say: Callable[[str], None] = print
) -> dict[str, str]:
    """Predicts the cases into the records' folder, and says which one failed as soon as it does.

    Returns:
        Case -> what went wrong, for those that could not be predicted.
    """
    run = _Run(predictor, records, timing)
    failed: dict[str, str] = {}

    def fails(case: Case, error: Exception) -> None:
        what = "" if isinstance(error, ConfigurationError) else f"{type(error).__name__}: "
        failed[case.name] = f"{what}{error}"
        say(f"nnunet_ext: {case.name} failed: {failed[case.name]}")

    running: deque[tuple[Case, Future]] = deque()
    with tqdm(total=len(cases), unit="case", disable=not predictor.how.progress) as bar, run:
        ready = [run.prepare(case) for case in cases[:1]]
        for number, case in enumerate(cases):
            bar.set_description(case.name)
            prepared = ready.pop()
            try:
                data, properties = prepared.result()
            except Exception as error:
                data = None
                fails(case, error)
            ready = [run.prepare(following) for following in cases[number + 1 : number + 2]]
            try:
                if data is not None:
                    running.append((case, run.predict(case, data, properties)))
            except Exception as error:
                fails(case, error)
            while running and (len(running) > 1 or number + 1 == len(cases)):
                earlier, written = running.popleft()
                try:
                    written.result()
                except Exception as error:
                    fails(earlier, error)
            bar.update(number + 1 - bar.n - len(running))
    return failed


class _Run:
    """The three stages, each of which works on one case at a time; the network in the calling thread."""

    def __init__(self, predictor: Predictor, records: Records, timing: Timing) -> None:
        self.predictor, self.records, self.timing = predictor, records, timing
        self.model, self.how = predictor.model, predictor.how
        self.reading, self.writing = (ThreadPoolExecutor(1, name) for name in ("reading", "writing"))

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *_: object) -> None:
        for stage in (self.reading, self.writing):
            stage.shutdown(cancel_futures=True)

    def prepare(self, case: Case) -> Future:
        """Starts to read and preprocess a case; the result is that of `preprocess`."""

        def run() -> Any:
            with self.timing.case(case.name):
                previous = None if case.previous is None else str(case.previous)
                try:
                    with self._images(case) as images:
                        return preprocess(self.model, images, previous, self.timing)
                finally:
                    give_back()

        return self.reading.submit(run)

    @contextmanager
    def _images(self, case: Case) -> Iterator[list[str]]:
        """The image files of a case; a DICOM series has one for as long as it is read."""
        if case.series is None:
            yield [str(path) for path in case.images]
            return
        with self.records.scratch() as scratch:
            with self.timing.stage("read"):
                image = write_image(case.series, scratch)
            yield [str(image)]

    def predict(self, case: Case, data: Tensor, properties: dict[str, Any]) -> Future:
        """Runs the network over a case; the result waits for its files."""
        if self.how.on_device and self.how.device.type != "cpu":
            try:
                return self._predict(case, data, properties, True)
            except RuntimeError as error:  # memory is out, most likely: nnU-Net goes on in the same way
                print(f"nnunet_ext: {case.name}: {error} Its logits are added up on the CPU now.")
        return self._predict(case, data, properties, False)

    def _predict(self, case: Case, data: Tensor, properties: dict[str, Any], on_device: bool) -> Future:
        with ExitStack() as stack:
            scratch = stack.enter_context(self.records.scratch())
            export = CaseExport(self.model, data.shape[1:], properties, scratch, self.how.probabilities, self.how.exact)
            waiting: deque[Future] = deque()
            stack.callback(lambda: [portion.exception() for portion in waiting])  # before the folder is removed
            rows = self.predictor.rows(data, on_device)
            with self.timing.case(case.name):
                while True:
                    with self.timing.stage("network"):
                        part = next(rows, None)
                    if part is None:
                        break
                    waiting.append(self.writing.submit(self._add, case, export, part))
                    while len(waiting) > AHEAD:
                        waiting.popleft().result()
            return self.writing.submit(self._finish, case, export, list(waiting), stack.pop_all())
        raise AssertionError

    def _add(self, case: Case, export: CaseExport, rows: Tensor) -> None:
        with self.timing.case(case.name), self.timing.stage("labels"):
            export.add(rows)

    def _finish(self, case: Case, export: CaseExport, portions: Sequence[Future], stack: ExitStack) -> None:
        with stack, self.timing.case(case.name):
            for portion in portions:
                portion.result()
            with self.timing.stage("labels"):
                export.finish()
            with self.timing.stage("write"):
                files = export.write(self.records.output / case.name)
                if case.series is not None and self.how.segments is not None:
                    files.append(write_dicom_seg(case.series, files[-1], self.how.segments, self.model))
                self.records.done(case.name, case.files, files)
