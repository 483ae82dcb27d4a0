from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge

from hybridkit.errors import FileError, UsageError
from hybridkit.options import construct, describe_options, nearest, option, parse_options


class Strategy:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        hidden_size: Annotated[int, Ge(1)] = option(16, "width of the hidden layer")
        rate: float = option(0.5, "how fast")
        mode: Literal["fast", "slow"] = option("fast", "which way")
        betas: tuple[float, float] = option((0.9, 0.99), "two numbers")
        limit: int | None = option(None, "upper bound")
        verbose: bool = option(False, "talk")
        path: str = option("", "where")
        table: dict[str, int] = option(dict, "numbers by name")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        if self.options.hidden_size == 13:
            raise ValueError("13 is unlucky")
        if self.options.hidden_size == 14:
            raise FileError("no such file")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("hidden_size", "32", 32),
        ("hidden_size", 32, 32),
        ("hidden_size", 32.0, 32),
        ("rate", "1e-3", 1e-3),
        ("rate", 1, 1.0),
        ("mode", "slow", "slow"),
        ("betas", "0.8, 0.9", (0.8, 0.9)),
        ("betas", "(0.8, 0.9)", (0.8, 0.9)),
        ("betas", [0.8, 0.9], (0.8, 0.9)),
        ("limit", "none", None),
        ("limit", "7", 7),
        ("verbose", "true", True),
        ("verbose", "no", False),
        ("path", "007", "007"),
        ("path", "None", "None"),
        ("table", "{'a': 1}", {"a": 1}),
        ("table", {"a": "1"}, {"a": 1}),
    ],
)
def test_values_become_the_declared_type(name, given, expected):
    value = getattr(construct(Strategy, {name: given}, "s").options, name)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hiden_size": 3}, "lr-controller 'x' has no option 'hiden_size'; did you mean 'hidden_size'?"),
        ({"zzz": 3}, "valid: betas, hidden_size, limit"),
        ({"hidden_size": "0"}, r"hidden_size='0': Input should be greater than or equal to 1"),
        ({"hidden_size": 1.5}, "hidden_size=1.5: "),
        ({"mode": "medium"}, "mode='medium': Input should be 'fast' or 'slow'"),
        ({"betas": "0.9"}, "betas='0.9': "),
        ({"verbose": "perhaps"}, "verbose='perhaps': "),
        ({"hidden_size": 13}, "lr-controller 'x': 13 is unlucky"),
    ],
)
def test_mistakes_are_usage_errors(values, message):
    with pytest.raises(UsageError) as caught:
        construct(Strategy, values, "lr-controller 'x'")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_hybridkit_errors_pass_through():
    with pytest.raises(FileError):
        construct(Strategy, {"hidden_size": 14}, "s")


def test_describe():
    known = describe_options(Strategy)
    assert list(known)[:2] == ["hidden_size", "rate"]
    assert known["hidden_size"].default == 16
    assert known["hidden_size"].help == "width of the hidden layer"
    assert known["table"].default == {}


class FromSignature:
    def __init__(self, path: str, size: int = 3, shape=(1, 2), *, scale: float = 1.0) -> None:
        self.values = (path, size, shape, scale)


def test_a_class_without_options_is_described_by_its_signature():
    assert {n: i.default for n, i in describe_options(FromSignature).items()} == {
        "path": MISSING,
        "size": 3,
        "shape": (1, 2),
        "scale": 1.0,
    }
    made = construct(FromSignature, {"path": "1", "size": "5", "shape": "[3]", "scale": "2"}, "s")
    assert made.values == ("1", 5, [3], 2.0)
    with pytest.raises(UsageError, match="s needs a value for its option 'path'"):
        construct(FromSignature, {}, "s")


def test_a_factory_function_and_unresolvable_hints():
    def factory(kind: OnlyForTypeCheckers = 3, other: int = 4) -> Any:  # noqa: F821
        return kind, other

    assert construct(factory, {"kind": "5", "other": "6"}, "s") == (5, 6)


class SomebodysClass:
    pass


def test_a_hint_of_a_foreign_class():
    def factory(thing: SomebodysClass | None = None) -> Any:
        return thing

    thing = SomebodysClass()
    factory.__annotations__["thing"] = SomebodysClass
    assert parse_options(factory, {"thing": thing}, "s") == {"thing": thing}
    with pytest.raises(UsageError, match="instance of SomebodysClass"):
        parse_options(factory, {"thing": "x"}, "s")


def test_nearest():
    assert nearest("aux-n", ["aux-nn", "cosine"]) == "did you mean 'aux-nn'?"
    assert nearest("q", ["b", "a"]) == "valid: a, b"
    assert nearest("q", []) == "valid: none"
