"""The check before a release: tag, versions, changelog and the repository's address agree."""

import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / ".ci" / "release"
FILES = ("pyproject.toml", "nnunet_ext/__init__.py", "CITATION.cff", "CHANGELOG.md")


@pytest.fixture
def problems(tmp_path):
    """The script's function on a copy of what it reads, ready for 1.2.3; `.edit(file, old, new)` changes it."""
    loader = SourceFileLoader("release", str(SCRIPT))
    module = module_from_spec(spec_from_loader("release", loader))
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    for name in FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    def find(tag):
        return module.problems(tag, tmp_path)

    def edit(name, old, new):
        text = (tmp_path / name).read_text()
        assert old in text
        (tmp_path / name).write_text(text.replace(old, new))

    find.edit = edit
    version = module_version()
    edit("pyproject.toml", f'version = "{version}"', 'version = "1.2.3"')
    edit("pyproject.toml", module.PLACEHOLDER, "https://host.test/")
    edit("nnunet_ext/__init__.py", f'__version__ = "{version}"', '__version__ = "1.2.3"')
    edit("CITATION.cff", f"version: {version}", "version: 1.2.3")
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.3 (2030-01-02)\n")
    return find


def module_version():
    import nnunet_ext

    return nnunet_ext.__version__


def test_a_release_whose_parts_agree_has_no_problems(problems):
    assert problems("v1.2.3") == []


def test_every_part_that_disagrees_is_named(problems):
    assert len(problems("v1.2.4")) == 4  # three versions and the changelog
    assert "The tag is v and a version" in problems("1.2.3")[0]
    problems.edit("CITATION.cff", "version: 1.2.3", "version: 1.2.2")
    assert problems("v1.2.3") == ["CITATION.cff has version 1.2.2, the tag is v1.2.3."]


def test_a_placeholder_for_the_address_and_an_undated_changelog_are_refused(problems):
    problems.edit("pyproject.toml", "https://host.test/", "https://example.org/")
    problems.edit("CHANGELOG.md", "(2030-01-02)", "(unreleased)")
    found = problems("v1.2.3")
    assert len(found) == 2 and "CHANGELOG.md" in found[0] and "placeholder" in found[1]


def test_the_script_ends_with_1_where_something_is_wrong():
    done = subprocess.run([sys.executable, str(SCRIPT), "v0.0.0"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "the tag is v0.0.0" in done.stdout


def test_the_address_stands_in_one_place():
    """Who publishes the repository edits pyproject.toml and nothing else."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not names:
        pytest.skip("no git checkout")
    texts = {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}
    checks = {"pyproject.toml", ".ci/release", "tests/test_release.py"}
    assert {name for name, text in texts.items() if b"example.org/" in text} == checks
