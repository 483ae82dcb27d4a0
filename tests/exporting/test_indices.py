"""Which inputs are indices."""

from __future__ import annotations

import torch
from torch import nn

from hybridkit import pack
from hybridkit.exporting.indices import index_inputs


def test_an_embedding_that_is_packed_counts_too():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(50, 16), nn.Linear(16, 4)

        def forward(self, ids, shift):
            return self.out(self.embed(ids) + shift)

    packed = pack(Tokens(), quantize_all=True).module
    given = {"ids": torch.ones(2, 3), "shift": torch.ones(2, 3, 16)}
    assert index_inputs(packed, given) == {"ids": 50}
