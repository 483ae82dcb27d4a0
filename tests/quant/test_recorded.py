"""hybridkit.json: how weights in a folder were quantised, written, read, damaged and applied."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hybridkit.errors import FileError, UsageError
from hybridkit.quant.config import Group, QuantConfig
from hybridkit.quant.layers import qat_layers, set_ramp
from hybridkit.quant.prepare import prepare_qat_
from hybridkit.quant.recorded import RECORD, Recorded, read_record, write_record
from hybridkit.sources.protocol import Code
from hybridkit.sources.recorded import as_recorded


class Crossed(nn.Module):
    """Its last Linear to run is the first one to be registered."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 4)
        self.head, self.body = nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))

    def forward(self, tokens):
        return self.head(self.body(self.table(tokens)))


@pytest.mark.parametrize(
    "config",
    [
        QuantConfig(),
        QuantConfig(weights="binary", granularity=Group(2), activations="float"),
        QuantConfig(embeddings=8),
        QuantConfig(quantize_all=True, layers={"body.0": {"quantizer": "nbit", "bits": 4}}),
        QuantConfig(weights="ternary-learned", layers={"body.2": "fp32"}),
        QuantConfig(target_bits=3.0),
        QuantConfig(insert_norms=True, quantize_all=True),
    ],
    ids=["default", "groups", "embeddings", "overrides", "learned", "bits", "norms"],
)
@pytest.mark.parametrize("shown", [True, False], ids=["with-inputs", "without"])
def test_a_record_makes_the_same_layers_of_a_fresh_network(tmp_path, config, shown):
    torch.manual_seed(0)
    tokens = torch.arange(8)
    if config.insert_norms and not shown:
        pytest.skip("norms need example inputs")
    trained = prepare_qat_(Crossed(), config, example_inputs=(tokens,) if shown else None)
    set_ramp(trained, 0.5)
    assert write_record(trained, tmp_path)
    fresh = Crossed()
    read_record(tmp_path).apply_(fresh)
    fresh.load_state_dict(trained.state_dict())
    assert Recorded.of(fresh).layers == Recorded.of(trained).layers
    assert bool(Recorded.of(fresh).attached) == config.insert_norms
    assert torch.equal(fresh(tokens), trained(tokens))


def test_nothing_is_recorded_of_a_plain_network(tmp_path):
    assert not write_record(Crossed(), tmp_path)
    assert read_record(tmp_path) is None


def test_a_quantizer_that_is_an_object_cannot_be_recorded(tmp_path):
    layer = next(iter(qat_layers(prepare_qat_(Crossed())).values()))
    network = prepare_qat_(Crossed(), QuantConfig(weights=layer.quantizer))
    with pytest.raises(UsageError, match="name the quantizer"):
        write_record(network, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_record_of_another_network_is_refused(tmp_path):
    write_record(prepare_qat_(Crossed()), tmp_path)
    with pytest.raises(FileError, match="is it the same network"):
        read_record(tmp_path).apply_(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))


def test_code_that_only_a_record_names_is_not_imported(tmp_path):
    record = {"format": "hybridkit-quantization", "version": 1, "layers": {}, "ramp": 1.0, "attached": {}}
    record["quantization"] = {"weights": "no_such_module:Quantizer"}
    (tmp_path / RECORD).write_text(json.dumps(record))
    with pytest.raises(UsageError, match="never imported; say --quantizer no_such_module:Quantizer"):
        as_recorded(Crossed(), tmp_path, dict, Code())


GOOD = {
    "format": "hybridkit-quantization",
    "version": 1,
    "quantization": QuantConfig().to_json(),
    "layers": {"body.0": "ternary-absmean"},
    "ramp": 1.0,
    "attached": {"body.0.input_norm.weight": [4]},
}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@given(key=st.sampled_from(sorted(GOOD)), value=VALUES)
def test_a_record_that_says_anything_else_is_one_line_or_a_record(tmp_path_factory, key, value):
    folder = tmp_path_factory.mktemp("record")
    (folder / RECORD).write_text(json.dumps({**GOOD, key: value}))
    try:
        assert isinstance(read_record(folder), Recorded)
    except FileError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is fine


@given(content=st.binary(max_size=200))
def test_a_record_that_is_anything_at_all_is_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("record")
    (folder / RECORD).write_bytes(content)
    with pytest.raises(FileError):
        read_record(folder)
