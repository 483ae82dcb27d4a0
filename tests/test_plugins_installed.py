"""The sample plugins, built, installed into an environment of their own, and used from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[1] / "plugins"

pytestmark = [pytest.mark.network, pytest.mark.slow]


class Environment:
    """A virtual environment that sees this one's packages, so that only the plugins have to be installed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        site = self.run([str(self.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
        ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        lines = "".join(f"import site; site.addsitedir({path!r})\n" for path in sorted(ours))
        Path(site.strip(), "zz_parent.pth").write_text(lines)  # addsitedir also reads editable installs

    def run(self, line: list[str]) -> str:
        """stdout of a command that has to succeed, started outside the repository."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HYBRIDKIT_", "PYTHON"))}
        environment["OMP_NUM_THREADS"] = "1"
        done = subprocess.run(
            line, cwd=self.folder.parent, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def install(self, *requirements: str) -> None:
        """Install exactly these, from the registry or from folders, built in isolation."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check"]
        self.run([*pip, "install", "--quiet", "--no-deps", *requirements])

    def hybridkit(self, *arguments: str) -> str:
        """stdout of `hybridkit arguments`."""
        return self.run([str(self.python), "-m", "hybridkit", *arguments])


def test_sample_plugins(tmp_path):
    """One test, so that parallel workers do not install them twice."""
    environment = Environment(tmp_path / "venv")
    folders = [str(PLUGINS / "hybridkit-prodigy"), str(PLUGINS / "hybridkit-faiss")]
    environment.install("prodigyopt>=1.1", "faiss-cpu>=1.8", *folders)
    _listed_with_their_origin(environment)
    for plugin in folders:
        tests = f"{plugin}/tests"
        environment.run(
            [
                str(environment.python),
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                "--rootdir",
                tests,
                tests,
            ]
        )
    hybrid = ["--hybrid", "--lr-controller", "prodigy", "--clusterer", "faiss-kmeans"]
    _trains(environment, [*hybrid, "--set", "clusterer.max_iter=3", "--set", "lr_controller.high=5"])
    _trains(environment, ["--optimizer", "hybridkit-prodigy:prodigy", "--lr", "1"])


def _listed_with_their_origin(environment: Environment) -> None:
    document = json.loads(environment.hybridkit("plugins", "--json"))
    assert document["failures"] == []
    found = {
        (s["kind"], s["name"], s["distribution"], s["version"])
        for s in document["strategies"]
        if s["distribution"] != "hybridkit"
    }
    assert found == {
        ("lr_controller", "prodigy", "hybridkit-prodigy", "0.1.0"),
        ("optimizer", "prodigy", "hybridkit-prodigy", "0.1.0"),
        ("clusterer", "faiss-kmeans", "hybridkit-faiss", "0.1.0"),
    }
    assert "hybridkit-faiss 0.1.0" in environment.hybridkit("plugins", "--kind", "clusterer")


def _trains(environment: Environment, strategies: list[str]) -> None:
    runs = environment.folder.parent / "runs"
    line = ["train", "--task", "digits", "--max-steps", "5", "--run-dir", str(runs), "--json", *strategies]
    document = json.loads(environment.hybridkit(*line))
    assert document["schema"] == "hybridkit/train/1"
    resolved = json.dumps(document)
    for name in strategies:
        if not name.startswith("--") and "=" not in name and not name.isdigit():
            assert f'"{name}"' in resolved, f"{name} is not in the resolved configuration"
