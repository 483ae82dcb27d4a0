"""What several verbs share: --set, --config, --json, and where text goes.

A verb takes them as parameters:

    def command(
        ctx: typer.Context,
        config: ConfigOption = None,
        set_: SetOption = (),
        json: JsonOption = False,
    ) -> None:
        options = strategy_options(ctx, set_)      # {"lr_controller": {"hidden_size": "32"}}
        ...
        if json:
            emit_json("train", {"loss": 0.1})

A verb with many options declares them as the fields of a data class:

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Flags:
        opset: Annotated[int, flag(HOW, "Opset of the stock operators.", "N")] = 18

    @with_flags
    def command(ctx: typer.Context, flags: Flags, json: JsonOption = False) -> None: ...
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from hybridkit import __version__
from hybridkit.errors import FileError, UsageError
from hybridkit.hookspecs import KINDS, Kind
from hybridkit.options import Flag, nearest
from hybridkit.plain import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from hybridkit.quant.plan import LeftAlone

Settings = dict[Kind, dict[str, Any]]

_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD
_CONFIG_TABLES = "hybridkit.config_tables"
# The option that names a strategy, where it is not its kind.
_NAME_OPTION = {"exporter": "target", "metric_sink": "sink"}


def left_alone_lines(layers: Sequence[LeftAlone]) -> list[str]:
    """A table of what stays in full precision, and why; no line where nothing does."""
    rows = [("Left alone", "Shape", "Reason")]
    rows += [(_printable(x.name or "(the model)"), "x".join(map(str, x.shape)), x.reason) for x in layers]
    name, shape = (max(len(row[i]) for row in rows) for i in range(2))
    return [f"{a:<{name}}  {b:>{shape}}  {c}" for a, b, c in rows] if layers else []


def assets_fields(product: Path) -> dict[str, Any]:
    """What a JSON document says of the assets beside a product; nothing where there are none."""
    from hybridkit.pretrained.assets import beside, size_of

    size = size_of(product)
    return {"assets": {"path": beside(product), "bytes": size}} if size else {}


def assets_lines(product: Path, file_bytes: int) -> list[str]:
    """The line about the assets beside a product of `file_bytes`, and an end of line; none without them."""
    if not (found := assets_fields(product)):
        return []
    size, path = found["assets"]["bytes"], found["assets"]["path"]
    return [f"Assets: {path} ({size:,} bytes); everything included {file_bytes + size:,} bytes", ""]


def _printable(text: str) -> str:
    """`text`, which may come out of a file, without what would move a terminal's cursor."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def parse_settings(assignments: Sequence[str]) -> Settings:
    """`["lr-controller.hidden_size=32"]` as `{"lr_controller": {"hidden_size": "32"}}`; the last one wins.

    Raises UsageError for another form, or a kind that does not exist.
    """
    settings: Settings = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        kind, dot, option = key.strip().partition(".")
        if not (equals and dot and kind and option):
            raise UsageError(
                f"--set {assignment}: expected KIND.OPTION=VALUE, as in lr_controller.hidden_size=32"
            )
        settings.setdefault(_kind(kind, f"--set {assignment}"), {})[option.replace("-", "_")] = value
    return settings


def strategy_options(ctx: typer.Context, assignments: Sequence[str] | None) -> Settings:
    """The options of strategies from the config file's tables, overridden by --set."""
    merged: Settings = {kind: dict(table) for kind, table in ctx.meta.get(_CONFIG_TABLES, {}).items()}
    for kind, table in parse_settings(assignments or ()).items():
        merged.setdefault(kind, {}).update(table)
    return merged


def read_config(path: Path) -> dict[str, Any]:
    """The table in a TOML (.toml) or YAML (.yaml, .yml) file.

    Raises FileError if it cannot be read or is malformed, UsageError for another suffix.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise FileError(f"config file {path}: {reason}") from None
    if path.suffix == ".toml":
        import tomllib

        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise FileError(f"config file {path}: not valid TOML: {error}") from None
    if path.suffix in (".yaml", ".yml"):
        import yaml

        try:
            table = yaml.safe_load(text) or {}
        except yaml.YAMLError as error:
            raise FileError(f"config file {path}: not valid YAML: {error}") from None
        if not isinstance(table, dict):
            raise FileError(f"config file {path}: expected a table of options at the top level")
        return {str(key): value for key, value in table.items()}
    raise UsageError(f"config file {path}: the name must end in .toml, .yaml or .yml")


def apply_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the values of a config file the defaults of this command; the callback of --config.

    Keys are the command's long options, with hyphens or underscores. A table named after a kind of
    strategy holds that strategy's options, and its name as `name`.
    Raises UsageError for a key that is neither (naming the nearest valid one).
    """
    if path is None or ctx.resilient_parsing:
        return path
    parameters = {option_name(p): p.name for p in ctx.command.params if p.name not in ("config", "set_")}
    lists = {p.name for p in ctx.command.params if getattr(p, "multiple", False)}
    defaults: dict[str, Any] = {}
    tables: Settings = {}
    for key, value in read_config(path).items():
        name = key.replace("-", "_")
        if isinstance(value, Mapping):
            kind = _kind(name, f"config file {path}")
            table = {option.replace("-", "_"): setting for option, setting in value.items()}
            if "name" in table:
                name_option = _NAME_OPTION.get(kind, kind)
                defaults[_parameter(name_option, parameters, f"{key}.name", path)] = table.pop("name")
            tables[kind] = table
        else:
            defaults[_parameter(name, parameters, key, path)] = value
    for name in lists & defaults.keys():
        if isinstance(defaults[name], str):
            defaults[name] = [defaults[name]]
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    ctx.meta[_CONFIG_TABLES] = tables
    return path


def option_name(parameter: Any) -> str:
    """What the user calls a parameter, with underscores: its first long option, or an argument's own name."""
    longs = [option for option in parameter.opts if option.startswith("--")]
    name: str = longs[0] if longs else parameter.name
    return name.lstrip("-").replace("-", "_")


def _parameter(name: str, parameters: Mapping[str, Any], key: str, path: Path) -> Any:
    if name not in parameters:
        raise UsageError(f"config file {path}: unknown key {key!r}; {nearest(name, parameters)}")
    return parameters[name]


def _kind(name: str, where: str) -> Kind:
    kind = name.replace("-", "_")
    if kind not in KINDS:
        raise UsageError(f"{where}: there is no kind of strategy {name!r}; {nearest(kind, KINDS)}")
    return kind


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=apply_config,
        help="Take defaults from a TOML or YAML file.",
        rich_help_panel="Configuration",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set an option of a strategy, as in lr_controller.hidden_size=32; repeatable.",
        rich_help_panel="Configuration",
    ),
]
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document on stdout and everything else on stderr.",
        rich_help_panel="Configuration",
    ),
]


def flag(panel: str, help: str, metavar: str | None = None, *, name: str = "", **limits: Any) -> Any:
    """An option under a heading, for `Annotated`; called as its field is, unless `name` says otherwise."""
    return typer.Option(*name.split(), metavar=metavar, help=help, rich_help_panel=panel, **limits)


def with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with, in place of its parameter `flags`, an option for each field of that data class."""
    parameters = inspect.signature(command, eval_str=True).parameters
    schema = parameters["flags"].annotation
    hints = get_type_hints(schema, include_extras=True)
    options = [
        inspect.Parameter(field.name, _KEYWORD, default=field.default, annotation=hints[field.name])
        for field in dataclasses.fields(schema)
    ]

    def run(**given: Any) -> None:
        command(flags=schema(**{option.name: given.pop(option.name) for option in options}), **given)

    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [new for name, old in parameters.items() for new in (options if name == "flags" else [old])]
    )
    return run


RemoteOption = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run code that lies in a pretrained network's own folder.",
        rich_help_panel="Code that a file names",
    ),
]


def declared_options(schema: type) -> list[inspect.Parameter]:
    """An option for each field of a data class whose type is annotated with a `Flag`, in their order.

    The value is None where an option was not given; a switch's is False.
    """
    found = []
    for field in dataclasses.fields(schema):
        hint = get_type_hints(schema, include_extras=True)[field.name]
        flag = next((note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Flag)), None)
        if flag is None:
            continue
        name = "--" + field.name.replace("_", "-")
        help_text = flag.help.format(default=_shown(field.default))
        option = typer.Option(name, metavar=flag.metavar, help=help_text, rich_help_panel=flag.panel)
        kind = _bare(hint)
        switch = kind is bool
        annotation: Any = Annotated[kind if switch else kind | None, option]
        default = False if switch else None
        found.append(inspect.Parameter(field.name, _KEYWORD, default=default, annotation=annotation))
    return found


def _bare(hint: Any) -> Any:
    """The type that a value is typed as: without limits and None, and text for a choice."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _bare(arguments[0])
    if origin is Literal:
        return str
    if origin in (Union, UnionType):
        return _bare(next(argument for argument in arguments if argument is not NoneType))
    return hint


def _shown(default: Any) -> str:
    return f"{default:g}" if isinstance(default, float) else str(default)


def emit_json(verb: str, payload: Mapping[str, Any]) -> None:
    """Print a command's one JSON document: `{"schema": "hybridkit/<verb>/1", "version": ..., **payload}`.

    Data classes, paths and NumPy scalars become plain values; a number that is not finite becomes null.
    """
    document = {"schema": f"hybridkit/{verb}/1", "version": __version__, **payload}
    print(json.dumps(plain(document), indent=2, allow_nan=False), flush=True)


def console(*, stderr: bool = False) -> Console:
    """A rich console on stdout or stderr. Honours NO_COLOR and COLUMNS; wide where its output is piped."""
    from rich.console import Console

    piped = not (sys.stderr if stderr else sys.stdout).isatty()
    width = 160 if piped and "COLUMNS" not in os.environ else None
    return Console(stderr=stderr, highlight=False, width=width)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """A live progress display on stderr; silent where stderr is not a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    on_stderr = console(stderr=True)
    with Progress(*columns, console=on_stderr, disable=not on_stderr.is_terminal, transient=True) as display:
        yield display
