"""A checkpoint is quantised without ever being in memory."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hybridkit.errors import UsageError
from hybridkit.packing.model import PackedModel
from hybridkit.quant.checkpoint import open_tensors
from hybridkit.quant.convert import _BLOCK
from hybridkit.quant.post_training import quantize, quantize_to_file

WIDTH, LAYERS = 4096, 12
LIMIT = 4 * WIDTH**2 + 200_000_000  # bytes of memory: the largest layer's and 200 MB
MEASURE = """
import sys, torch
from torch import nn
from hybridkit.quant.checkpoint import open_tensors
from hybridkit.quant.post_training import quantize_to_file

def memory(key):
    lines = open("/proc/self/status").readlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key + ":"))

source, target, width, layers = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
quantize_to_file(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), target)  # everything is imported
with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
before = memory("VmRSS")
quantize_to_file(
    model, target, quantizer="ternary-absmean", quantize_all=True, weights=open_tensors(source), codec="base3"
)
print(memory("VmHWM") - before)
"""


def sparse_checkpoint(folder):
    """Zeros that take no room on the disk, in two files with an index."""
    weights = {}
    for part in range(2):
        entries, size = {}, 0
        for i in range(part * LAYERS // 2, (part + 1) * LAYERS // 2):
            entries[f"{i}.weight"] = {
                "dtype": "F32",
                "shape": [WIDTH, WIDTH],
                "data_offsets": [size, size + 4 * WIDTH**2],
            }
            size += 4 * WIDTH**2
            weights[f"{i}.weight"] = f"part-{part}.safetensors"
        text = json.dumps(entries).encode()
        with (folder / f"part-{part}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + size)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weights}))
    return index


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_is_bounded_by_the_largest_layer_and_200_mb(tmp_path):
    index, target = sparse_checkpoint(tmp_path), tmp_path / "packed.hk.safetensors"
    assert sum(path.stat().st_size for path in tmp_path.glob("part-*")) >= 3 * LIMIT
    try:
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, index, target, str(WIDTH), str(LAYERS)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) <= LIMIT
        packed = PackedModel.open(target)
        assert len(packed.layers) == LAYERS
        assert packed.layers["0"].zero_fraction == 1
    finally:
        for path in tmp_path.iterdir():
            path.unlink()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.register_buffer("count", torch.tensor(3))
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize(
    "how", [{}, {"quantize_all": True}, {"embeddings": 8, "quantizer": "ternary-learned"}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropped", ["embed.weight", "head.weight"])
def test_streamed_is_what_is_quantised_in_memory(tmp_path, how, dtype, dropped):
    torch.manual_seed(0)
    model = Tied().to(dtype)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if name != dropped}
    save_file(state, tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = Tied()
    weights = open_tensors(tmp_path / "model.safetensors")
    rows = quantize_to_file(empty, tmp_path / "packed", weights=weights, **how)
    report = quantize(model, **how)
    assert rows.layers == report.layers
    report.packed.save(tmp_path / "whole")
    assert (tmp_path / "packed").read_bytes() == (tmp_path / "whole").read_bytes()


def test_what_a_checkpoint_lacks_is_said(tmp_path):
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    weights = {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}
    del weights["1.bias"]
    with pytest.raises(UsageError, match=r"weights lack '1\.bias'"):
        quantize_to_file(model, tmp_path / "packed", weights=weights)
    weights["1.bias"], weights["0.weight"] = torch.zeros(3), torch.full((3, 3), torch.nan)
    with pytest.raises(UsageError, match="layer '0' has weights that are not finite"):
        quantize_to_file(model, tmp_path / "packed", weights=weights)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "spec", ["ternary-mse", {"quantizer": "nbit", "bits": 4, "group_size": 64}, "binary"]
)
def test_rows_quantised_in_blocks_are_those_quantised_at_once(monkeypatch, spec):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 37), nn.Linear(37, 37))
    whole = quantize(model, quantizer=spec, float_dtype="fp16")
    monkeypatch.setattr("hybridkit.quant.convert._BLOCK", 700)
    assert _BLOCK > 700
    blocks = quantize(model, quantizer=spec, float_dtype="fp16")
    for name, layer in whole.packed.layers.items():
        assert np.array_equal(layer.codes, blocks.packed.layers[name].codes)
        np.testing.assert_array_equal(layer.scale, blocks.packed.layers[name].scale)
    for one, other in zip(whole.layers, blocks.layers, strict=True):
        assert one.relative_error == pytest.approx(other.relative_error, rel=1e-5)
