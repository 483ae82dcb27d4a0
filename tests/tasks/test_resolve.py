from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.tasks.digits import Digits
from hybridkit.tasks.models.transformer import Transformer
from hybridkit.tasks.resolve import MEMBERS, make_model, make_task
from hybridkit.tasks.text import Text

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

STRANGERS = """
from torch import nn
from hybridkit.tasks.digits import Digits

ready = Digits()

class Sized(Digits):
    def __init__(self, size: int, shift: float = 0.0):
        super().__init__()
        self.size, self.shift = size, shift

def made():
    return Digits()

class Half:
    name = "half"
    models = {}
    def splits(self): ...

number = 3
network = nn.Linear(2, 2)

def needy(width):
    return nn.Linear(width, 2)

def text():
    return "not a module"
"""


@pytest.fixture
def strangers(tmp_path, monkeypatch):
    (tmp_path / "strangers.py").write_text(STRANGERS)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("strangers", None)
    yield importlib.import_module("strangers")
    sys.modules.pop("strangers", None)


def test_the_protocol_is_what_is_checked():
    assert set(MEMBERS) == {
        *("name", "models", "metric", "metric_goal", "input_names", "dynamic_axes", "splits", "inputs"),
        *("loss", "metrics", "cluster_features", "provenance"),
    }


@pytest.mark.parametrize("name", ["digits", "hybridkit:digits", "hybridkit.tasks.digits:Digits"])
def test_tasks_by_name(name):
    assert isinstance(make_task(name), Digits)


def test_options_reach_the_task():
    task = make_task("text", {"sequence_length": "64"})
    assert isinstance(task, Text)
    assert task.options.sequence_length == 64
    with pytest.raises(UsageError, match="did you mean 'sequence_length'"):
        make_task("text", {"sequence_lenght": 64})
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        make_task("digit")


def test_instances_classes_and_factories_of_strangers(strangers):
    assert make_task("strangers:ready") is strangers.ready
    assert isinstance(make_task("strangers:made"), Digits)
    task = make_task("strangers:Sized", {"size": "3"})
    assert (task.size, task.shift) == (3, 0.0)


def test_what_is_not_a_task_says_why(strangers):
    with pytest.raises(
        UsageError, match="lacks metric, metric_goal, input_names, dynamic_axes, inputs, loss"
    ):
        make_task("strangers:Half")
    with pytest.raises(UsageError, match="is a int, not a task"):
        make_task("strangers:number")
    with pytest.raises(UsageError, match="ready-made and takes no options; drop size"):
        make_task("strangers:ready", {"size": 3})
    with pytest.raises(UsageError, match=r"needs the option 'size'; give it with --set task\.size"):
        make_task("strangers:Sized")
    with pytest.raises(UsageError, match="did you mean 'ready'"):
        make_task("strangers:redy")


def test_models_by_name():
    task = make_task("text")
    torch.manual_seed(1)
    default = make_model(task)
    torch.manual_seed(1)
    named = make_model(task, "transformer-0.4m")
    assert isinstance(default, Transformer)
    assert all(torch.equal(a, b) for a, b in zip(default.parameters(), named.parameters(), strict=True))
    assert len(make_model(task, "transformer-3m").state_dict()["head.weight"][0]) == 384
    with pytest.raises(UsageError, match="did you mean 'transformer-3m'"):
        make_model(task, "transformer-3b")


def test_models_of_strangers(strangers):
    task = make_task("digits")
    assert isinstance(make_model(task, "torch.nn:Identity"), nn.Identity)
    copied = make_model(task, "strangers:network")
    assert copied is not strangers.network
    assert torch.equal(copied.weight, strangers.network.weight)
    with pytest.raises(UsageError, match="missing a required argument: 'width'; give a function"):
        make_model(task, "strangers:needy")
    with pytest.raises(UsageError, match="made a str"):
        make_model(task, "strangers:text")
    with pytest.raises(UsageError, match="is a int; it must be a module or make one"):
        make_model(task, "strangers:number")


def test_the_documented_example_is_a_task_that_learns(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    task = make_task("my_task:wine")
    splits = task.splits()
    assert task.provenance()["samples"] == {"train": 107, "validation": 27, "test": 44}
    assert task.cluster_features(splits.train).shape == (107, 13)
    torch.manual_seed(0)
    model = make_model(task)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(model(*task.inputs(splits.train)), splits.train).backward()
        optimizer.step()
    with torch.no_grad():
        metrics = task.metrics(model(*task.inputs(splits.test)), splits.test)
    assert metrics["accuracy"] > 0.9


def test_the_documentation_names_every_task_model_and_option():
    from hybridkit.options import describe_options
    from hybridkit.registry import registry

    text = (EXAMPLES.parent / "tasks.md").read_text()
    example = (EXAMPLES / "my_task.py").read_text()
    assert example[example.index("import torch") :].strip() in text
    for entry in registry().entries:
        if entry.strategy.kind == "task" and entry.distribution == "hybridkit":
            kind = registry().load("task", entry.strategy.name)
            options = describe_options(kind) if hasattr(kind, "Options") else {}
            # a task of pretrained networks has the one that the user names
            models = () if "model" in options else registry().create("task", entry.strategy.name).models
            for word in (entry.strategy.name, *models, *options):
                assert f"`{word}`" in text, f"docs/tasks.md does not mention {word}"
