"""Options of strategies: a keyword-only dataclass named `Options` beside each strategy.

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        hidden_size: Annotated[int, Ge(1)] = option(16, "width of the hidden layer")

`construct` turns loosely typed values (command line strings, config tables) into such a dataclass and the
strategy around it. A class without `Options` is described by its signature instead.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, dataclass
from typing import Any, get_type_hints

from hybridkit.errors import HybridkitError, UsageError


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default (called, where it is callable) and the sentence that documents it."""
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True)
class Flag:
    """How the command line shows a field: under which heading, with which words.

    `{default}` in the text is the field's default. The flag's name is the field's, its type the field's
    without limits; a field that is True or False is a switch.
    """

    panel: str
    help: str
    metavar: str | None = None


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """What is known about one option. `default` is `dataclasses.MISSING` where a value is required."""

    name: str
    hint: Any
    default: Any
    help: str


def describe_options(strategy: Callable[..., Any]) -> dict[str, OptionInfo]:
    """The options a strategy takes, from its `Options` dataclass or else from its signature."""
    options_class = getattr(strategy, "Options", None)
    if options_class is None:
        return _from_signature(strategy)
    hints = get_type_hints(options_class, include_extras=True)
    return {
        f.name: OptionInfo(
            f.name,
            hints[f.name],
            f.default_factory() if f.default_factory is not MISSING else f.default,
            f.metadata.get("help", ""),
        )
        for f in dataclasses.fields(options_class)
    }


def _from_signature(strategy: Callable[..., Any]) -> dict[str, OptionInfo]:
    annotated: Any = strategy.__init__ if isinstance(strategy, type) else strategy  # type: ignore[misc]
    try:
        hints = get_type_hints(annotated, include_extras=True)
    except (NameError, TypeError):  # names that exist for type checkers only
        hints = {}
    return {
        p.name: OptionInfo(p.name, hints.get(p.name, Any), MISSING if p.default is p.empty else p.default, "")
        for p in inspect.signature(strategy).parameters.values()
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }


def parse_options(strategy: Callable[..., Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Validate `values` against the options of `strategy`; `where` names the strategy in messages.

    Raises UsageError for an unknown option (naming the nearest valid one), a value of another type, or a
    required option without a value.
    """
    known = describe_options(strategy)
    for name in values:
        if name not in known:
            raise UsageError(f"{where} has no option {name!r}; {nearest(name, known)}")
    for name, info in known.items():
        if info.default is MISSING and name not in values:
            raise UsageError(f"{where} needs a value for its option {name!r}")
    return {name: _validate(known[name], value, where) for name, value in values.items()}


def _validate(info: OptionInfo, value: Any, where: str) -> Any:
    """`value` as the option's type; text is tried as it stands, then as a Python literal."""
    if info.hint is Any:
        return _literal(value)
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticSchemaGenerationError

    try:
        adapter = TypeAdapter(info.hint)
    except PydanticSchemaGenerationError:  # a hint that is some library's own class
        adapter = TypeAdapter(info.hint, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        literal = _literal(value)
        if literal is not value:
            try:
                return adapter.validate_python(literal)
            except ValidationError:
                pass  # the first message shows what was typed
        raise UsageError(f"{where}: {info.name}={value!r}: {error.errors()[0]['msg']}") from None


def construct(strategy: Callable[..., Any], values: Mapping[str, Any], where: str) -> Any:
    """An instance of `strategy` with `values` as its options; `where` names it in messages.

    Raises UsageError as `parse_options` does, and where the strategy itself refuses with a ValueError.
    """
    parsed = parse_options(strategy, values, where)
    options_class = getattr(strategy, "Options", None)
    try:
        return strategy(**parsed) if options_class is None else strategy(options_class(**parsed))
    except HybridkitError:
        raise
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def nearest(name: str, valid: Iterable[str]) -> str:
    """'did you mean X?' where something is close, else the list of what is valid."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid: {', '.join(valid) or 'none'}"


def _literal(value: Any) -> Any:
    """Text as the Python literal it spells (also none, true and false), else `value` itself."""
    if not isinstance(value, str):
        return value
    spelled = {"none": "None", "null": "None", "true": "True", "false": "False"}
    try:
        return ast.literal_eval(spelled.get(value.strip().lower(), value.strip()))
    except (ValueError, SyntaxError):
        return value
