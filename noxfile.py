"""Development sessions: `nox -l` lists them, `nox` runs lint, types and tests."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.default_venv_backend = "venv"


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff's checks and formatting, and the import rules."""
    session.install("ruff>=0.17,<0.18", "import-linter>=2.1")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, on the package."""
    session.install("-e", ".[dev]")
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite, as CI runs it."""
    session.install("-e", ".[test]")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session(python="3.11")  # the oldest runtime has wheels up to 3.12
@nox.parametrize("onnxruntime", ["1.17.3", "1.20.1", "newest"])
def ort_versions(session: nox.Session, onnxruntime: str) -> None:
    """What we write, on the oldest ONNX Runtime with our operators, the oldest supported and the newest."""
    session.install("--no-deps", ".")
    numpy = "numpy<2" if onnxruntime == "1.17.3" else "numpy"
    runtime = "onnxruntime" if onnxruntime == "newest" else f"onnxruntime=={onnxruntime}"
    quantising = ("onnx-ir", "pluggy", "pydantic", "array-api-compat")
    session.install(runtime, numpy, "onnx", "psutil", "pytest", "hypothesis", *quantising)
    tests = sorted(str(path) for path in Path("tests").glob("*/test_ort_*.py"))
    safe = {"PYTHONSAFEPATH": "1"}  # the installed package, not the checkout beside it
    # the fixtures of other tests want torch
    session.run("pytest", "--noconftest", "-rs", *tests, *session.posargs, env=safe)


BUILDS = Path("build").absolute()
# quick to compile, and the sanitizers' reports name the lines
CHECKED = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-Og -g1")


def need(session: nox.Session, *programs: str) -> None:
    """Skip the session, saying why, where one of the programs is not installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        session.skip(f"{', '.join(missing)} not found")


def build_native_tests(session: nox.Session, name: str, *options: str) -> Path:
    """Build kernels_test and fuzz_kernels in build/`name`; the folder."""
    folder = BUILDS / name
    generator = ("-G", "Ninja") if shutil.which("ninja") else ()
    options = ("-DHYBRIDKIT_TESTS=ON", "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON", *options)
    session.run("cmake", "-S", ".", "-B", folder, *generator, *options, external=True, silent=True)
    targets = ("--target", "kernels_test", "fuzz_kernels")
    session.run("cmake", "--build", folder, *targets, "-j2", external=True, silent=True)
    return folder


@nox.session(venv_backend="none")
def native(session: nox.Session) -> None:
    """Native tests and random calls under sanitizers; VNNI kernels emulated where SIMDe is installed."""
    need(session, "cmake", "c++")
    emulate = Path("/usr/include/simde/x86/avx512.h").exists()
    if not emulate:
        session.warn("VNNI kernels are not tested: there is no SIMDe (Debian: libsimde-dev)")
    sanitize = "-DHYBRIDKIT_SANITIZE=address,undefined"
    options = (sanitize, f"-DHYBRIDKIT_EMULATE={'ON' if emulate else 'OFF'}", *CHECKED)
    folder = build_native_tests(session, "native-sanitized", *options)
    session.run("ctest", "--test-dir", folder, "-j2", "--output-on-failure", external=True)
    cases = ("--seed", "2", "--cases", "30000")  # half a minute; ctest has run others
    session.run(folder / "native/tests/fuzz_kernels", *cases, external=True)
    folder = build_native_tests(session, "native-threads", "-DHYBRIDKIT_SANITIZE=thread", *CHECKED)
    tests = ("pool_", "matmul_from_several_threads")
    environment = {"TSAN_OPTIONS": "die_after_fork=0"}  # a test forks while threads run
    session.run(folder / "native/tests/kernels_test", *tests, env=environment, external=True)
    session.run(folder / "native/tests/fuzz_kernels", "--cases", "5000", external=True)


@nox.session(venv_backend="none")
def fuzz(session: nox.Session) -> None:
    """The random calls guided by libFuzzer, as long as you like: `nox -s fuzz -- -max_total_time=600`."""
    need(session, "cmake", "clang++")
    options = ("-DCMAKE_CXX_COMPILER=clang++", "-DHYBRIDKIT_SANITIZE=address,undefined,fuzzer-no-link")
    checked = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g1")
    folder = build_native_tests(session, "native-fuzz", *options, *checked)
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    found = (f"-artifact_prefix={folder}/", "-max_len=256", "-timeout=20")
    session.run(folder / "native/tests/fuzz_kernels", corpus, *found, *session.posargs, external=True)


@nox.session(venv_backend="none")
def aarch64(session: nox.Session) -> None:
    """Cross-build for 64-bit Arm; native tests under qemu-user, with and without dot products."""
    need(session, "cmake", "aarch64-linux-gnu-g++", "qemu-aarch64")
    folder = build_native_tests(session, "native-aarch64", "-DCMAKE_TOOLCHAIN_FILE=native/aarch64.cmake")
    session.run("ctest", "--test-dir", folder, "-j2", "--output-on-failure", external=True)
    on_a53 = ("qemu-aarch64", "-cpu", "cortex-a53", "-L", "/usr/aarch64-linux-gnu")
    programs = folder / "native/tests"
    tests = ("isa_", "matmul_every", "conv_as_networks")
    session.run(*on_a53, programs / "kernels_test", *tests, external=True)
    session.run(*on_a53, programs / "fuzz_kernels", "--cases", "5000", external=True)


@nox.session(venv_backend="none")
def processors(session: nox.Session) -> None:
    """Native tests on x86-64 processors that lack something, under qemu-user: nothing illegal is executed."""
    need(session, "cmake", "c++", "qemu-x86_64")
    programs = build_native_tests(session, "native-plain") / "native/tests"
    for processor in ("Nehalem", "Haswell"):  # neither AVX nor AVX2; both
        tests = ("isa_", "layout_", "conv_", "matmul_every")
        emulated = ("qemu-x86_64", "-cpu", processor)
        session.run(*emulated, programs / "kernels_test", *tests, external=True)
        session.run(*emulated, programs / "fuzz_kernels", "--cases", "5000", external=True)


@nox.session
def wheels(session: nox.Session) -> None:
    """Wheels for Linux with glibc 2.17 and newer, x86-64 and aarch64, built by zig's C++ compiler."""
    session.install("pip", "ziglang")
    where = "import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).parent / 'zig')"
    zig = str(session.run("python", "-c", where, silent=True)).strip()
    for arch in ("x86_64", "aarch64"):
        tag = f"py3-none-manylinux_2_17_{arch}"
        environment = {
            "CXX": f"{zig} c++ -target {arch}-linux-gnu.2.17",
            "CMAKE_ARGS": f"-DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR={arch}",
        }
        settings = (f"-Cwheel.tags={tag}", f"-Cbuild-dir=build/zig-{arch}")
        session.run("pip", "wheel", ".", "--no-deps", "-w", "dist", *settings, env=environment)
        for wheel in Path("dist").glob(f"*-{tag}.whl"):
            if "hybridkit/_native/libhybridkit.so" not in zipfile.ZipFile(wheel).namelist():
                session.error(f"{wheel} lacks the library: zig could not build it")
