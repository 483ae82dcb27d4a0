"""Options of strategies: a keyword-only dataclass named `Options` beside each strategy.

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        hidden_size: Annotated[int, Ge(1)] = option(16, "width of the hidden layer")

`parse_options` turns loosely typed values (command line strings, config tables) into such a dataclass.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from hybridkit.errors import UsageError


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default and the sentence that documents it."""
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """What is known about one option: its name, type hint, default and help sentence."""

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
            f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default,
            f.metadata.get("help", ""),
        )
        for f in dataclasses.fields(options_class)
    }


def _from_signature(strategy: Callable[..., Any]) -> dict[str, OptionInfo]:
    parameters = inspect.signature(strategy).parameters.values()
    return {
        p.name: OptionInfo(p.name, Any, p.default, "")
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }


def parse_options(strategy: Callable[..., Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Validate `values` against the options of `strategy`; `where` names the strategy in messages.

    Raises UsageError for an unknown option (naming the nearest valid one) or a value of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    known = describe_options(strategy)
    parsed: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            raise UsageError(f"{where} has no option {name!r}; {nearest(name, known)}")
        hint = known[name].hint
        if hint is Any:
            parsed[name] = _literal(value) if isinstance(value, str) else value
            continue
        try:
            parsed[name] = TypeAdapter(hint).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise UsageError(f"{where}.{name}={value!r}: {reason}") from None
    return parsed


def construct(strategy: Callable[..., Any], values: Mapping[str, Any], where: str) -> Any:
    """An instance of `strategy` with `values` as its options."""
    parsed = parse_options(strategy, values, where)
    options_class = getattr(strategy, "Options", None)
    if options_class is not None:
        return strategy(options_class(**parsed))
    return strategy(**parsed)


def nearest(name: str, valid: Iterable[str]) -> str:
    """'did you mean X?' where something is close, else the list of what is valid."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"valid: {', '.join(valid) or 'none'}"


def _literal(text: str) -> Any:
    """A Python literal where the text is one, else the text: for classes that declare no types."""
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
