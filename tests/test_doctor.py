"""`hybridkit doctor`: it tells what is there, says what to do about what is not, and always exits with 0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

from hybridkit import __version__, cli, doctor
from hybridkit.errors import FileError
from hybridkit.runtime import library_path

needs_library = pytest.mark.skipif(library_path() is None, reason="there is no native library")


def run_doctor(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert cli.run(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "hybridkit/doctor/1"
    return document


def fresh(code: str, **environment: str) -> str:
    """stdout of an interpreter of its own: a loaded library keeps what its environment said."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_versions_and_machine(capsys):
    document = run_doctor(capsys)
    assert document["version"] == __version__
    for package in ("hybridkit", "torch", "onnxruntime", "onnx"):
        assert document["packages"][package] == version(package)
    assert document["cores"] >= 1
    assert document["system"]


def test_without_the_library(capsys, monkeypatch):
    monkeypatch.setenv("HYBRIDKIT_LIBRARY", "none")
    document = run_doctor(capsys)
    assert document["library"] is None
    assert any("HYBRIDKIT_LIBRARY=none" in problem for problem in document["problems"])
    assert cli.run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "Native library   none" in text
    assert "portable bodies" in text


def test_a_package_that_was_built_without_a_compiler(capsys, monkeypatch):
    monkeypatch.setattr("hybridkit.runtime.native.load", lambda: None)
    monkeypatch.delenv("HYBRIDKIT_LIBRARY", raising=False)
    (problem,) = run_doctor(capsys)["problems"]
    assert "there is no native library" in problem
    assert "C++17 compiler" in problem


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_a_broken_library(capsys, monkeypatch, tmp_path, content):
    path = tmp_path / "libhybridkit.so"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("HYBRIDKIT_LIBRARY", str(path))
    document = run_doctor(capsys)
    assert document["library"] is None
    (problem,) = document["problems"]
    assert str(path) in problem


@needs_library
def test_the_library(capsys):
    document = run_doctor(capsys)
    found = document["library"]
    assert found["path"] == str(library_path())
    assert found["version"] == __version__
    assert found["instruction_set"] in found["instruction_sets"]
    assert found["instruction_sets"][-1] == "scalar"
    assert set(found["kernels"]) == {"1", "8", "128"}
    assert set(found["kernels"].values()) <= {"stream", "tile"}
    assert found["operators"] is True


@needs_library
def test_an_instruction_set_that_is_not_there():
    code = "from hybridkit.cli import run; run(['doctor'])"
    assert "! HYBRIDKIT_ISA=mmx: " in fresh(code, HYBRIDKIT_ISA="mmx")
    scalar = fresh(code, HYBRIDKIT_ISA="scalar")
    assert "Instruction set  scalar; there are " in scalar
    assert "!" not in scalar


@needs_library
def test_an_onnxruntime_that_refuses(capsys, monkeypatch):
    def refuse(options):
        raise FileError("too old")

    monkeypatch.setattr(doctor, "register", refuse)
    document = run_doctor(capsys)
    assert document["library"]["operators"] is False
    assert document["problems"] == ["too old"]
    assert cli.run(["doctor"]) == 0
    assert "runs portable bodies" in capsys.readouterr().out


@needs_library
def test_a_library_of_another_version(capsys, monkeypatch):
    monkeypatch.setattr("hybridkit.__version__", "9.9")
    problems = run_doctor(capsys)["problems"]
    assert any(f"belongs to hybridkit {__version__}, this is 9.9" in problem for problem in problems)


@pytest.mark.parametrize(
    ("text", "expected"), [("always [madvise] never\n", "madvise"), ("[always] madvise never\n", "always")]
)
def test_huge_pages(capsys, monkeypatch, tmp_path, text, expected):
    setting = tmp_path / "enabled"
    setting.write_text(text)
    monkeypatch.setattr(doctor, "_HUGE_PAGES", setting)
    assert run_doctor(capsys)["huge_pages"] == expected


def test_a_graphics_driver(capsys, monkeypatch, tmp_path):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5\n")
    monkeypatch.setattr(doctor, "_DRIVER", driver)
    assert run_doctor(capsys)["nvidia_driver"] == "550.54.15"
    monkeypatch.setattr(doctor, "_DRIVER", tmp_path / "none")
    assert run_doctor(capsys)["nvidia_driver"] is None


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("4,2", 4), ("many", None), ("", None)])
def test_threads(capsys, monkeypatch, value, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert run_doctor(capsys)["threads"] == expected


def test_it_is_quick():
    code = """
import sys
from hybridkit.cli import run
run(["doctor", "--json"])
print("loaded:", *({"torch", "onnx", "sklearn", "scipy", "onnxscript"} & set(sys.modules)))
"""
    assert fresh(code).splitlines()[-1] == "loaded:"
