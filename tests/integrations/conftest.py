"""A tiny causal language model of transformers, byte by byte, and real text for it."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

LENGTH = 32


@pytest.fixture(scope="session")
def blocks() -> list[dict[str, torch.Tensor]]:
    """Text of the standard library in blocks of LENGTH bytes, as the samples of a causal language model."""
    text = Path(sysconfig.get_paths()["stdlib"], "argparse.py").read_bytes()[: 256 * LENGTH]
    rows = torch.frombuffer(bytearray(text), dtype=torch.uint8).long().view(-1, LENGTH)
    return [{"input_ids": row, "labels": row.clone()} for row in rows]


def tiny_llama(**how) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(vocab_size=256, max_position_embeddings=64, **sizes, **special, **how))


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return tiny_llama()
