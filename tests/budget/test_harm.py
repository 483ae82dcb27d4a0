"""What a layer costs a network: as trying it in the network says, which is left as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from hybridkit.budget.harm import Probe, harms, outputs_of
from hybridkit.budget.making import matrix_shape
from hybridkit.budget.options import OPTIONS
from hybridkit.budget.quality import distance_from
from hybridkit.errors import UsageError
from hybridkit.packing.layers import PackedLayer
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.plan import plan_layers
from hybridkit.quant.post_training import quantize
from hybridkit.tasks.models.transformer import Shape, Transformer

SHAPE = Shape(width=64, layers=3, heads=4, kv_heads=2, hidden=128, vocabulary=50)
LABELS = [option.label for option in OPTIONS]


def network():
    torch.manual_seed(0)
    return Transformer(SHAPE).eval()


def units(model):
    plans = plan_layers(model, QuantConfig(quantize_all=True))
    tied = {}
    for plan in plans:
        if plan.quantizer is not None:
            tied.setdefault(plan.layer.weight, []).append(plan.layer)
    return [tuple(unit) for unit in tied.values()]


def probe(model):
    inputs = [[torch.randint(0, SHAPE.vocabulary, (4, 24), generator=torch.Generator().manual_seed(1))]]
    return Probe(inputs, [None], distance_from(outputs_of(model, inputs), [None]))


def test_it_is_what_trying_the_layer_gives():
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = harms(model, units(model), OPTIONS, probe(model))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert found.shape == (len(units(model)), len(OPTIONS))
    assert (found > 0).all()
    assert np.isfinite(found).all()
    place = LABELS.index("4 bits g32")
    for number in (0, len(found) // 2, len(found) - 1):
        [layer, *_] = units(model)[number]
        alone = copy.deepcopy(model)
        weight = alone.get_parameter(layer.weight)
        codes = OPTIONS[place].quantizer.quantize(layer.matrix(weight))
        with torch.no_grad():
            weight.copy_(codes.dequantize().view(weight.shape))
        given = probe(model)
        direct = given.distance(outputs_of(alone, given.batches))
        assert found[number, place] == pytest.approx(direct, rel=1e-3)


def test_more_bits_harm_less():
    model = network()
    found = dict(zip(LABELS, harms(model, units(model), OPTIONS, probe(model)).T, strict=True))
    for more, less in [("8 bits", "4 bits g32"), ("4 bits g32", "2 bits g32"), ("2 bits g32", "binary g64")]:
        assert found[more].sum() < found[less].sum(), (more, less)


def test_a_network_without_blocks_and_a_layer_that_does_not_run():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.idle = nn.Linear(16, 32), nn.Linear(32, 4), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(self.a(x).relu())

    model = Net().eval()
    inputs = [[torch.randn(20, 16)]]
    given = Probe(inputs, [None], distance_from(outputs_of(model, inputs), [None]))
    found = harms(model, units(model), OPTIONS, given)
    assert found[2].max() < 1e-6 < found[0].max()


def test_weights_that_are_not_finite_are_an_error():
    model = network()
    with torch.no_grad():
        next(iter(model.parameters()))[0, 0] = float("nan")
    with pytest.raises(UsageError, match="not finite"):
        harms(model, units(network()), OPTIONS, probe(network()))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("codec", [None, "base3"])
@pytest.mark.parametrize("option", OPTIONS, ids=LABELS)
def test_bytes_are_those_of_the_packed_layer(option, codec, half):
    model = nn.Sequential(nn.Linear(100, 7))
    how = {"codec": codec} if codec and len(option.quantizer.levels) == 3 else {}
    config = QuantConfig(weights=option.spec, quantize_all=True, activations="float")
    made = quantize(model, config, float_dtype="fp16" if half else None, **how)
    [layer] = made.packed.layers.values()
    assert isinstance(layer, PackedLayer)
    [unit] = units(model)
    expected = sum(array.nbytes for array in layer.arrays())
    short = half and layer.scale_type == "F16"  # where that is harmless
    assert option.bytes(matrix_shape(unit), codec, short) == expected
