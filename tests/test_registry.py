"""Discovery, with distributions made on the spot: a .dist-info folder and a module in a temporary folder."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hybridkit import builtins
from hybridkit.errors import HybridkitError, UsageError
from hybridkit.hookspecs import KINDS, Strategy
from hybridkit.registry import Registry, discover, import_target

HOOK = """
from hybridkit import Strategy, hookimpl

@hookimpl
def hybridkit_strategies():
    return [Strategy({kind!r}, {name!r}, "for a test", {target!r})]
"""


class Site:
    """A folder on sys.path that acts like site-packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def install(
        self, distribution: str, module: str, code: str, *, version: str = "1.2", points: str = ""
    ) -> None:
        """Put a module and the metadata of a distribution with one entry point into the folder."""
        (self.folder / f"{module}.py").write_text(textwrap.dedent(code))
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(points or f"[hybridkit]\nmain = {module}\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    for name in [n for n in os.environ if n.startswith("HYBRIDKIT_")]:
        monkeypatch.delenv(name)
    site = Site(tmp_path / "site")
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(site.folder))
    yield site
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def hook(kind="lr_controller", name="mine", target="some.module:Class"):
    return HOOK.format(kind=kind, name=name, target=target)


def test_a_good_plugin(site):
    site.install("My.Plug_in", "good_plugin", hook(target="collections:Counter"))
    found = discover()
    entry = found.find("lr_controller", "mine")
    assert (entry.distribution, entry.version, entry.qualified_name) == (
        "my-plug-in",
        "1.2",
        "my-plug-in:mine",
    )
    assert found.failures == []
    assert found.find("lr_controller", "my-plug-in:mine") is entry
    assert found.find("lr_controller", "My_Plug.In:mine") is entry
    from collections import Counter

    assert found.load("lr_controller", "mine") is Counter
    assert found.load("lr_controller", "my_plug_in:mine") is Counter


BROKEN = {
    "import": (
        "import does_not_exist_anywhere",
        "ModuleNotFoundError: No module named 'does_not_exist_anywhere'",
    ),
    "syntax": ("def broken(:", "SyntaxError: "),
    "exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "raises": (
        "from hybridkit import hookimpl\n@hookimpl\ndef hybridkit_strategies():\n"
        "    raise RuntimeError('two\\nlines')",
        "RuntimeError: two lines",
    ),
    "no hook": ("x = 1", "has no function hybridkit_strategies marked with @hybridkit.hookimpl"),
    "unmarked": ("def hybridkit_strategies():\n    return []", "marked with @hybridkit.hookimpl"),
    "misspelt": (
        "from hybridkit import hookimpl\n@hookimpl\ndef hybridkit_strategy():\n    return []",
        "PluginValidationError: unknown hook 'hybridkit_strategy'",
    ),
    "argument": (
        "from hybridkit import hookimpl\n@hookimpl\ndef hybridkit_strategies(parser):\n    return []",
        "PluginValidationError",
    ),
    "none": (
        "from hybridkit import hookimpl\n@hookimpl\ndef hybridkit_strategies():\n    return None",
        "returned None, not a list of Strategy",
    ),
    "number": (
        "from hybridkit import hookimpl\n@hookimpl\ndef hybridkit_strategies():\n    return 3",
        "returned 3, not a list of Strategy",
    ),
    "text": (
        "from hybridkit import hookimpl\n@hookimpl\ndef hybridkit_strategies():\n    return 'abc'",
        "returned 'abc', not a list of Strategy",
    ),
    "one": (
        "from hybridkit import Strategy, hookimpl\n@hookimpl\ndef hybridkit_strategies():\n"
        "    return Strategy('task', 'a', 'b', 'c:d')",
        "not a list of Strategy",
    ),
    "strings": (
        "from hybridkit import hookimpl\n@hookimpl\ndef hybridkit_strategies():\n    return ['abc']",
        "returned 'abc' where a Strategy is expected",
    ),
    "generator": (
        "from hybridkit import hookimpl\n@hookimpl\ndef hybridkit_strategies():\n    yield 1 / 0",
        "ZeroDivisionError",
    ),
    "kind": (hook(kind="quantiser"), "unknown kind 'quantiser'; did you mean 'quantizer'?"),
    "target": (hook(target="some.module.Class"), "is not package.module:attribute"),
    "relative target": (hook(target=".module:Class"), "is not package.module:attribute"),
    "name": (hook(name="a:b"), "use lower-case letters, digits and hyphens"),
    "twice": (
        hook()
        + "\n_once = hybridkit_strategies\n@hookimpl\ndef hybridkit_strategies():\n    return _once() * 2",
        "describes lr_controller 'mine' twice",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_named_and_skipped(site, case):
    code, reason = BROKEN[case]
    site.install("a-broken-one", "broken_plugin", code)
    site.install("z-good", "good_plugin", hook())
    found = discover()
    (failure,) = found.failures
    assert (failure.distribution, failure.version, failure.entry_point) == ("a-broken-one", "1.2", "main")
    assert reason in failure.reason
    assert "\n" not in failure.reason
    assert found.find("lr_controller", "mine").distribution == "z-good"
    assert found.find("quantizer", "binary").distribution == "hybridkit"


def test_malformed_entry_points(site):
    site.install("bad-metadata", "unused", "", points="[hybridkit]\nno equals sign here\n")
    site.install("another", "unused_too", "", points="[console_scripts]\nno equals sign here\n")
    found = discover()
    assert [(f.distribution, f.entry_point) for f in found.failures] == [("bad-metadata", "entry_points.txt")]


def test_metadata_without_a_name_is_ignored(site):
    site.install("nameless", "good_plugin", hook())
    next(site.folder.glob("*.dist-info")).joinpath("METADATA").unlink()
    assert discover().names("lr_controller") == discover_builtins().names("lr_controller")


def discover_builtins() -> Registry:
    os.environ["HYBRIDKIT_NO_PLUGINS"] = "1"
    try:
        return discover()
    finally:
        del os.environ["HYBRIDKIT_NO_PLUGINS"]


def test_strict(site, monkeypatch):
    site.install("a-broken-one", "broken_plugin", "import does_not_exist_anywhere")
    monkeypatch.setenv("HYBRIDKIT_STRICT_PLUGINS", "0")
    assert len(discover().failures) == 1
    monkeypatch.setenv("HYBRIDKIT_STRICT_PLUGINS", "1")
    with pytest.raises(
        HybridkitError, match=r"plugin 'main' of a-broken-one 1\.2 failed: ModuleNotFoundError"
    ):
        discover()


def test_no_plugins(site, monkeypatch):
    site.install("good", "good_plugin", hook())
    site.install("broken", "broken_plugin", "import does_not_exist_anywhere")
    monkeypatch.setenv("HYBRIDKIT_NO_PLUGINS", "1")
    found = discover()
    assert {e.distribution for e in found.entries} == {"hybridkit"}
    assert found.failures == []
    assert "good_plugin" not in sys.modules


def test_trace(site, monkeypatch, capsys):
    site.install("good", "good_plugin", hook())
    monkeypatch.setenv("HYBRIDKIT_TRACE_PLUGINS", "1")
    discover()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "hybridkit:builtin:" in captured.err
    assert "good:main:   hybridkit_strategies [hook]" in captured.err
    assert "name='mine'" in captured.err


def test_two_plugins_with_one_name(site):
    site.install("first", "plugin_one", hook(target="collections:Counter"))
    site.install("second", "plugin_two", hook(target="collections:OrderedDict"))
    found = discover()
    with pytest.raises(
        UsageError, match="'mine' is brought by several plugins; say first:mine or second:mine"
    ):
        found.create("lr_controller", "mine")
    assert found.load("lr_controller", "second:mine").__name__ == "OrderedDict"
    assert found.names("lr_controller").count("mine") == 1


def test_a_plugin_and_a_builtin_with_one_name(site):
    site.install("rival", "rival_plugin", hook(kind="quantizer", name="binary"))
    found = discover()
    with pytest.raises(UsageError, match="say hybridkit:binary or rival:binary"):
        found.find("quantizer", "binary")
    assert found.find("quantizer", "hybridkit:binary").strategy.target == "hybridkit.quant.binary:Binary"


def test_one_name_in_two_kinds_is_no_conflict(site):
    site.install("both", "plugin_one", hook(kind="lr_controller", name="binary"))
    found = discover()
    assert found.find("lr_controller", "binary").distribution == "both"
    assert found.find("quantizer", "binary").distribution == "hybridkit"


def test_the_first_copy_of_a_distribution_wins(site, tmp_path, monkeypatch):
    site.install("copied", "plugin_new", hook(name="new"), version="2.0")
    older = Site(tmp_path / "older")
    older.install("Copied", "plugin_old", hook(name="old"), version="1.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older.folder)])
    found = discover()
    assert [e.version for e in found.entries if e.distribution == "copied"] == ["2.0"]
    assert "old" not in found.names("lr_controller")


def test_two_entry_points_of_one_distribution_may_not_share_a_name(site):
    points = "[hybridkit]\na = plugin_one\nb = plugin_one\n"
    site.install("pair", "plugin_one", hook(), points=points)
    found = discover()
    assert [f.entry_point for f in found.failures] == ["b"]
    assert found.find("lr_controller", "mine").distribution == "pair"


def test_nothing_is_imported_before_it_is_used(site):
    site.install("lazy", "lazy_plugin", hook(target="lazy_target:Thing"))
    (site.folder / "lazy_target.py").write_text("import missing_dependency\n")
    found = discover()
    assert found.failures == []
    with pytest.raises(
        HybridkitError, match=r"lr-controller 'mine' of lazy 1\.2 does not load: .*missing_dependency"
    ):
        found.load("lr_controller", "mine")


def test_a_broken_exporter_does_not_stop_an_export(site, monkeypatch):
    import hybridkit.exporting

    site.install("a-broken-one", "broken_exporter", hook(kind="exporter", target="missing_module:Exporter"))
    rival = hook(kind="exporter", name="rival", target="rival_exporter:Rival")
    site.install("rival", "rival_exporter", rival + "\nclass Rival:\n    suffixes = ('.onnx', '.rival')\n")
    found = discover()
    monkeypatch.setattr(hybridkit.exporting, "registry", lambda: found)
    assert hybridkit.exporting.target_for(Path("model.rival")) == "rival:rival"
    assert hybridkit.exporting.target_for(Path("model.onnx")) == "hybridkit:onnx"


def test_nearest_name():
    found = discover_builtins()
    with pytest.raises(UsageError, match="no lr-controller is called 'aux-n'; did you mean 'aux-nn'"):
        found.find("lr_controller", "aux-n")
    with pytest.raises(UsageError, match="valid: l2, none, per-cluster, per-layer, spectral"):
        found.find("constraint", "zzzzz")


def test_import_target(tmp_path, monkeypatch):
    (tmp_path / "users_own.py").write_text("class Outer:\n    class Inner: pass\nfactory = Outer\n")
    (tmp_path / "users_broken.py").write_text("import something_that_is_missing\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    with pytest.raises(UsageError, match="there is no module 'users_own'"):
        import_target("users_own:factory")  # a library looks where every import does
    assert str(tmp_path) not in sys.path
    sys.path.insert(0, str(tmp_path))
    assert import_target("users_own:Outer.Inner").__name__ == "Inner"
    with pytest.raises(UsageError, match="has no 'factry'; did you mean 'factory'"):
        import_target("users_own:factry")
    with pytest.raises(UsageError, match="there is no module 'users_ow'"):
        import_target("users_ow:factory")
    with pytest.raises(UsageError, match=r"there is no module 'users_own\.sub'"):
        import_target("users_own.sub:factory")
    for malformed in ("users_own", "users_own:", ":x", "a b:c", "..a:b", "a:b:c"):
        with pytest.raises(UsageError, match="not of the form"):
            import_target(malformed)
    with pytest.raises(
        ModuleNotFoundError, match="something_that_is_missing"
    ):  # the user's own bug: traceback
        import_target("users_broken:x")


def test_a_module_target_beside_a_distribution_of_the_same_name(site):
    site.install("twin", "twin", hook() + "\nclass Other: pass\n")
    assert discover().load("lr_controller", "twin:Other").__name__ == "Other"


def test_builtins_are_described_once_and_well():
    described = builtins.hybridkit_strategies()
    assert {s.kind for s in described} == set(KINDS)
    assert len({(s.kind, s.name) for s in described}) == len(described)
    assert all(isinstance(s, Strategy) and s.target.startswith("hybridkit.") for s in described)


def test_a_broken_plugin_does_not_stop_the_command(site):
    site.install("a-broken-one", "broken_plugin", "import does_not_exist_anywhere")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site.folder), str(Path.cwd())])}

    def plugins(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "hybridkit", "plugins", *arguments]
        return subprocess.run(line, env=environment | extra, capture_output=True, text=True, check=False)

    table = plugins()
    assert table.returncode == 0, table.stderr
    assert "does_not_exist_anywhere" in table.stdout
    assert "a-broken-one 1.2" in table.stdout
    import json

    document = json.loads(plugins("--json").stdout)
    assert document["failures"][0]["distribution"] == "a-broken-one"
    strict = plugins(HYBRIDKIT_STRICT_PLUGINS="1")
    assert strict.returncode == 1
    assert strict.stderr.startswith("hybridkit: error: plugin 'main' of a-broken-one 1.2 failed")
