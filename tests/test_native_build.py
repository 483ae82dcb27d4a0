"""The native library as it is built and installed: what it exports, and that the package does without it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from hybridkit.runtime import library_path

ROOT = Path(__file__).parents[1]
HEADER = ROOT / "native/kernels/hybridkit_kernels.h"
BUILT = ("pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE", "hybridkit", "native")

needs_library = pytest.mark.skipif(library_path() is None, reason="there is no native library")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not here")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at ELF files")


def symbols(file: Path, *options: str) -> list[tuple[str, str]]:
    """(type, name) of each symbol that nm lists."""
    done = subprocess.run(["nm", *options, str(file)], capture_output=True, text=True, check=True)
    rows = (line.split() for line in done.stdout.splitlines())
    return [(row[-2], row[-1].partition("@")[0]) for row in rows if len(row) >= 2]


@needs_library
@needs_nm
@needs_linux
def test_the_library_exports_its_interface_and_nothing_else():
    library = library_path()
    assert library is not None
    declared = set(re.findall(r"HYBRIDKIT_API .*?\b(hybridkit_\w+)\(", HEADER.read_text()))
    assert len(declared) > 15
    exported = {name for _, name in symbols(library, "-D", "--defined-only")}
    assert exported == declared | {"RegisterCustomOps"}


OBJECTS = sorted(ROOT.glob("build/*/native/CMakeFiles/kernels.dir/kernels/isa_*.o"))


@needs_nm
@needs_linux
@pytest.mark.skipif(not OBJECTS, reason="no build of an editable install lies in build/")
def test_no_code_of_an_instruction_set_can_run_elsewhere():
    """A weak symbol (an inline function) of one instruction set may be taken for all of the library."""
    assert OBJECTS
    for file in OBJECTS:
        shared = [name for kind, name in symbols(file, "-C") if kind in ("W", "V", "u")]
        assert not shared, f"{file.name} shares {shared}"


@pytest.fixture
def bootstrap(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    for name in ("pyproject.toml", "CMakeLists.txt", "native/kernels/a.cc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    return module


@pytest.mark.parametrize("changed", ["pyproject.toml", "CMakeLists.txt", "native/kernels/a.cc", "native/b.h"])
def test_changed_sources_are_installed_again(bootstrap, tmp_path, changed):
    before = bootstrap.what_is_installed()
    assert bootstrap.what_is_installed() == before
    (tmp_path / changed).write_text("2")
    assert bootstrap.what_is_installed() != before


class Checkout:
    """A copy of what is built, and an environment with this one's packages other than hybridkit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources = folder / "sources"
        self.sources.mkdir()
        for name in BUILT:
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name, self.sources / name, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copy2(ROOT / name, self.sources / name)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
        self.python = folder / "venv/bin/python"
        site = self.run([str(self.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
        # a plain path: unlike addsitedir it does not follow the editable install of hybridkit
        Path(site.strip(), "zz_packages.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, line: list[str], **environment: str) -> str:
        """stdout of a command that has to succeed, started outside the repository."""
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("HYBRIDKIT_", "PYTHON", "CMAKE", "CXX"))
        }
        done = subprocess.run(
            line, cwd=self.folder, env=kept | environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def pip(self, *arguments: str, **environment: str) -> str:
        """pip's output, working on the environment."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check"]
        return self.run([*pip, *arguments], **environment)

    def doctor(self) -> dict[str, object]:
        """What `hybridkit doctor` says there."""
        document: dict[str, object] = json.loads(
            self.run([str(self.python), "-m", "hybridkit", "doctor", "--json"])
        )
        return document


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def tools_only(folder: Path) -> str:
    """A search path with what build scripts need besides compilers."""
    folder.mkdir()
    for tool in ("sh", "env", "uname"):
        found = shutil.which(tool)
        assert found
        (folder / tool).symlink_to(found)
    return str(folder)


@needs_linux
@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["-e"]], ids=["wheel", "editable"])
def test_installing_without_a_compiler(checkout, tmp_path, how):
    checkout.pip(
        *("install", "--no-deps", *how, str(checkout.sources)),
        PATH=tools_only(tmp_path / "bin"),
        CMAKE_ARGS="-DCMAKE_CXX_COMPILER=no-such-compiler",  # CMake looks into /usr/bin whatever PATH says
    )
    document = checkout.doctor()
    assert document["library"] is None
    assert any("C++17 compiler" in problem for problem in document["problems"])
    code = "from hybridkit.runtime import library_path; print(library_path())"
    assert checkout.run([str(checkout.python), "-c", code]).strip() == "None"


@needs_linux
@pytest.mark.network
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_installing_with_a_compiler(checkout):
    # unoptimised, as this is about where the files go
    checkout.pip("install", "--no-deps", "-Ccmake.build-type=Debug", str(checkout.sources))
    document = checkout.doctor()
    assert document["problems"] == []
    path = Path(document["library"]["path"])
    assert path.name == "libhybridkit.so"
    assert path.parts[-3:-1] == ("hybridkit", "_native")
    assert path.is_relative_to(checkout.folder / "venv")
    assert document["library"]["operators"] is True


@needs_linux
@pytest.mark.network
@pytest.mark.slow
def test_the_wheel_on_demand_without_the_library(checkout):
    wheels = checkout.folder / "wheels"
    checkout.pip("wheel", "--no-deps", "-w", str(wheels), str(checkout.sources), HYBRIDKIT_PORTABLE="1")
    (wheel,) = wheels.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if "_native" in name]
