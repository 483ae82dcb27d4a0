"""prepare_qat: it swaps layers and adds nothing; small networks train well with it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.quant.convert import convert
from hybridkit.quant.layers import QATConv2d, QATEmbedding, QATLinear, qat_layers
from hybridkit.quant.nbit import NBit
from hybridkit.quant.prepare import full_precision_copy, prepare_qat, prepared, quantize_spared_


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(F.relu(self.hidden(self.embed(tokens))))


def small_net():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    )


def test_it_works_in_place_on_the_layers_alone():
    model = small_net()
    before, parameters = dict(model.named_modules()), dict(model.named_parameters())
    keys = list(model.state_dict())
    assert prepare_qat(model) is model
    assert list(model.state_dict()) == keys
    after = dict(model.named_modules())
    assert {name for name in after if after[name] is not before.get(name)} == {"0.quantizer_parameters"}
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert type(model[0]) is QATConv2d
    assert type(model[4]) is nn.Linear


def test_the_model_may_be_a_layer_itself():
    layer = prepare_qat(nn.Linear(3, 2), quantize_all=True)
    assert type(layer) is QATLinear
    assert qat_layers(layer) == {"": layer}


def test_tied_weights_stay_tied_and_learn_one_step():
    model = prepare_qat(Tied(), quantizer="ternary-learned", quantize_all=True)
    assert type(model.embed) is QATEmbedding
    assert model.head.weight is model.embed.weight
    assert model.head.quantizer_parameters["step"] is model.embed.quantizer_parameters["step"]
    assert torch.equal(model.head.quantized_weight().codes, model.embed.quantized_weight().codes)
    assert len(list(model.parameters())) == 6
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.tensor([[1, 2]])).square().sum().backward()
    optimizer.step()
    assert model.head.weight is model.embed.weight


def test_what_training_spared_can_be_quantised_later():
    model = prepare_qat(Tied(), activations="float")
    tokens = torch.tensor([[1, 2, 19]])
    before, trained = model(tokens), convert(model).layers["hidden"].codes
    quantize_spared_(model, 8)
    assert 0 < float((model(tokens) - before).norm() / before.norm()) < 0.02
    packed = convert(model)
    assert {name: layer.quantizer for name, layer in packed.layers.items()} == {
        "hidden": "ternary-absmean",
        "embed": "nbit",
    }
    assert packed.tied == {"head.weight": "embed.weight"}
    assert packed.metadata["quantization"]["embeddings"] == 8
    assert (packed.layers["hidden"].codes == trained).all()
    assert prepared(model).left_alone == ()
    with pytest.raises(UsageError, match="no embedding or head was left in full precision"):
        quantize_spared_(model, 8)
    with pytest.raises(UsageError, match="8, 4 or 8-tensor, not 5"):
        quantize_spared_(prepare_qat(Tied()), 5)
    with pytest.raises(UsageError, match="no embedding or head"):
        quantize_spared_(Tied(), 8)


def test_an_instance_serves_every_layer():
    quantizer = NBit(NBit.Options(bits=8))
    model = prepare_qat(Tied(), quantizer=quantizer, quantize_all=True, activations="float")
    assert all(layer.quantizer is quantizer for layer in qat_layers(model).values())
    plain = full_precision_copy(model)
    tokens = torch.tensor([[1, 2, 19]])
    assert (model(tokens) - plain(tokens)).norm() < 0.02 * plain(tokens).norm()


def test_the_float_twin_is_plain_and_apart():
    model = prepare_qat(small_net(), quantizer="ternary-learned")
    twin = full_precision_copy(model)
    assert not qat_layers(twin)
    assert type(twin[0]) is nn.Conv2d
    assert list(twin.state_dict()) == [k for k in model.state_dict() if "quantizer" not in k]
    with torch.no_grad():
        twin[0].weight.zero_()
    assert model[0].weight.any()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"activations": "int4"}, "no activation mode is called 'int4'"),
        ({"quantizer": "binry"}, "did you mean 'binary'"),
        ({"overrides": {"nope": "binary"}}, "matches no layer"),
    ],
)
def test_a_mistake_leaves_the_model_alone(kwargs, message):
    model = small_net()
    with pytest.raises(UsageError, match=message):
        prepare_qat(model, **kwargs)
    assert type(model[0]) is nn.Conv2d
    prepare_qat(model)
    with pytest.raises(UsageError, match="only once"):
        prepare_qat(model)


def test_weights_that_are_not_finite_are_named():
    model = small_net()
    model[0].weight.data[0] = float("nan")
    with pytest.raises(UsageError, match="layer '0' has weights that are not finite"):
        prepare_qat(model)


@pytest.mark.parametrize("mask", [None, torch.tensor([[False, False, True]])])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_torchs_encoder_does_not_read_past_the_layers_in_evaluation(mask):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential()
    model.encoder = nn.TransformerEncoder(layer, 2)
    model.head = nn.Linear(8, 2)
    prepare_qat(model, overrides={"*.linear2": "binary"})
    x = torch.randn(1, 3, 8)
    trained = model.encoder.train()(x, src_key_padding_mask=mask)
    with torch.no_grad():
        evaluated = model.encoder.eval()(x, src_key_padding_mask=mask)
    kept = slice(None) if mask is None else ~mask[0]
    torch.testing.assert_close(evaluated[:, kept], trained[:, kept])


def digits():
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return (x[order[:1300]], y[order[:1300]]), (x[order[1300:]], y[order[1300:]])


@pytest.mark.parametrize(
    ("quantizer", "activations"),
    [
        ("ternary-absmean", "int8"),
        ("ternary-mse", "float"),
        ("ternary-learned", "int8"),
        ("binary", "int8"),
        ("nbit", "float"),
    ],
)
def test_digits_are_learnt(quantizer, activations):
    (x, y), (test_x, test_y) = digits()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    prepare_qat(model, quantizer=quantizer, activations=activations)
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    for _ in range(5):
        for batch in torch.randperm(len(x)).split(33):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            schedule.step()
    accuracy = (model(test_x).argmax(dim=1) == test_y).float().mean().item()
    assert accuracy > 0.94
    moved = [k for k, v in model.state_dict().items() if not torch.equal(v, start[k])]
    assert moved == list(start)  # learned steps too
