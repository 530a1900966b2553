"""For setuptools, beside pyproject.toml: a build begins with an empty folder.

Without it a wheel takes along modules that an earlier build left in build/lib, and that are gone.
"""

import shutil

from setuptools import setup
from setuptools.command.build import build


class _CleanBuild(build):
    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(cmdclass={"build": _CleanBuild})
