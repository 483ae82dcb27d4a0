"""The command line: a table of verbs, each in a file of its own that is imported when it is asked for.

A verb is a module `hybridkit/cli/<verb>.py` with one function

    def command(lr: Annotated[float, typer.Option(help="...")] = 1e-3, ...) -> None:
        \"\"\"The text of --help.\"\"\"

whose parameters typer turns into options. It parses, calls the package that does the work, and renders;
it returns nothing, raises HybridkitError for what a user can mend, and imports torch only inside the
function. `rich_help_panel` groups options under a heading. See `_shared.py` for --config, --set, --json.

Where a value comes from: the command line, else `HYBRIDKIT_<VERB>_<OPTION>`, else --config, else the default.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from hybridkit import __version__, interrupts
from hybridkit.cli._shared import option_name
from hybridkit.errors import HybridkitError, InterruptedRun, UsageError, printable
from hybridkit.options import nearest

VERBS: Final = {
    "train": ("hybridkit.cli.train", "Train a network, with hybrid optimisation and quantised weights."),
    "quantize": ("hybridkit.cli.quantize", "Quantise and pack a trained network."),
    "export": ("hybridkit.cli.export", "Write a packed network as ONNX, and verify the file."),
    "generate": ("hybridkit.cli.generate", "Generate text with an exported language model."),
    "bench": ("hybridkit.cli.bench", "Measure convergence, quantisation and inference."),
    "report": ("hybridkit.cli.report", "Show a run as one HTML page."),
    "plugins": ("hybridkit.cli.plugins", "List every strategy and where it comes from."),
    "doctor": ("hybridkit.cli.doctor", "Show what this installation has and lacks."),
}

# click's own base of usage errors, wherever this version of typer keeps its click
_ClickError: Final[Any] = typer.BadParameter.__mro__[2]


class Verb(TyperCommand):
    """A command whose help has one section for each `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options, grouped under their headings in order of appearance."""
        sections: dict[str, list[tuple[str, str]]] = {}
        parameters: list[Any] = list(self.get_params(ctx))
        for parameter in parameters:
            parameter.show_envvar = False  # one rule covers them all: HYBRIDKIT_<VERB>_<OPTION>
            record = parameter.get_help_record(ctx)
            if record is not None:
                default = "Arguments" if parameter.param_type_name == "argument" else "Options"
                heading = getattr(parameter, "rich_help_panel", None) or default
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class VerbTable(TyperGroup):
    """The top level: knows every verb's name and summary, and imports a verb when it is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs in the order of a run."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a verb and build its command; None if there is no such verb."""
        return load_verb(cmd_name) if cmd_name in VERBS else None

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; Ctrl-C is an error like any other here, or click would add an empty line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise InterruptedRun("interrupted") from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The verb that `args` begin with. Raises UsageError with the nearest name if there is none."""
        if args[0] not in VERBS and not args[0].startswith("-"):
            raise UsageError(f"no command is called {args[0]!r}; {nearest(args[0], VERBS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the table of verbs without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in VERBS.items()])


def load_verb(name: str) -> Any:
    """The typer command of one verb."""
    module = importlib.import_module(VERBS[name][0])
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, cls=Verb)(module.command)
    command: Any = typer.main.get_command(app)
    for parameter in command.params:  # by the option's name, where Python's differs: set_, from_
        parameter.envvar = parameter.envvar or f"HYBRIDKIT_{name}_{option_name(parameter)}".upper()
    return command


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hybridkit {__version__}")
        raise typer.Exit


def _top_level(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version.", show_envvar=False
        ),
    ] = False,
) -> None:
    """Train networks with 1.58-bit and 1-bit weights and ship them as files that run anywhere."""


@functools.cache
def root() -> Any:
    """The top-level command."""
    # Plain help: rich's takes 0.2 s to import, and its panels would end up in the generated reference.
    app = typer.Typer(cls=VerbTable, add_completion=False, rich_markup_mode=None, no_args_is_help=True)
    app.callback(
        context_settings={
            "auto_envvar_prefix": "HYBRIDKIT",
            "help_option_names": ["-h", "--help"],
            "max_content_width": 100,
            "default_map": {
                "help": False
            },  # without a value, typer 0.29 imports pydantic to convert it: 0.1 s
            "token_normalize_func": lambda token: token.replace("_", "-"),
        }
    )(_top_level)
    return typer.main.get_command(app)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: sys.argv) and return its exit code.

    Errors that a user can mend become one line on stderr; anything else propagates with its traceback.
    """
    _see_current_directory()
    try:
        code = root().main(
            args=None if arguments is None else list(arguments), prog_name="hybridkit", standalone_mode=False
        )
        sys.stdout.flush()
    except HybridkitError as error:
        return error.exit_code if _said(error) else _complain(str(error), error.exit_code)
    except _ClickError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message(), file=sys.stderr)
            return 2
        command = error.ctx.command_path if getattr(error, "ctx", None) else "hybridkit"
        reason = error.format_message().strip().rstrip(".")
        return _complain(f"{reason}; try '{command} --help'", error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _complain("interrupted", interrupts.EXIT_CODE)
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); keep the interpreter's last flush from complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno != errno.EIO or error.filename is not None:
            raise
        return _complain("the terminal is gone", interrupts.EXIT_CODE)
    return code if isinstance(code, int) else 0


def _see_current_directory() -> None:
    """Arguments of the form package.module:attribute may name code there, as they may under `python -m`."""
    with contextlib.suppress(OSError):  # it may have been removed
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())


def _said(error: HybridkitError) -> bool:
    """Whether another process, of those that torchrun has started with this command line, says it."""
    return os.environ.get("RANK", "0") != "0" if error.said is None else error.said


def _complain(message: str, exit_code: int) -> int:
    if interrupts.arrived():  # and something made another exception of it
        message, exit_code = "interrupted", interrupts.EXIT_CODE
    interrupts.settle()
    line = " ".join(printable(message).split())
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"hybridkit: error: {line}", file=sys.stderr, flush=True)
    return exit_code
