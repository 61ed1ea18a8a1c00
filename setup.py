"""The build, where it is more than pyproject.toml says: the hot path's modules are compiled by mypyc.

Decides whether they are: they are where there is a C compiler and Python's headers, and one module that does not
compile means that none is, for they call each other as C. Otherwise the same sources are installed and run as they are,
only slower; why is left in `build/uncompiled`. Nothing compiled is ever put beside the sources: a module that was
compiled before its last change would silently hide it. Wheels are compiled; editable installs and `egg_info` are not.
`PURE=1` in the environment builds without compiling.
"""

import os
import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build"
#: Lint checks types. Here they are only read, and where another package is not at hand its values are of any type.
MYPY = ["--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]


def modules() -> list[str]:
    """The paths of the modules to compile, as pyproject.toml lists them."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["yugong"]["compile"]
    return [f"{folder}/{name}.py" for folder, names in table.items() for name in names]


def obstacle() -> str:
    """Why nothing can be compiled here; "" if it can."""
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if os.environ.get("PURE"):
        return "PURE is set"
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's C headers are not installed (on Debian and Ubuntu: apt-get install python3-dev)"
    return ""


def give_up(why: str) -> list[Extension]:
    """No extensions, and the reason where `make` finds it."""
    BUILD.mkdir(exist_ok=True)
    (BUILD / "uncompiled").write_text(f"Yugong is not compiled and runs slower: {why}.\n", "utf-8")
    return []


def extensions() -> list[Extension]:
    """The hot path as C, if this is a build that wants it."""
    if not {"bdist_wheel", "build_ext"} & set(sys.argv):
        return []
    if why := obstacle():
        return give_up(why)
    try:
        from mypyc.build import mypycify

        BUILD.mkdir(exist_ok=True)
        (BUILD / "uncompiled").unlink(missing_ok=True)
        return mypycify([*MYPY, *modules()], opt_level="3", debug_level="0", target_dir=str(BUILD))
    except (Exception, SystemExit) as error:  # mypyc leaves by sys.exit() where a module does not compile
        return give_up(f"mypyc failed, and `python setup.py build_ext` shows why ({error!r})")


class Compile(build_ext):
    """All or nothing."""

    def run(self) -> None:
        self.parallel = True  # one module's stub beside the one large file
        try:
            super().run()
        except Exception as error:
            self.extensions = give_up(f"the C compiler failed ({error})")
            for made in Path(self.build_lib).rglob("*.so"):
                made.unlink()


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": Compile})
