"""Random packed layers for the tests of the runtime."""

import numpy as np
import pytest
from torch import nn

from hybridkit.packing.codecs import bits_of, codec
from hybridkit.packing.model import PackedLayer

KINDS = {nn.Linear: "linear", nn.Conv1d: "conv1d", nn.Conv2d: "conv2d", nn.Embedding: "embedding"}


def _pack_like(name, module, codec_name="two-bit", activations="int8", group_size=0, seed=0):
    rng = np.random.default_rng(seed)
    shape = tuple(module.weight.shape)
    N, K = shape[0], int(np.prod(shape[1:]))
    found = codec(codec_name)
    scale_shape = (N, -(-K // group_size)) if group_size else (N,)
    kind = next(kind for type_, kind in KINDS.items() if isinstance(module, type_))
    return PackedLayer(
        name=name,
        kind=kind,
        codec=codec_name,
        shape=shape,
        bits=bits_of(found.levels),
        activations=activations,
        group_size=group_size,
        codes=found.pack(rng.choice(np.array(found.levels, np.int8), (N, K))),
        scale=(rng.random(scale_shape) + 0.1).astype(np.float32),
    )


@pytest.fixture(scope="session")
def pack_like():
    """A random packed layer in the shape of a module."""
    return _pack_like
