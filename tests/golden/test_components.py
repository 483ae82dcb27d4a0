"""Whoever changes what a component computes raises its version: stored trials of the bench go by it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from components import COMPONENTS, GOLDEN, found, label, target
from trainings import maker, written_down

from hybridkit.bench.convergence.identity import identity
from hybridkit.bench.convergence.methods import METHODS
from hybridkit.bench.convergence.settings import CORE
from hybridkit.tasks.fashion_mnist import FashionMNIST

PACKAGES = {"optimizer ScheduleFree": "schedulefree", "optimizer Prodigy": "prodigyopt"}


def measurable(name: str) -> bool:
    if name.startswith("task fashion"):
        return Path(FashionMNIST.Options().data_dir).is_dir()
    return name not in PACKAGES or importlib.util.find_spec(PACKAGES[name]) is not None


@pytest.fixture(scope="module")
def golden():
    if maker() not in (golden := written_down(GOLDEN)):
        pytest.skip("the bits were written down for other processors or another version of torch")
    return golden


@pytest.fixture(scope="module")
def now(golden):
    return found(c for c in COMPONENTS if measurable(label(c)))


@pytest.mark.parametrize("component", COMPONENTS, ids=label)
def test_a_component_that_gives_other_numbers_has_another_version(component, golden, now):
    name = label(component)
    if name not in now:
        pytest.skip("its data or its package is not installed")
    none = {"version": "0"}
    old, new = golden[maker()].get(name, none), now[name]
    elsewhere = [each.get(name, none)["version"] for each in golden.values()]
    if old["version"] != new["version"] in elsewhere:
        pytest.skip("its new version was written down on a processor of another maker")
    if old != new:
        code = target(*component)
        where = f"{code.__module__}.{code.__qualname__}"
        assert old["version"] != new["version"], (
            f"{name} gives other numbers than version {old['version']} did: set `version = "
            f"{int(old['version']) + 1}` in {where}, so that no stored result of the bench passes for one of "
            "the changed code, then run python tests/golden/components.py --write. (Where most of these "
            "tests fail at once, what they share has changed: raise the version of Trainer instead.)"
        )
        pytest.fail(f"{name} has a new version: run python tests/golden/components.py --write")


def test_every_component_of_a_built_in_method_is_here():
    kinds = ("optimizer", "lr_controller", "constraint", "clusterer", "quantizer", "task")
    idle = {("constraint", "none"), ("clusterer", "none"), ("quantizer", "ternary-mse")}
    from hybridkit.bench.convergence.trials import Trial

    used = {
        (kind, name)
        for setting in CORE
        for method in METHODS.values()
        if method.suits(setting)
        for kind in kinds
        if (name := getattr(Trial(setting, method, 0).config(), kind)) is not None
    }
    assert used - idle <= set(COMPONENTS)
    assert {identity(kind, name) for kind, name in used}  # each has one
