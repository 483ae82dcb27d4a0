"""What an import costs, and who may import whom."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import grimp
import networkx
import pytest

import hybridkit

HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "sklearn", "scipy", "matplotlib")


def loaded_by(statement: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after `statement`."""
    code = f"{statement}\nimport sys\nprint(*(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_hybridkit_imports_nothing():
    code = "import sys; before = set(sys.modules); import hybridkit; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = {name.partition(".")[0] for name in done.stdout.split()}
    assert "hybridkit" in new
    assert new <= {"hybridkit", *sys.stdlib_module_names}


@pytest.mark.parametrize(
    "package", ["packing", "runtime", "cli", "bench", "exporting", "registry", "optim", "quant"]
)
def test_packages_are_light(package):
    assert loaded_by(f"import hybridkit.{package}") == set()


def test_serving_needs_no_torch():
    assert loaded_by("from hybridkit.runtime import session") <= {"onnxruntime"}


def test_listing_plugins_loads_nothing_heavy():
    assert loaded_by("from hybridkit.registry import registry; registry()") == set()


@pytest.mark.parametrize("name", hybridkit.__all__)
def test_every_public_name_exists(name):
    value = getattr(hybridkit, name)
    assert name in dir(hybridkit)
    if name != "__version__":
        module = importlib.import_module(hybridkit._PUBLIC[name])
        assert getattr(module, name) is value


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = hybridkit.nonsense


def test_no_module_imports_itself_by_way_of_others():
    """Imports within functions and for type checkers count too."""
    graph = grimp.build_graph("hybridkit", cache_dir=None)
    imports = networkx.DiGraph(
        (module, imported)
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    )
    circles = {tuple(sorted(c)) for c in networkx.strongly_connected_components(imports) if len(c) > 1}
    assert not circles


def test_import_rules():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout
