"""A language model of half a billion random weights, or of one, for speed, which does not go by values.

    python benchmarks/generation/shapes.py SMOLLM2 OUT [--billions 1]

OUT becomes a Llama folder, 16 blocks of width 1,536 or the 22 of width 2,048 that TinyLlama 1.1B has, with
the tokenizer of SMOLLM2, a folder of Hugging Face layout. Widths are multiples of 256, so that every type of
llama.cpp takes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers

SHAPES = {
    0.5: {
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
    },
    1.0: {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
}
COMMON = {"max_position_embeddings": 2048, "tie_word_embeddings": True, "dtype": "bfloat16"}


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--billions", type=float, choices=SHAPES, default=0.5)
    options = parser.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.source)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    torch.manual_seed(0)
    shape = SHAPES[options.billions] | COMMON | special
    config = transformers.LlamaConfig(**shape, vocab_size=len(tokenizer))
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
