"""Files are written whole or not at all."""

import json
import os
import stat
import subprocess
import sys

import pytest

from nnunet_ext.files import read_json, write_atomically, write_json


def test_json_is_read_as_it_was_written(tmp_path):
    content = {"a": [1, 2.5, None, True], "b": {"c": "\u00e4"}}
    write_json(tmp_path / "file.json", content)
    assert read_json(tmp_path / "file.json") == content


def test_json_is_indented_as_nnunets_files_are(tmp_path):
    write_json(tmp_path / "file.json", {"a": {"b": 1}})
    assert (tmp_path / "file.json").read_text() == '{\n    "a": {\n        "b": 1\n    }\n}'


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    write_json(tmp_path / "file.json", 1)
    write_json(tmp_path / "file.json", 2)
    assert read_json(tmp_path / "file.json") == 2
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("old")

    def fail(file):
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "file", fail)
    assert (tmp_path / "file").read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    (tmp_path / "file").write_text("old")

    def write(file):
        file.write(b"new")
        file.flush()
        assert (tmp_path / "file").read_text() == "old"

    write_atomically(tmp_path / "file", write)
    assert (tmp_path / "file").read_text() == "new"


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    (tmp_path / "file.json").write_text('"old"')
    script = """
import os, sys
from nnunet_ext.files import write_atomically
write_atomically(sys.argv[1], lambda file: (file.write(b"half"), file.flush(), os.kill(os.getpid(), 9)))
"""
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "file.json")], check=False)
    assert killed.returncode == -9
    assert read_json(tmp_path / "file.json") == "old"


def test_what_json_cannot_hold_is_an_error_and_touches_nothing(tmp_path):
    (tmp_path / "file.json").write_text("1")
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"a": object()})
    assert json.loads((tmp_path / "file.json").read_text()) == 1
    assert os.listdir(tmp_path) == ["file.json"]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_files_have_the_permissions_of_any_new_file(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_json(tmp_path / "file.json", 1)
        (tmp_path / "plain").touch()
        assert os.umask(mask) == mask, "the umask was changed"
    finally:
        os.umask(before)
    ours, plain = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file.json", "plain"))
    assert ours == plain == 0o666 & ~mask


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_json(tmp_path / "nowhere" / "file.json", 1)


def test_an_error_names_the_file_that_was_to_be_written(tmp_path):
    with pytest.raises(OSError, match="No such file") as raised:
        write_json(tmp_path / "missing" / "a.json", {})
    assert raised.value.filename == str(tmp_path / "missing" / "a.json")
