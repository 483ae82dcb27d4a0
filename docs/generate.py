"""Writes the pages that say what the code says: `strategies.md` and `cli.md`.

python docs/generate.py            write them
python docs/generate.py --check    exit 1 and name the stale ones; tests run this
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import typer

from hybridkit import builtins
from hybridkit.cli import VERBS
from hybridkit.hookspecs import KINDS, Kind, Strategy
from hybridkit.options import OptionInfo, describe_options
from hybridkit.registry import import_target

DOCS = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py; change the code and run that. -->"

HEADINGS: dict[Kind, tuple[str, str]] = {
    "lr_controller": ("Learning-rate controllers", "`hybridkit train --hybrid --lr-controller NAME`"),
    "clusterer": ("Clusterers", "`hybridkit train --hybrid --clusterer NAME`"),
    "constraint": ("Constraints", "`hybridkit train --hybrid --constraint NAME`"),
    "quantizer": (
        "Quantizers",
        "`hybridkit train --qat --quantizer NAME`, `hybridkit quantize --quantizer NAME`",
    ),
    "optimizer": ("Base optimizers", "`hybridkit train --optimizer NAME`"),
    "exporter": ("Exporters", "`hybridkit export --target NAME`"),
    "task": ("Tasks", "`hybridkit train --task NAME`"),
    "source": (
        "Sources",
        "what the text names: `hybridkit train --init-from` and `--teacher`, `hybridkit quantize SOURCE`, "
        "`hybridkit export --from`",
    ),
    "metric_sink": ("Metric sinks", "`hybridkit train --sink NAME`"),
}


def strategies_page() -> str:
    """Every built-in strategy with its summary, its documentation and its options."""
    lines = [
        NOTE,
        "# Strategies",
        "",
        "Every strategy is chosen by name and comes in through the plugin host; [plugins.md](plugins.md)",
        "shows how to add one. `hybridkit plugins` lists those that are installed. Options are set with",
        "`--set KIND.OPTION=VALUE`, or in a config file as the table `[KIND]`. Where an option of a command",
        "takes a name, `distribution:name` and `package.module:attribute` work too.",
    ]
    described = builtins.hybridkit_strategies()
    for kind in KINDS:
        heading, usage = HEADINGS[kind]
        lines += ["", f"## {heading}", "", f"Chosen with {usage}; options are `--set {kind}.OPTION=VALUE`."]
        for strategy in described:
            if strategy.kind == kind:
                lines += _strategy_section(strategy)
    return "\n".join(lines) + "\n"


def _strategy_section(strategy: Strategy) -> Iterator[str]:
    target = import_target(strategy.target)
    yield from ("", f"### {strategy.name}", "", f"{strategy.summary[0].upper()}{strategy.summary[1:]}.", "")
    yield from ("```text", inspect.getdoc(target) or "", "```")
    options = describe_options(target).values()
    if options:
        yield from ("", "| option | type | default | |", "|---|---|---|---|")
        yield from (_option_row(option) for option in options)


def _option_row(option: OptionInfo) -> str:
    default = "required" if option.default is dataclasses.MISSING else f"`{option.default!r}`"
    cells = (f"`{option.name}`", _type_text(option.hint), default, option.help)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type_text(hint: Any) -> str:
    """A type hint as a person would say it: `int >= 1`, `"a" or "b"`."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        limits = ", ".join(text for limit in arguments[1:] for text in _limit_texts(limit))
        return f"{_type_text(arguments[0])} {limits}".strip()
    if origin is Literal:
        return " or ".join(f"`{value!r}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type_text(argument) for argument in arguments)
    if hint is NoneType:
        return "none"
    if origin is not None and arguments:
        inner = ", ".join("..." if a is Ellipsis else _type_text(a) for a in arguments)
        return f"{origin.__name__}[{inner}]"
    return getattr(hint, "__name__", str(hint))


def _limit_texts(limit: Any) -> Iterator[str]:
    signs = {
        annotated_types.Ge: (">=", "ge"),
        annotated_types.Gt: (">", "gt"),
        annotated_types.Le: ("<=", "le"),
        annotated_types.Lt: ("<", "lt"),
        annotated_types.MultipleOf: ("a multiple of", "multiple_of"),
    }
    if isinstance(limit, annotated_types.GroupedMetadata):
        for part in limit:
            yield from _limit_texts(part)
    elif type(limit) in signs:
        sign, name = signs[type(limit)]
        # typing keeps one of Ge(0) and Ge(0.0), whichever came first: the number is written the same for both
        yield f"{sign} {getattr(limit, name):g}"


def cli_page() -> str:
    """The help of every command."""
    lines = [
        NOTE,
        f"<!-- as typer {typer_version()} renders it -->",
        "# Commands",
        "",
        "Underscores in option names are accepted for hyphens. A value comes from the command line, else",
        "from the environment (`HYBRIDKIT_<COMMAND>_<OPTION>`, as in `HYBRIDKIT_TRAIN_LR`), else from",
        "`--config`, else from the default. Exit codes: 0 ok, 1 failure, 2 usage, 3 a quality or size gate",
        "was missed, 130 interrupted.",
        "",
        "A config file is TOML or YAML. Its keys are the command's long options; a table named after a kind",
        "of strategy holds the options of that strategy and, as `name`, its name:",
        "",
        "```toml",
        "epochs = 20",
        "hybrid = true",
        "",
        "[lr_controller]",
        'name = "aux-nn"',
        "hidden_size = 32",
        "```",
    ]
    for command in ([], *([verb] for verb in VERBS)):
        title = " ".join(["hybridkit", *command])
        lines += ["", f"## {title}", "", "```text", _help(command), "```"]
    return "\n".join(lines) + "\n"


def typer_version() -> str:
    """Major and minor version of the library whose help the page shows."""
    return ".".join(typer.__version__.split(".")[:2])


def _help(command: list[str]) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HYBRIDKIT_")}
    environment |= {"COLUMNS": "100", "NO_COLOR": "1", "PYTHONUTF8": "1", "HYBRIDKIT_NO_PLUGINS": "1"}
    line = [sys.executable, "-m", "hybridkit", *command, "--help"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, encoding="utf-8", check=True)
    return "\n".join(row.rstrip() for row in done.stdout.strip().splitlines())


PAGES = {"strategies.md": strategies_page, "cli.md": cli_page}


def stale_pages() -> list[str]:
    """The pages whose text differs from what the code says."""
    paths = {name: DOCS / name for name in PAGES}
    return [n for n, path in paths.items() if not path.exists() or path.read_text("utf-8") != PAGES[n]()]


def main(arguments: list[str]) -> int:
    """Write or check the pages; the exit code."""
    if arguments == ["--check"]:
        stale = stale_pages()
        if stale:
            print(f"stale: {', '.join(stale)}; run python docs/generate.py", file=sys.stderr)
        return 1 if stale else 0
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
