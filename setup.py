"""For setuptools, beside pyproject.toml: the compiled part, the runbook, and a build that begins with an empty folder.

Without that a wheel takes along modules that an earlier build left in build/lib, and that are gone. The compiled part is built
where a C compiler and Python's headers are, and otherwise left out: then the same is done in Python. It uses Python's limited
API, so that one wheel is for every version of Python from the one named here.
"""

import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build


class _CleanBuild(build):
    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        web = Path(self.build_lib, "eir", "node", "processes")
        web.mkdir(parents=True, exist_ok=True)
        shutil.copy("deploy/RUNBOOK.md", web)  # a node serves it


_SOURCES = [f"eir/interfaces/s13/{name}.c" for name in ("_lane", "_ecr", "_image", "_policy")]
_LANE = Extension(
    "eir.interfaces.s13._lane",
    _SOURCES,
    depends=["eir/interfaces/s13/_lane.h"],
    extra_compile_args=["-O3"],
    py_limited_api=True,
    optional=True,
)

setup(cmdclass={"build": _CleanBuild}, ext_modules=[_LANE], options={"bdist_wheel": {"py_limited_api": "cp311"}})
