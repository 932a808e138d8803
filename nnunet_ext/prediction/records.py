"""What says that a case is complete: one small file a case in the output folder, written after everything else.

A case counts as done where its record says so for the same images, model and settings, and its files are still those
that were written. So what is half-written, stale or another's is predicted again.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_ext.files import read_json, sha256_of, write_json

FOLDER = ".nnunet_ext"  # in the output folder


class Records:
    """The records of an output folder, for one model with one set of settings.

    Args:
        output: the folder.
        source: what the predictions depend on besides the images: `describe_source`.
    """

    def __init__(self, output: Path, source: Mapping[str, Any]) -> None:
        self.output, self.source = output, dict(source)
        self.folder = output / FOLDER

    def is_done(self, case: str, images: Sequence[Path]) -> bool:
        """Whether the case's files are there as they were written for these images."""
        try:
            record = read_json(self.folder / f"{case}.json")
            return record["of"] == self._of(images) and all(
                _state(self.output / name) == state for name, state in record["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False  # no record, or none that can be read

    def done(self, case: str, images: Sequence[Path], files: Sequence[Path]) -> None:
        """Writes the record of a case whose files are there."""
        write_json(
            self.folder / f"{case}.json",
            {"of": self._of(images), "files": {path.name: _state(path) for path in files}},
        )

    def _of(self, images: Sequence[Path]) -> dict[str, Any]:
        names = [path.name for path in images]
        if len(set(names)) < len(names):  # slices of a DICOM series may lie in several folders
            names = [str(path.absolute()) for path in images]
        return {"images": {name: _version(path) for name, path in zip(names, images, strict=True)}, **self.source}

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new folder for files that are not whole yet; it is gone afterwards."""
        made = Path(tempfile.mkdtemp(prefix=f"{_owner(os.getpid())}.", dir=self.folder))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def clear(self) -> None:
        """Makes the folder, and removes what killed processes of this machine have left in it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(f"{socket.gethostname()}.*.*"):
            number = path.name.removeprefix(f"{socket.gethostname()}.").partition(".")[0]
            if path.is_dir() and number.isdigit() and not _is_alive(int(number)):
                shutil.rmtree(path, ignore_errors=True)


def describe_source(files: Sequence[Path], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What predictions depend on: the versions of the model's files, and the settings."""
    return {"model": {f"{path.parent.name}/{path.name}": _version(path) for path in files}, "settings": dict(settings)}


def _version(path: Path) -> list[int]:
    """Size in bytes and time of the last change in ns: what another file of the same name differs in."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _state(path: Path) -> list[Any]:
    """Size in bytes and SHA-256 of a file."""
    return [path.stat().st_size, sha256_of(path)]


def _owner(process: int) -> str:
    return f"{socket.gethostname()}.{process}"


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True
