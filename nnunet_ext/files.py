"""Files that matter are written to a temporary name beside their place, flushed to disk, and renamed.

And their SHA-256, and the user's cache folder with what makes a file in it fit to be used.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: str | os.PathLike, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write(file)` on a temporary file and renames it to `path`; on any error the old file stays as it was."""
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the user knows
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes JSON atomically, indented as nnU-Net's own files are."""
    text = json.dumps(content, indent=4)
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: str | os.PathLike) -> Any:
    """Reads JSON."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, as hex digits."""
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def user_cache(name: str) -> Path | None:
    """`nnunet_ext/<name>` in the user's cache folder ($XDG_CACHE_HOME, by default ~/.cache); None without a home."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(root):  # as its specification wants
        root = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "nnunet_ext" / name if os.path.isabs(root) else None


def make_private(folder: Path) -> bool:
    """Makes a folder of `user_cache` that nobody else may write, and says whether it is one.

    Raises:
        OSError: it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for private in (folder.parent, folder):
        with contextlib.suppress(OSError):  # of another user, or read-only; what counts is asked next
            private.chmod(0o700)
        if not is_private(private):
            return False
    return True


def is_private(path: Path) -> bool:
    """Whether this is a file or folder of this user that nobody else may write."""
    if not path.exists() or path.is_symlink():
        return False
    if os.name != "posix":  # Windows keeps a user's folders to the user, and has no such bits
        return True
    facts = path.stat()
    return facts.st_uid == os.getuid() and not facts.st_mode & 0o022


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
