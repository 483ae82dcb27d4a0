"""Which layers are quantised, and why the others are not."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from hybridkit.errors import UsageError
from hybridkit.quant.binary import Binary
from hybridkit.quant.config import QuantConfig, config_from
from hybridkit.quant.layers import QATLinear
from hybridkit.quant.nbit import NBit
from hybridkit.quant.plan import make_quantizer
from hybridkit.quant.plan import plan_layers as plan_config


def plan_layers(model, *, example_inputs=None, **keywords):
    return plan_config(model, config_from(None, QuantConfig(), **keywords), example_inputs=example_inputs)


class Language(nn.Module):
    """An embedding tied to a head that is registered first but runs last."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 20, bias=False)
        self.embed = nn.Embedding(20, 8)
        self.mix = nn.Conv1d(8, 8, 3, padding=1)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.mix(self.embed(tokens).transpose(1, 2)).transpose(1, 2)
        return self.head(self.down(self.up(x)))


TOKENS = torch.tensor([[1, 2, 3]])


def table(plans):
    return {plan.name: plan.quantizer_name if plan.quantizer else plan.reason for plan in plans}


def mlp():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))


def test_all_but_the_last_linear():
    assert table(plan_layers(mlp())) == {"0": "ternary-absmean", "2": "ternary-absmean", "4": "last Linear"}


def test_the_last_linear_is_the_last_to_run_where_that_can_be_seen():
    model = Language()
    model.head.weight = nn.Parameter(torch.randn(20, 8))
    assert table(plan_layers(model))["down"] == "last Linear"
    model.up.eval()
    found = table(plan_layers(model, example_inputs=(TOKENS,)))
    assert found["head"] == "last Linear"
    assert found["down"] == "ternary-absmean"
    assert model.training
    assert not model.up.training
    assert not model.head._forward_hooks


def test_a_linear_that_other_weights_come_after_is_no_head():
    encoder = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4), nn.LayerNorm(4), nn.Identity())
    assert table(plan_layers(encoder, example_inputs=(torch.randn(2, 4),))) == {
        "0": "ternary-absmean",
        "2": "ternary-absmean",
    }
    assert table(plan_layers(encoder))["2"] == "last Linear"  # not seen to run


def test_what_shares_a_weight_with_an_embedding_stays_with_it():
    found = table(plan_layers(Language(), example_inputs=(TOKENS,)))
    assert found == {
        "head": "last Linear",
        "embed": "embedding",
        "mix": "ternary-absmean",
        "up": "ternary-absmean",
        "down": "ternary-absmean",
    }
    assert "shares its weight" in table(plan_layers(Language()))["head"]


def test_quantize_all_takes_every_layer():
    assert set(table(plan_layers(Language(), quantize_all=True, quantizer="binary")).values()) == {"binary"}


def test_overrides_win_and_the_last_one_counts():
    plans = plan_layers(
        mlp(),
        quantizer="nbit",
        options={"bits": 8},
        overrides={"[02]": {"quantizer": "nbit", "bits": 2}, "2": "fp32", "4": "binary"},
    )
    assert table(plans) == {"0": "nbit", "2": "asked for full precision", "4": "binary"}
    assert plans[0].quantizer.bits == 2


def test_tied_layers_get_one_quantizer():
    spec = {"quantizer": "nbit", "bits": 4}
    plans = plan_layers(Language(), overrides={"head": dict(spec), "embed": dict(spec)})
    assert {p.name: p.quantizer_name for p in plans if p.name in ("head", "embed")} == {
        "head": "nbit",
        "embed": "nbit",
    }
    with pytest.raises(UsageError, match="'head' and 'embed' share one weight"):
        plan_layers(Language(), overrides={"head": "binary"})
    with pytest.raises(UsageError, match="share one weight"):
        plan_layers(Language(), overrides={"head": spec, "embed": {**spec, "bits": 8}})


def test_a_shared_module_counts_once_and_answers_to_both_names():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, shared, nn.Linear(4, 2))
    assert table(plan_layers(model)) == {"0": "ternary-absmean", "2": "last Linear"}
    assert table(plan_layers(model, overrides={"1": "binary"}))["0"] == "binary"


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_layers_that_cannot_be_quantised_say_why():
    class Mine(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2),
            "mine": Mine(4, 4),
            "lazy": nn.LazyLinear(4),
            "old_norm": weight_norm(nn.Linear(4, 4)),
            "new_norm": parametrizations.weight_norm(nn.Linear(4, 4)),
            "bounded": nn.Embedding(4, 4, max_norm=1.0),
            "first": nn.Linear(4, 4),
            "last": nn.Linear(4, 4),
        }
    )
    found = table(plan_layers(model, quantize_all=True))
    assert found["first"] == found["last"] == "ternary-absmean"
    assert "past any layer" in found["attention"]
    assert "past any layer" in found["attention.out_proj"]
    assert "Mine is a subclass" in found["mine"]
    assert "no shape yet" in found["lazy"]
    assert "computed" in found["old_norm"]
    assert "computed" in found["new_norm"]
    assert "max_norm" in found["bounded"]


@pytest.mark.parametrize(
    ("model", "kwargs", "message"),
    [
        (nn.Sequential(nn.ReLU()), {}, "no Linear, Conv1d, Conv2d or Embedding"),
        (nn.Sequential(nn.Linear(2, 2)), {}, r"nothing to quantise: 0 \(last Linear\)"),
        (nn.Linear(2, 2), {}, r"the model \(last Linear\)"),
        (mlp(), {"overrides": {"hidden.*": "binary"}}, "'hidden.\\*' matches no layer"),
        (mlp(), {"overrides": {"1": "binary"}}, "'1' matches no layer"),
        (mlp(), {"quantizer": "ternry-mse"}, "did you mean 'ternary-mse'"),
        (mlp(), {"overrides": {"0": {"bits": 4}}}, "names no quantizer"),
        (mlp(), {"quantizer": "nbit", "options": {"bit": 4}}, "did you mean 'bits'"),
        (mlp(), {"quantizer": Binary(), "options": {"bits": 4}}, "go with a quantizer's name"),
        (mlp(), {"quantizer": Binary}, "or an instance"),
        (mlp(), {"quantizer": 3}, "or an instance"),
        (nn.Sequential(QATLinear.adopt(nn.Linear(2, 2), Binary())), {}, "only once"),
    ],
)
def test_what_makes_no_sense_is_said(model, kwargs, message):
    with pytest.raises(UsageError, match=message):
        plan_layers(model, **kwargs)


def test_specifications_of_quantizers():
    assert make_quantizer("fp32") == (None, "fp32")
    mine = NBit()
    assert make_quantizer(mine) == (mine, "NBit")
    quantizer, name = make_quantizer({"quantizer": "nbit", "bits": "8"})
    assert (quantizer.bits, name) == (8, "nbit")
    assert make_quantizer("hybridkit.quant.nbit:NBit", {"bits": 2})[0].bits == 2
