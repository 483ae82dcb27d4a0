"""One value that says how a network is quantised."""

import contextlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hybridkit.errors import FileError, UsageError
from hybridkit.quant.binary import Binary
from hybridkit.quant.config import Channel, Group, QuantConfig, Tensor, config_from, parse_granularity
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.post_training import quantize
from hybridkit.quant.prepare import prepare_qat, prepare_qat_, prepared

granularities = st.one_of(st.just(Tensor()), st.just(Channel()), st.integers(1, 10**9 - 1).map(Group))
specs = st.one_of(
    st.text(max_size=9),
    st.fixed_dictionaries({"quantizer": st.text(max_size=9)}, optional={"bits": st.integers(1, 8)}),
)
configs = st.builds(
    QuantConfig,
    weights=specs,
    granularity=granularities,
    activations=st.just("float"),
    layers=st.dictionaries(st.text(max_size=9), specs, max_size=3),
    quantize_all=st.booleans(),
    embeddings=st.sampled_from([None, 4, 8]),
    target_bits=st.none() | st.floats(1, 8),
    compute=st.sampled_from(["fp32", "model"]),
)


@given(configs)
def test_json_and_back(config):
    assert QuantConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@given(granularities)
def test_granularities_as_text(granularity):
    assert parse_granularity(str(granularity)) == granularity


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from([*QuantConfig().to_json(), "granulrity"])


@given(st.dictionaries(fields, json_values, max_size=3) | json_values)
def test_anything_else_is_one_line(value):
    with contextlib.suppress(FileError):
        assert isinstance(QuantConfig.from_json(value), QuantConfig)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"granularity": "row"}, "'row' is no granularity; say tensor, channel or group:SIZE"),
        ({"granularity": "group:0"}, "at least one weight"),
        ({"granularity": "group:x"}, "is no granularity"),
        ({"granularity": 64}, "64 is no granularity"),
        ({"activations": "int4"}, "no activation mode is called 'int4'"),
        ({"compute": "bf16", "activations": "float"}, "no compute type is called 'bf16'"),
        ({"compute": "model"}, "int8 activations are exact in fp32 only"),
        ({"layers": ["head"]}, "maps patterns"),
        ({"quantize_all": 1}, "True or False"),
        ({"embeddings": 2}, "embeddings take 8, 4 or 8-tensor, not 2"),
        ({"target_bits": 9}, "from 1 to 8 per weight, not 9"),
        ({"target_bits": "4"}, "from 1 to 8 per weight, not '4'"),
    ],
)
def test_what_makes_no_sense_is_said(fields, message):
    with pytest.raises(UsageError, match=message):
        QuantConfig(**fields)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "not described by a table"),
        ({"wieghts": "binary"}, "unknown entry 'wieghts'; did you mean 'weights'"),
        ({"weights": 3}, "a name or a table"),
        ({"layers": {"head": None}}, "a name or a table"),
        ({"granularity": None}, "damaged: None is no granularity"),
    ],
)
def test_damaged_descriptions(value, message):
    with pytest.raises(FileError, match=message):
        QuantConfig.from_json(value)


def test_keywords_build_the_same_value():
    config = config_from(
        None, QuantConfig(), quantizer="nbit", options={"bits": 8}, overrides={"a": "fp32"}, quantize_all=True
    )
    assert config == QuantConfig(
        weights={"quantizer": "nbit", "bits": 8}, layers={"a": "fp32"}, quantize_all=True
    )
    assert config_from(None, QuantConfig()) == QuantConfig()
    with pytest.raises(UsageError, match="beside a QuantConfig"):
        config_from(QuantConfig(), QuantConfig(), quantizer="binary")
    with pytest.raises(UsageError, match="go with a quantizer's name"):
        config_from(None, QuantConfig(), quantizer=Binary(), options={"granularity": "tensor"})


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))


def test_training_and_quantising_and_the_file_share_it():
    how = QuantConfig(
        weights="ternary-mse", granularity=Group(5), activations="float", layers={"2": "binary"}
    )
    model = prepare_qat_(network(), how)
    assert prepared(model).config == how
    trained, afterwards = quantize(model).packed, quantize(network(), how).packed
    for packed in (trained, afterwards):
        assert QuantConfig.from_json(packed.metadata["quantization"]) == how
    for name, layer in trained.layers.items():
        assert (layer.codes == afterwards.layers[name].codes).all()
        assert (layer.scale == afterwards.layers[name].scale).all()
        assert layer.activations == afterwards.layers[name].activations == "float"


def test_embeddings_may_have_bits_of_their_own():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Linear(8, 9))
    model[2].weight = model[0].weight
    for more in ({}, {"target_bits": 2.0}):
        packed = quantize(model, embeddings=8, **more).packed
        assert packed.layers["0"].codec == "nbit8"
        assert packed.tied == {"2.weight": "0.weight"}
        assert packed.layers["1"].bits <= 2
    kept = quantize(model, embeddings=4, overrides={"0": "fp32", "2": "fp32"})
    assert [row.name for row in kept.left_alone] == ["0", "2"]


def test_an_object_is_not_written_down():
    how = QuantConfig(weights=Binary())
    with pytest.raises(UsageError, match="Binary is an object"):
        how.to_json()
    assert "quantization" not in quantize(network(), how).packed.metadata


def test_code_that_it_names_is_known_before_it_is_imported():
    how = QuantConfig(weights="mine:Quantizer", layers={"a": {"quantizer": "other:Thing"}, "b": "binary"})
    assert how.targets == ["mine:Quantizer", "other:Thing"]


def test_bits_are_spent_in_training_too():
    model = prepare_qat_(network(), QuantConfig(weights="ternary-mse", target_bits=2.0))
    assert set(qat_layers(model)) == {"0", "2"}
    assert prepared(model).config.target_bits is None
    assert set(prepared(model).config.layers) == {"0", "2"}


def test_the_old_name_is_the_same_function():
    assert prepare_qat is prepare_qat_
    assert prepared(network()) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float_mode_in_the_models_own_type(dtype):
    how = QuantConfig(weights="ternary-absmean", activations="float", compute="model")
    exact, model = prepare_qat_(network(), QuantConfig(activations="float")), prepare_qat_(network(), how)
    x = torch.randn(16, 12)
    assert torch.equal(model(x), exact(x))  # float32 stays float32
    with torch.autocast("cpu", dtype=dtype):
        assert model[0](x).dtype == dtype
        assert exact[0](x).dtype == torch.float32
        low = model(x)
        low.float().square().sum().backward()
    assert torch.equal(model[0](x.to(dtype)), model[0](x.to(dtype)))
    assert model[0](x.to(dtype)).dtype == dtype
    assert not torch.equal(low.float(), exact(x))
    torch.testing.assert_close(low.float(), exact(x), rtol=0.05, atol=0.05)
    exact(x).square().sum().backward()
    assert model[0].weight.grad.dtype == torch.float32
    torch.testing.assert_close(model[0].weight.grad, exact[0].weight.grad, rtol=0.1, atol=0.1)


def test_products_in_the_models_type_are_made_of_its_numbers():
    torch.manual_seed(0)
    model = prepare_qat_(
        nn.Linear(64, 8, bias=False), QuantConfig(activations="float", compute="model", quantize_all=True)
    )
    x = torch.randn(4, 64).bfloat16()
    quantized = model.quantized_weight()
    product = (x @ quantized.codes.bfloat16().T).float() * quantized.scale
    assert torch.equal(model(x), product.bfloat16())
