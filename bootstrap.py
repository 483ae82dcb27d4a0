"""Set hybridkit up in a virtual environment of its own and run it: the README's two commands.

    python3 bootstrap.py demo     # train, export and run a ternary network on real data
    python3 bootstrap.py test     # the test suite

Needs Python >= 3.11 with pip; nothing is installed outside `.venv`, so an externally managed system
Python (PEP 668) is fine, and so is one without `ensurepip`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = Path(os.environ.get("HYBRIDKIT_VENV", ROOT / ".venv"))
BIN = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
EXTRAS = {"demo": "plots", "test": "dev"}


def run(*command: str | Path) -> None:
    """Run a command in the repository; stop with its exit code if it fails."""
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    status = subprocess.run(words, cwd=ROOT, check=False).returncode
    if status:
        raise SystemExit(status)


def what_is_installed() -> str:
    """A hash of what an editable install does not follow: requirements and the native sources."""
    sources = [ROOT / "pyproject.toml", ROOT / "CMakeLists.txt", *sorted((ROOT / "native").rglob("*"))]
    digest = hashlib.sha256()
    for source in sources:
        if source.is_file():
            digest.update(f"{source.relative_to(ROOT)} {source.stat().st_size}\n".encode())
            digest.update(source.read_bytes())
    return digest.hexdigest()


def set_up(extra: str) -> None:
    """Create the environment and install hybridkit into it, unless that was done for these sources."""
    stamp = ENVIRONMENT / f"installed-{extra}"
    wanted = what_is_installed()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    if not BIN.is_dir():
        # Debian's Python lacks ensurepip; the pip that is here can install into any environment.
        venv.create(ENVIRONMENT, with_pip=False)
    run(sys.executable, "-m", "pip", "--python", BIN / "python", "install", "-e", f".[{extra}]")
    stamp.write_text(wanted)


def demo() -> None:
    """The main job: ternary network from the first step to a file that stock ONNX Runtime runs."""
    hybridkit = BIN / "hybridkit"
    run(hybridkit, "train", "--hybrid", "--ternary", "--qat", "--epochs", "20")
    run(hybridkit, "export", "model.onnx")
    run(hybridkit, "bench", "inference", "model.onnx")


def test() -> None:
    """Lint, import rules, types and tests, as CI runs them."""
    run(BIN / "ruff", "check", ".")
    run(BIN / "ruff", "format", "--check", ".")
    run(BIN / "mypy")
    run(BIN / "python", "-m", "pytest", "-n", "auto")


def main() -> None:
    """Parse the job, set up, run it."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs before anything checked requires-python
        raise SystemExit("hybridkit needs Python 3.11 or newer; this is " + sys.version.split()[0])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("job", choices=["demo", "test"])
    job = parser.parse_args().job
    set_up(EXTRAS[job])
    {"demo": demo, "test": test}[job]()


if __name__ == "__main__":
    main()
