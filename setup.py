"""Only what pyproject.toml cannot say: the start-up files beside the package, in wheels and editable installs."""

import base64
import hashlib
import shutil
import zipfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

STARTUP = ["nnunet_ext.pth", "nnunet_ext.start"]


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
    """Adds the start-up files and their RECORD lines to the wheel of an editable install."""

    def run(self):
        """Builds, then writes the wheel again with the start-up files in it."""
        super().run()
        for wheel in Path(self.dist_dir).glob("*editable*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                files = {entry.filename: archive.read(entry) for entry in archive.infolist()}
            record = next(name for name in files if name.endswith(".dist-info/RECORD"))
            for name in STARTUP:
                files[name] = content = Path(name).read_bytes()
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                files[record] += f"{name},sha256={digest},{len(content)}\n".encode()
            with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in files.items():
                    archive.writestr(name, content)


setup(cmdclass={"build_py": BuildPy, "editable_wheel": EditableWheel})
