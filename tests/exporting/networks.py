"""Networks to export, and how the tests run a file."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from torch import nn

from hybridkit.quant.convert import convert
from hybridkit.quant.prepare import prepare_qat


class ConvNet(nn.Module):
    """Strides, padding, dilation, groups, BatchNorm, 1-D and 2-D; input [batch, 2, height, width]."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=4)
        self.binary = nn.Conv2d(8, 6, (1, 3), padding_mode="circular", padding=(0, 1))
        self.nbit = nn.Conv2d(6, 6, 3, padding=1)
        self.along = nn.Conv1d(6, 5, 3, stride=2, padding=1)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = self.nbit(self.binary(self.grouped(x)).relu())
        return self.head(self.along(x.mean(2)).mean(-1))


class TinyTransformer(nn.Module):
    """One causal attention block with an embedding tied to the head; input ids [batch, sequence]."""

    def __init__(self, vocabulary=40, width=16):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.norm = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        x = self.embedding(ids)
        q, k, v = self.qkv(self.norm(x)).unsqueeze(1).chunk(3, dim=-1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1))
        return self.head(self.norm(x))


def mlp():
    return nn.Sequential(
        nn.Linear(33, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def quantized(network, *inputs, codec=None, **options):
    """`network` with quantised layers and settled BatchNorm statistics, and its packed weights."""
    torch.manual_seed(1)
    for _ in range(3):
        network(*inputs)
    model = prepare_qat(network, **options).eval()
    return model, convert(model, codec=codec)


def run_ort(path, *inputs, inline=True):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not inline:
        options.add_session_config_entry("session.disable_aot_function_inlining", "1")
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return session.run(None, {n: np.asarray(x) for n, x in zip(names, inputs, strict=True)})[0]
