"""What parameters are for is found in modules, in tying and in the graph; names change no bit."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from renaming import renamed
from role_networks import IMAGES, TOKENS, VECTORS, Bare, FunctionallyTied, Mixer, TiedText, convnet
from torch import nn

from benchmarks.heldout import letters, satellite
from hybridkit.errors import UsageError
from hybridkit.optim import roles as roles_module
from hybridkit.optim.base import build_base_optimizer
from hybridkit.optim.factory import hybrid_optimizer
from hybridkit.optim.roles import Role, RoleNames, parameter_roles, roles_by_shape
from hybridkit.quant.prepare import prepare_qat
from hybridkit.tasks.digits import Digits
from hybridkit.tasks.fashion_mnist import FashionMNIST
from hybridkit.tasks.models.mlp import MLP
from hybridkit.tasks.models.transformer import Shape, Transformer, transformer_04m, transformer_3m


@pytest.fixture(autouse=True)
def _fresh():
    roles_module._say.cache_clear()  # what was said in another test may be said again
    torch.manual_seed(0)


def by_role(found):
    """The names of the matrices, by role."""
    return {
        role: names
        for role in ("embedding", "output", "hidden")
        if (names := [name for name, of in found.items() if of == role])
    }


# --- our own networks, with the roles that they have always had


def hidden_of_blocks(count):
    names = ("attention.query", "attention.key", "attention.value", "attention.output", "mlp.up", "mlp.down")
    return [f"blocks.{i}.{name}.weight" for i in range(count) for name in names]


OWN = {
    "transformer-0.4m": (
        transformer_04m,
        TOKENS,
        {"embedding": ["embedding.weight"], "hidden": hidden_of_blocks(2)},
    ),
    "transformer-3m": (
        transformer_3m,
        TOKENS,
        {"embedding": ["embedding.weight"], "hidden": hidden_of_blocks(2)},
    ),
    "digits": (
        next(iter(Digits().models.values())),
        torch.ones(2, 64),
        {"output": ["output.weight"], "hidden": ["hidden.0.weight", "hidden.3.weight"]},
    ),
    "fashion-mnist": (
        next(iter(FashionMNIST().models.values())),
        torch.ones(2, 1, 28, 28),
        {"output": ["output.weight"], "hidden": [f"features.{i}.weight" for i in (0, 3, 6, 9)]},
    ),
    "letters": (
        letters.network,
        torch.ones(2, 16),
        {"output": ["output.weight"], "hidden": ["hidden.0.weight", "hidden.3.weight"]},
    ),
    "satellite": (
        satellite.network,
        torch.ones(2, 36),
        {"output": ["output.weight"], "hidden": ["hidden.0.weight", "hidden.3.weight"]},
    ),
}


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("inputs_given", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_our_networks_keep_their_roles(name, inputs_given, quantized, caplog):
    make, inputs, expected = OWN[name]
    model = make()
    if quantized:
        model = prepare_qat(model, quantizer="ternary-learned", quantize_all=True)
    found = parameter_roles(model, (inputs,) if inputs_given else None)
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert by_role(found) == expected
    assert all((found[n] == Role.VECTOR) == (p.ndim < 2) for n, p in model.named_parameters())
    assert not caplog.records


# --- other people's networks


@pytest.mark.parametrize(
    ("make", "inputs", "expected"),
    [
        (
            TiedText,
            TOKENS,
            {
                "embedding": ["positions", "tok_emb.weight"],
                "hidden": ["mixing.weight", "up.weight", "down.weight"],
            },
        ),
        (
            FunctionallyTied,
            TOKENS,
            {
                "embedding": ["positions", "tok_emb.weight"],
                "hidden": ["mixing.weight", "up.weight", "down.weight"],
            },
        ),
        (Mixer, VECTORS, {"output": ["a.weight"], "hidden": ["patch_embed.weight", "output.weight"]}),
        (
            Bare,
            TOKENS,
            {"output": ["head"], "embedding": ["table", "token"], "hidden": ["inner", "unused"]},
        ),
        (convnet, IMAGES, {"output": ["4.weight"], "hidden": ["0.weight"]}),
    ],
)
def test_the_graph_says_what_names_do_not(make, inputs, expected):
    assert by_role(parameter_roles(make(), (inputs,))) == expected


def test_torchs_own_layers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag = nn.EmbeddingBag(5, 4)
            self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.lstm, self.norm = nn.LSTM(4, 4, batch_first=True), nn.LayerNorm((3, 4))
            self.shared = nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))
            self.other = nn.Linear(4, 5)

        def forward(self, x):
            y = self.bag(x).unsqueeze(1).expand(-1, 3, -1)
            y = self.norm(self.lstm(self.encoder(y))[0])
            return self.other(y) + self.shared(y)

    found = parameter_roles(Net(), (torch.zeros(2, 3, dtype=torch.long),))
    assert found["bag.weight"] == Role.EMBEDDING
    assert found["norm.weight"] == Role.VECTOR
    assert {n for n, role in found.items() if role == Role.OUTPUT} == {
        "shared.parametrizations.weight.original0",  # which runs last
        "shared.parametrizations.weight.original1",
    }
    for name in ("encoder.self_attn.in_proj_weight", "encoder.linear1.weight", "lstm.weight_hh_l0"):
        assert found[name] == Role.HIDDEN


def test_without_inputs_the_last_registered_layer_is_the_output():
    found = parameter_roles(Mixer())
    assert (found["a.weight"], found["output.weight"]) == (Role.HIDDEN, Role.OUTPUT)


def test_a_vector_in_disguise_is_one(caplog):
    assert parameter_roles(Mixer())["gain"] == parameter_roles(Mixer(), (VECTORS,))["gain"] == Role.VECTOR
    assert not caplog.records


def test_a_compiled_model_is_looked_at_uncompiled():
    model = torch.compile(Mixer(), backend="eager")
    found = parameter_roles(model, (VECTORS,))
    assert found["_orig_mod.a.weight"] == Role.OUTPUT


def test_looking_leaves_the_model_alone():
    model = convnet().train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    parameter_roles(model, (IMAGES,))
    assert [m.training for m in model] == [True, False, True, True, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(not m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


# --- what stays undecided, and saying it


def test_what_is_undecided_is_said_once_in_one_line(caplog):
    for _ in range(2):
        found = parameter_roles(TiedText())
    assert found["positions"] == Role.HIDDEN
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "what positions is for does not show" in record.getMessage()
    assert "\n" not in record.getMessage()
    caplog.clear()
    assert parameter_roles(TiedText(), given={"positions": "embedding"})["positions"] == Role.EMBEDDING
    assert parameter_roles(TiedText(), (TOKENS,))["positions"] == Role.EMBEDDING
    assert not caplog.records


def test_parameters_without_a_model(caplog):
    named = list(TiedText().named_parameters())
    optimizer = build_base_optimizer("steepest", iter(named), lr=0.1)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(named)
    assert "the last, down.weight, as the output" in caplog.records[0].getMessage()
    build_base_optimizer("steepest", iter(named), lr=0.1)
    assert len(caplog.records) == 1
    caplog.clear()
    known = dict(parameter_roles(TiedText(), (TOKENS,)))
    assert roles_by_shape(named, known) == known
    build_base_optimizer("adamw", iter(named), lr=0.1)  # to which all matrices are the same
    assert not caplog.records


def test_roles_can_be_set():
    model = Mixer()
    found = parameter_roles(model, given={"a.weight": "output"})
    assert by_role(found)["output"] == ["a.weight"]
    with pytest.raises(UsageError, match=r"no parameter is called 'a.wait'; did you mean 'a.weight'"):
        parameter_roles(model, given={"a.wait": "output"})
    with pytest.raises(UsageError, match="cannot be 'outputs'; did you mean 'output'"):
        parameter_roles(model, given={"a.weight": "outputs"})
    with pytest.raises(UsageError, match=r"'a.bias' has fewer than two dimensions"):
        parameter_roles(model, given={"a.bias": "output"})
    found = parameter_roles(model)
    names = RoleNames(embedding_names="A.*", hidden_names="nothing, out*")
    changed = {"a.weight": Role.EMBEDDING, "output.weight": Role.HIDDEN}
    known = names.known(list(model.named_parameters()), found)
    assert known == {**found, **changed}  # the bias of `a` stays a vector
    optimizer = build_base_optimizer("steepest", model, lr=0.1, options={"embedding_names": "a.*"})
    assert optimizer.param_groups[1]["params"][0] is model.a.weight


def test_what_was_set_is_not_said(caplog):
    build_base_optimizer("steepest", TiedText(), lr=0.1, options={"embedding_names": "pos*"})
    assert not caplog.records


# --- names change no bit


def transformer() -> nn.Module:
    return Transformer(Shape(width=8, layers=2, heads=2, kv_heads=1, hidden=16, vocabulary=11))


def mlp() -> nn.Module:
    return MLP(8, (16, 12), 3)


NETWORKS = [
    (transformer, TOKENS),
    (TiedText, TOKENS),
    (FunctionallyTied, TOKENS),
    (Bare, TOKENS),
    (mlp, VECTORS),
    (Mixer, VECTORS),
    (convnet, IMAGES),
]
SETTINGS = [
    {},
    {"lr_controller": "aux-nn", "constraint": "per-cluster"},
    {"optimizer": "muon", "constraint": "per-layer"},
]


def trained(model, inputs, qat, settings, example_inputs):
    if qat:
        prepare_qat(model, quantizer="ternary-absmean", example_inputs=(inputs,))
    optimizer = hybrid_optimizer(
        model, 4, parameter_clusters=3, example_inputs=(inputs,) if example_inputs else None, **settings
    )
    for step in range(4):
        optimizer.zero_grad()
        loss = (model(inputs) - 0.1 * step).square().mean()
        optimizer.observe(loss)
        torch.autograd.backward(loss)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(NETWORKS),
    st.sampled_from(SETTINGS),
    st.booleans(),
    st.booleans(),
    st.lists(
        st.sampled_from(["embedding", "tok_emb", "head", "output", "wte", "a", "z", "classifier", "stem"]),
        min_size=1,
        max_size=9,
    ),
)
def test_renaming_every_module_changes_no_bit(network, how, qat, example_inputs, names):
    make, inputs = network
    if how.get("optimizer") == "muon" and make is convnet:
        return  # has no hidden matrix
    qat = qat and make is not Bare  # which has no layer to quantise
    results = []
    for rename in (False, True):
        torch.manual_seed(1)
        model = make()
        before = list(dict(model.named_parameters()))
        if rename:
            model = renamed(model, iter(names * 99))
            after = list(dict(model.named_parameters()))
            assert all(a != b for a, b in zip(before, after, strict=True))
        results.append(trained(model, inputs, qat, how, example_inputs))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a.view(torch.int32), b.view(torch.int32))
