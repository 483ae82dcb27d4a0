from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from hybridkit.cli import load_verb
from hybridkit.errors import FileError, UsageError
from hybridkit.quant.layers import QATLayer
from hybridkit.training.config import TrainConfig, named_targets, resolve
from hybridkit.training.trainer import Trainer


def quantized(**flags: Any) -> tuple[str | None, bool, str]:
    config = resolve(**flags)
    return config.quantizer, config.qat, config.activations


def test_what_the_quantisation_flags_mean() -> None:
    assert quantized() == (None, False, "float")
    assert quantized(ternary=True) == ("ternary-mse", False, "float")
    assert quantized(qat=True) == ("binary", True, "int8")
    assert quantized(ternary=True, qat=True) == ("ternary-absmean", True, "int8")
    assert quantized(qat=True, quantizer="nbit") == ("nbit", True, "int8")
    assert quantized(ternary=True, qat=True, quantizer="ternary-mse") == ("ternary-mse", True, "int8")
    assert quantized(ternary=True, qat=True, learnable_scale=True) == ("ternary-learned", True, "int8")
    assert quantized(qat=True, target_bits=2.0) == (None, True, "int8")
    assert quantized(qat=True, activations="float")[2] == "float"


def test_layers_have_quantizers_of_their_own() -> None:
    config = TrainConfig(qat=True, quantizer="binary", layer=["hidden.0=fp32", "hidden.2=mine:Quantizer"])
    assert config.quantization.layers == {"hidden.0": "fp32", "hidden.2": "mine:Quantizer"}
    assert named_targets(config) == {"layer[1]": "mine:Quantizer"}
    again = TrainConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config
    chosen = resolve(ternary=True, qat=True, layer=["hidden.0=fp32", "*.3=binary"])
    layers = Trainer.seeded(dataclasses.replace(chosen, max_steps=1)).model.hidden
    assert not isinstance(layers[0], QATLayer)
    assert layers[3].quantizer.levels == (-1, 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"ternary": True, "qat": True, "quantizer": "binary"}, "not ternary"),
        ({"quantizer": "binary"}, "needs --qat"),
        ({"layer": ["hidden.0=fp32"]}, "--layer needs --qat"),
        ({"qat": True, "target_bits": 2.0, "layer": ["hidden.0=fp32"]}, "drop --layer"),
        ({"qat": True, "layer": ["hidden.0"]}, "expected PATTERN=QUANTIZER"),
        ({"qat": True, "layer": ["hidden.0=nothing"]}, "no quantizer is called 'nothing'"),
        ({"learnable_scale": True, "qat": True}, "add --ternary --qat"),
        (
            {"learnable_scale": True, "qat": True, "ternary": True, "quantizer": "ternary-mse"},
            "ternary-learned",
        ),
        ({"target_bits": 2.0}, "--qat alone"),
        ({"target_bits": 2.0, "qat": True, "ternary": True}, "--qat alone"),
        ({"target_bits": 9.0, "qat": True}, "target-bits is 9.0"),
        ({"quantize_all": True}, "--quantize-all needs"),
        ({"ramp": 0.5}, "--ramp needs --qat"),
        ({"alpha": 0.3}, "need --teacher"),
        ({"teacher": "r", "alpha": 1.5}, "alpha is 1.5"),
        ({"sampler": "per-cluster"}, "needs a clusterer"),
        ({"sampler": "sorted"}, "sampler is 'sorted'"),
        ({"activations": "int4", "qat": True}, "activations is 'int4'"),
        ({"lr": 0.0}, "lr is 0.0: Input should be greater than 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"batch_size": 0}, "batch-size is 0"),
        ({"epochs": -1}, "epochs is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"qat": True, "quantizer": "binry"}, "did you mean 'binary'"),
        ({"lr_controller": "aux"}, "no lr-controller is called 'aux'"),
        ({"options": {"lr_controller": {"hidden_size": "3"}}}, "the run has none"),
    ],
)
def test_contradictions_and_mistakes_are_usage_errors(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        resolve(**flags)
    assert "\n" not in str(error.value)


def test_hybrid_switches_everything_on_and_each_part_can_be_named() -> None:
    hybrid = resolve(hybrid=True)
    assert None not in (hybrid.lr_controller, hybrid.clusterer, hybrid.constraint)
    assert (hybrid.optimizer, hybrid.clusterer, hybrid.sampler) == ("steepest", "none", "shuffle")
    for asked in ({"data_clusters": 8}, {"sampler": "balanced"}, {"clusterer": "kmeans"}):
        clustered = resolve(hybrid=True, **asked)
        assert (clustered.clusterer, clustered.sampler) == ("kmeans", "balanced")
    fine = resolve(hybrid=True, task="causal-lm", model="hf:owner/name")
    assert (fine.optimizer, fine.lr_controller, fine.constraint) == ("adamw", "cosine", "l2")
    named = resolve(hybrid=True, task="causal-lm", model="hf:owner/name", optimizer="steepest")
    assert (named.optimizer, named.lr_controller) == ("steepest", "cosine")
    assert resolve(hybrid=True, lr_controller="cosine").lr_controller == "cosine"
    assert resolve(hybrid=True, sampler="per-cluster").sampler == "per-cluster"
    plain = resolve()
    assert (plain.lr_controller, plain.clusterer, plain.constraint, plain.sampler) == (
        None,
        None,
        None,
        "shuffle",
    )
    assert not plain.uses_hybrid_optimizer
    assert resolve(lr_controller="cosine").uses_hybrid_optimizer


def test_the_end_of_a_run() -> None:
    assert resolve().total_steps(10) == 200
    assert resolve(max_steps=500).total_steps(10) == 500
    assert resolve(max_steps=500, epochs=3).total_steps(10) == 30
    assert resolve(max_steps=7, epochs=3).total_steps(10) == 7
    with pytest.raises(UsageError, match="needs an end"):
        TrainConfig(epochs=None)


def test_the_command_line_is_made_from_the_declaration() -> None:
    options = {p.name: p for p in load_verb("train").params}
    for field in dataclasses.fields(TrainConfig):
        if field.name in ("checkpoint_every", "keep_checkpoints", "processes", "options"):
            continue  # for Python only
        option = options[field.name]
        assert option.opts == ["--" + field.name.replace("_", "-")]
        assert option.default is (False if isinstance(field.default, bool) else None)
        assert "{" not in option.help
    assert "(32)" in options["batch_size"].help


def test_json_round_trip() -> None:
    config = resolve(
        hybrid=True, ternary=True, qat=True, options={"constraint": {}, "lr_controller": {"a": 1}}
    )
    assert config.options == {"lr_controller": {"a": 1}}
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("value", [None, [], {"lr": "fast"}, {"lrr": 1.0}, {"epochs": None}])
def test_a_damaged_configuration_is_a_file_error(value: Any) -> None:
    with pytest.raises(FileError):
        TrainConfig.from_json(value)


def test_python_code_is_told_from_registered_names() -> None:
    config = TrainConfig(model="mine:Net", optimizer="hybridkit:adamw", task="digits")
    assert named_targets(config) == {"model": "mine:Net"}
