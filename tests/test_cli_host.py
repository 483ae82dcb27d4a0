"""The command line host, driven through a verb of its own with every kind of option."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
import typer

from hybridkit import __version__, cli
from hybridkit.cli import _shared
from hybridkit.cli._shared import ConfigOption, JsonOption, SetOption
from hybridkit.errors import FileError, GateError, UsageError
from hybridkit.registry import import_target

HEAVY = ("torch", "onnx", "onnxruntime", "sklearn", "onnxscript", "scipy", "matplotlib", "pydantic", "numpy")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the verb `probe` received at its last call; its callback may be replaced by `seen["action"]`."""
    seen: dict[str, Any] = {}

    def command(
        ctx: typer.Context,
        lr: Annotated[float, typer.Option(help="step size")] = 1e-3,
        data_clusters: Annotated[int, typer.Option(help="clusters", rich_help_panel="Clusters")] = 8,
        hybrid: Annotated[bool, typer.Option("--hybrid", help="a switch")] = False,
        lr_controller: Annotated[str, typer.Option(help="a strategy")] = "constant",
        target: Annotated[str, typer.Option(help="an exporter")] = "onnx",
        from_: Annotated[str, typer.Option("--from", "-f", help="not a name in Python")] = "",
        inputs: Annotated[list[str] | None, typer.Option(help="several")] = None,
        config: ConfigOption = None,
        set_: SetOption = None,
        json: JsonOption = False,
    ) -> None:
        """Record what arrives."""
        options = _shared.strategy_options(ctx, set_)
        seen.update(lr=lr, data_clusters=data_clusters, hybrid=hybrid, lr_controller=lr_controller)
        seen.update(target=target, inputs=inputs, from_=from_, options=options)
        if "action" in seen:
            seen["action"]()

    module = ModuleType("probe_verb")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "probe_verb", module)
    monkeypatch.setattr(cli, "VERBS", {"probe": ("probe_verb", "Probe."), **cli.VERBS})
    for name in [n for n in os.environ if n.startswith("HYBRIDKIT_")]:
        monkeypatch.delenv(name)
    return seen


def test_defaults_and_command_line(seen):
    assert cli.run(["probe"]) == 0
    assert (seen["lr"], seen["data_clusters"], seen["hybrid"], seen["options"]) == (1e-3, 8, False, {})
    assert cli.run(["probe", "--lr", "0.5", "--data-clusters=3", "--hybrid"]) == 0
    assert (seen["lr"], seen["data_clusters"], seen["hybrid"]) == (0.5, 3, True)


def test_underscores_are_accepted(seen):
    assert cli.run(["probe", "--data_clusters", "5", "--lr_controller", "aux_nn"]) == 0
    assert seen["data_clusters"] == 5
    assert seen["lr_controller"] == "aux_nn"  # values are left alone


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".yml"])
def test_precedence(seen, tmp_path, monkeypatch, suffix):
    config = tmp_path / f"c{suffix}"
    separator = " = " if suffix == ".toml" else ": "
    config.write_text(f"lr{separator}0.1\ndata-clusters{separator}2\nhybrid{separator}true\n")
    line = ["probe", "--config", str(config)]
    assert cli.run(line) == 0
    assert (seen["lr"], seen["data_clusters"], seen["hybrid"]) == (0.1, 2, True)
    monkeypatch.setenv("HYBRIDKIT_PROBE_LR", "0.2")
    assert cli.run(line) == 0
    assert (seen["lr"], seen["data_clusters"]) == (0.2, 2)
    assert cli.run([*line, "--lr", "0.3"]) == 0
    assert (seen["lr"], seen["data_clusters"]) == (0.3, 2)
    assert cli.run(["--help"]) == 0
    monkeypatch.delenv("HYBRIDKIT_PROBE_LR")
    monkeypatch.setenv("HYBRIDKIT_PROBE_CONFIG", str(config))
    assert cli.run(["probe"]) == 0
    assert seen["lr"] == 0.1


def test_flags_and_lists_from_the_environment(seen, monkeypatch):
    monkeypatch.setenv("HYBRIDKIT_PROBE_HYBRID", "1")
    monkeypatch.setenv("HYBRIDKIT_PROBE_DATA_CLUSTERS", "3")
    monkeypatch.setenv("HYBRIDKIT_PROBE_FROM", "a run")
    monkeypatch.setenv("HYBRIDKIT_PROBE_SET", "quantizer.bits=2 task.path=x")
    assert cli.run(["probe"]) == 0
    assert (seen["hybrid"], seen["data_clusters"], seen["from_"]) == (True, 3, "a run")
    assert seen["options"] == {"quantizer": {"bits": "2"}, "task": {"path": "x"}}


def test_config_of_one_run_does_not_reach_the_next(seen, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text("lr = 0.1\n[lr_controller]\nwarmup = 3\n")
    assert cli.run(["probe", "--config", str(config)]) == 0
    assert cli.run(["probe"]) == 0
    assert seen["lr"] == 1e-3
    assert seen["options"] == {}


def test_strategy_tables_and_set(seen, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        'inputs = ["a", "b"]\nfrom = "x"\n'
        '[lr-controller]\nname = "aux-nn"\nhidden-size = 32\nlearning_rate = 0.5\n'
        '[exporter]\nname = "matmulnbits"\nopset = 21\n'
    )
    line = [
        "probe",
        "--config",
        str(config),
        "--set",
        "lr-controller.hidden-size=64",
        "--set",
        "quantizer.bits=2",
    ]
    assert cli.run(line) == 0
    assert seen["lr_controller"] == "aux-nn"
    assert seen["target"] == "matmulnbits"
    assert seen["from_"] == "x"
    assert list(seen["inputs"]) == ["a", "b"]
    assert seen["options"] == {
        "lr_controller": {"hidden_size": "64", "learning_rate": 0.5},
        "exporter": {"opset": 21},
        "quantizer": {"bits": "2"},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rte = 1", "unknown key 'learning_rte'"),
        ("data_cluster = 1", "did you mean 'data_clusters'?"),
        ("[lr_contoller]\na = 1", "did you mean 'lr_controller'?"),
        ("[quantizer]\nname = 'x'", "unknown key 'quantizer.name'"),
        ("lr = ", "not valid TOML"),
    ],
)
def test_bad_config_is_one_line(seen, tmp_path, capsys, text, expected):
    config = tmp_path / "c.toml"
    config.write_text(text)
    assert cli.run(["probe", "--config", str(config)]) in (1, 2)
    message = capsys.readouterr().err
    assert expected in message
    assert str(config) in message
    assert message.count("\n") == 1
    assert seen == {}


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("missing.toml", None, FileError),
        ("list.yaml", b"- 1\n- 2\n", FileError),
        ("broken.yaml", b"a: [1\n", FileError),
        ("object.yaml", b"!!python/object/apply:os.getcwd []\n", FileError),
        ("binary.toml", b"\xff\xfe\x00", FileError),
        ("c.ini", b"lr=1\n", UsageError),
    ],
)
def test_unreadable_config(tmp_path, name, content, error):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match="config file"):
        _shared.read_config(path)


def test_wrong_type_in_config(seen, tmp_path, capsys):
    config = tmp_path / "c.toml"
    config.write_text('lr = "fast"\n')
    assert cli.run(["probe", "--config", str(config)]) == 2
    assert "'--lr'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "assignment", ["hidden_size=3", "lr_controller.hidden_size", ".x=1", "lr_controller.=1", ""]
)
def test_malformed_set(assignment):
    with pytest.raises(UsageError, match=r"expected KIND\.OPTION=VALUE"):
        _shared.parse_settings([assignment])


def test_set_last_one_wins_and_keeps_equal_signs():
    assert _shared.parse_settings(["task.path=a=b", "task.path=c=d"]) == {"task": {"path": "c=d"}}
    with pytest.raises(UsageError, match="did you mean 'quantizer'"):
        _shared.parse_settings(["quantiser.bits=2"])


def _raiser(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (FileError("no such\nrun"), 1, "hybridkit: error: no such run\n"),
        (UsageError("x"), 2, "hybridkit: error: x\n"),
        (GateError("too big"), 3, "hybridkit: error: too big\n"),
        (KeyboardInterrupt(), 130, None),
    ],
)
def test_exit_codes(seen, capsys, error, exit_code, line):
    seen["action"] = _raiser(error)
    assert cli.run(["probe"]) == exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    if line:
        assert captured.err == line


def test_unexpected_error_keeps_its_traceback(seen):
    seen["action"] = _raiser(ZeroDivisionError("oops"))
    with pytest.raises(ZeroDivisionError):
        cli.run(["probe"])


def test_arguments_see_the_current_directory(seen, tmp_path, monkeypatch):
    (tmp_path / "lies_in_this_folder.py").write_text("thing = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    seen["action"] = lambda: seen.update(found=import_target("lies_in_this_folder:thing"))
    assert cli.run(["probe"]) == 0
    assert seen["found"] == 3


@pytest.mark.parametrize("text", ["\x1b[2Jgone\x07", "\ud800", "\u202e"])
def test_what_cannot_be_printed_is_spelled_out(seen, capsys, text):
    seen["action"] = _raiser(FileError(f"{text} is no name"))
    assert cli.run(["probe"]) == 1
    assert cli.run(["probe", text]) == 2
    for line in capsys.readouterr().err.splitlines():
        assert line.isprintable()
        assert line.isascii()


def test_typer_exit_code(seen):
    seen["action"] = _raiser(typer.Exit(3))
    assert cli.run(["probe"]) == 3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["prob"], "did you mean 'probe'?"),
        (["zzzz"], "valid: bench, doctor, export"),
        (["probe", "--lr", "x"], "--lr"),
        (["probe", "--lrr", "1"], "--lrr"),
        (["--nope"], "--nope"),
        (["plugins", "--kind", "quantiser"], "did you mean 'quantizer'?"),
    ],
)
def test_usage_errors_are_one_line(seen, capsys, line, expected):
    assert cli.run(line) == 2
    message = capsys.readouterr().err
    assert message.startswith("hybridkit: error: ")
    assert message.count("\n") == 1
    assert expected in message


def test_help_groups_options(seen, capsys):
    assert cli.run(["probe", "-h"]) == 0
    text = capsys.readouterr().out
    headings = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert [h for h in headings if not h.startswith("Usage")] == ["Options:", "Clusters:", "Configuration:"]
    assert "Record what arrives." in text
    assert "--data-clusters" in text
    assert "env var" not in text


def test_version_and_empty_command_line(capsys):
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"hybridkit {__version__}\n"
    assert cli.run([]) == 2
    assert "quantize" in capsys.readouterr().err


def test_json_document(capsys):
    import numpy as np

    _shared.emit_json(
        "probe", {"a": np.float32(0.5), "b": [float("nan"), np.arange(2)], "c": Path("x"), "d": {1: None}}
    )
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "schema": "hybridkit/probe/1",
        "version": __version__,
        "a": 0.5,
        "b": [None, [0, 1]],
        "c": "x",
        "d": {"1": None},
    }
    with pytest.raises(TypeError, match="object has no JSON form"):
        _shared.emit_json("probe", {"a": object()})


def test_progress_is_silent_without_a_terminal(capsys):
    with _shared.progress() as display:
        display.advance(display.add_task("work", total=2))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.strip() == ""


@pytest.mark.parametrize("kind", ["lr_controller", "lr-controller", "quantizer"])
def test_plugins_of_one_kind(capsys, kind, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.run(["plugins", "--kind", kind, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "hybridkit/plugins/1"
    assert {s["kind"] for s in document["strategies"]} == {kind.replace("-", "_")}
    assert set(document["strategies"][0]) == {"kind", "name", "summary", "target", "distribution", "version"}
    assert cli.run(["plugins", "--kind", kind]) == 0
    table = capsys.readouterr().out
    assert all(s["name"] in table and s["summary"] in table for s in document["strategies"])


def _python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HYBRIDKIT_")} | env
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize("line", [["--help"], *([verb, "--help"] for verb in cli.VERBS)], ids=" ".join)
def test_help_imports_nothing_heavy(line):
    code = f"""
import sys
from hybridkit.cli import run
assert run({line!r}) == 0
print(*sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    done = _python(code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == ""
    assert "Usage: hybridkit" in done.stdout


def test_broken_pipe_is_quiet():
    script = f"{sys.executable} -m hybridkit plugins --json | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_no_color_and_plain_tables():
    done = _python(
        "from hybridkit.cli import run; run(['plugins'])", NO_COLOR="1", FORCE_COLOR="", TERM="xterm"
    )
    assert "ternary-absmean" in done.stdout
    assert "\x1b[3" not in done.stdout
