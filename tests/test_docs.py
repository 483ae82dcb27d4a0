"""Every hook, kind, strategy and option is documented, and the generated pages are fresh."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hybridkit import builtins, hookspecs, registry, testing
from hybridkit.cli import VERBS, load_verb
from hybridkit.options import describe_options
from hybridkit.registry import discover, import_target

DOCS = Path(__file__).parents[1] / "docs"
BUILTINS = builtins.hybridkit_strategies()


def page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_hook_and_its_arguments_are_documented():
    hooks = {n: f for n, f in vars(hookspecs).items() if hasattr(f, "hybridkit_spec")}
    assert hooks
    for name, hook in hooks.items():
        signature = f"{name}({', '.join(inspect.signature(hook).parameters)})"
        assert f"`{signature}`" in page("plugins.md"), f"document {signature} in docs/plugins.md"
        assert inspect.getdoc(hook)


def test_every_field_of_a_description_is_documented():
    fields = ", ".join(hookspecs.Strategy.__dataclass_fields__)
    assert f"Strategy({fields})" in page("plugins.md")


@pytest.mark.parametrize("kind", hookspecs.KINDS)
def test_every_kind_is_documented(kind):
    row = next((line for line in page("plugins.md").splitlines() if line.startswith(f"| `{kind}` |")), None)
    assert row, f"{kind} has no row in the table of kinds"
    protocol = re.search(r"`(hybridkit[\w.]*)\.(\w+)`", row)
    contract = re.search(r"`(\w+Contract)`", row)
    assert getattr(testing, contract[1]).__doc__
    if protocol:
        members = vars(import_target(f"{protocol[1]}:{protocol[2]}"))
        methods = {n for n, v in members.items() if inspect.isfunction(v) and not n.startswith("_")}
        documented = set(re.findall(r"`(\w+)`", row))
        assert methods | set(members.get("__annotations__", {})) <= documented


def test_every_environment_variable_is_documented():
    variables = set(re.findall(r"HYBRIDKIT_\w+_PLUGINS", inspect.getsource(registry)))
    assert len(variables) == 3
    for variable in variables:
        assert f"`{variable}=1`" in page("plugins.md")


@pytest.mark.parametrize("strategy", BUILTINS, ids=[f"{s.kind}-{s.name}" for s in BUILTINS])
def test_every_strategy_and_its_options_are_documented(strategy):
    target = import_target(strategy.target)
    assert inspect.getdoc(target), f"{strategy.target} has no docstring"
    text = page("strategies.md")
    assert f"### {strategy.name}\n" in text
    for option in describe_options(target).values():
        assert option.help, f"{strategy.name}.{option.name} has no help sentence"
        assert f"| `{option.name}` |" in text


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_command_is_documented(verb):
    section = page("cli.md").partition(f"## hybridkit {verb}\n")[2].partition("\n## ")[0]
    for parameter in load_verb(verb).params:
        shown = (
            parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar or parameter.name
        )
        assert shown.upper() in section.upper(), f"{shown} of {verb}: run docs/generate.py"
        assert getattr(parameter, "help", None), f"{verb} {shown} has no help"


def test_the_strategies_page_is_fresh(generate):
    assert page("strategies.md") == generate.strategies_page(), "run python docs/generate.py"


def test_the_commands_page_is_fresh(generate):
    if f"as typer {generate.typer_version()} renders it" not in page("cli.md"):
        pytest.skip("another typer renders help differently; the options are checked one by one above")
    assert page("cli.md") == generate.cli_page(), "run python docs/generate.py"


def test_check_names_the_stale_page(generate, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(generate, "DOCS", tmp_path)
    monkeypatch.setattr(generate, "PAGES", {"a.md": lambda: "fresh\n", "b.md": lambda: "fresh\n"})
    assert generate.main([]) == 0
    assert generate.main(["--check"]) == 0
    (tmp_path / "b.md").write_text("stale\n")
    assert generate.main(["--check"]) == 1
    assert "stale: b.md;" in capsys.readouterr().err


@pytest.fixture
def tutorial(tmp_path):
    """The plugin of docs/plugins.md, its files written out."""
    blocks = re.findall(r"```(?:toml|python)\n# (\S+)\n(.*?)```", page("plugins.md"), re.DOTALL)
    for path, code in blocks:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(code)
    return tmp_path


def test_the_tutorial_works_as_printed(tutorial, monkeypatch):
    project = tomllib.loads((tutorial / "pyproject.toml").read_text())["project"]
    info = tutorial / "src" / "hybridkit_linear-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    points = "".join(f"{k} = {v}\n" for k, v in project["entry-points"]["hybridkit"].items())
    (info / "entry_points.txt").write_text(f"[hybridkit]\n{points}")
    monkeypatch.syspath_prepend(str(tutorial / "src"))
    found = discover()
    assert found.find("lr_controller", "linear").distribution == "hybridkit-linear"
    assert found.create("lr_controller", "linear", {"floor": "0.2"}).options.floor == 0.2
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tutorial / "tests")]
    environment = {"PYTHONPATH": f"{tutorial / 'src'}:{Path.cwd()}", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b\d+ passed", done.stdout)


def test_links_between_pages_exist():
    for path in [*DOCS.glob("*.md"), DOCS.parent / "README.md", *DOCS.parent.glob("plugins/*/README.md")]:
        for link in re.findall(r"\]\((?!https?://|#)([^)#]+)", path.read_text("utf-8")):
            assert (path.parent / link).exists(), f"{path.name} links to {link}"


def test_the_guide_works_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page("guide.md"), re.DOTALL)
    assert len(blocks) >= 2
    exec(compile("\n".join(blocks), "guide.md", "exec"), {})
    assert (tmp_path / "model.onnx").stat().st_size > 0
    assert (tmp_path / "model.hk.safetensors").stat().st_size > 0
    assert "ternary" not in capsys.readouterr().err
