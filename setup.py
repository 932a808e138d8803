"""Only what pyproject.toml cannot say: the packages, and the start-up files beside them, in every kind of install."""

import base64
import hashlib
import shutil
import zipfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
STARTUP = ["nnunet_ext.pth", "nnunet_ext.start"]
OUTSIDE = {"nnunet_ext.trainers": "trainers", "nnunet_ext.plans": "plans"}  # as in pyproject.toml
PACKAGES = [*find_packages(include=["nnunet_ext", "nnunet_ext.*"]), "nnunet_ext.discovery.bridge", *OUTSIDE]

# setuptools' finder of an editable install imports pathlib, urllib and more: 6 ms in every start of Python.
FINDER = '''"""Finds the packages of an editable install in their checkout."""

import sys

spec_from_file_location = sys.modules["_frozen_importlib_external"].spec_from_file_location
PLACES = {places!r}


class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        place = PLACES.get(name)
        if place is not None:
            return spec_from_file_location(name, place + "/__init__.py", submodule_search_locations=[place])


def install():
    if Finder not in sys.meta_path:
        sys.meta_path.append(Finder)
'''


class BuildPy(build_py):
    """Copies the start-up files to the root of a regular build."""

    def run(self):
        """Builds, then adds the start-up files."""
        super().run()
        if not self.editable_mode:
            for name in STARTUP:
                shutil.copyfile(name, Path(self.build_lib, name))

    def get_outputs(self, include_bytecode=True):
        """Lists the start-up files too, so that an uninstall removes them."""
        extra = [] if self.editable_mode else [str(Path(self.build_lib, name)) for name in STARTUP]
        return super().get_outputs(include_bytecode) + extra


class EditableWheel(editable_wheel):
    """Adds the start-up files to the wheel of an editable install, and puts a finder in it that costs nothing."""

    def run(self):
        """Builds, then writes the wheel again."""
        super().run()
        places = {"nnunet_ext": str(ROOT / "nnunet_ext"), **{name: str(ROOT / at) for name, at in OUTSIDE.items()}}
        for wheel in Path(self.dist_dir).glob("*editable*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
            files.update({name: Path(name).read_bytes() for name in STARTUP})
            for name in files:
                if name.startswith("__editable__") and name.endswith("_finder.py"):
                    files[name] = FINDER.format(places=places).encode()
            record = next(name for name in files if name.endswith(".dist-info/RECORD"))
            files[record] = "".join([*(record_line(*file) for file in files.items() if file[0] != record),
                                     f"{record},,\n"]).encode()  # fmt: skip
            with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in files.items():
                    archive.writestr(name, content)


def record_line(name: str, content: bytes) -> str:
    """A file's line in RECORD."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"


setup(packages=PACKAGES, cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel})
