"""Networks of a few thousand weights with tokenizers of their own, in folders as hubs have them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

TEXT = Path(json.__file__).read_text(), Path(torch.utils.data.__file__).read_text()
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def byte_level(folder: Path, vocabulary: int = 300) -> None:
    """A byte-level BPE with an end and nothing to pad with, as GPT-2 has."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|endoftext|>"]
    made.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, initial_alphabet=alphabet)
    )
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>").save_pretrained(folder)


def word_pieces(folder: Path, vocabulary: int = 300) -> None:
    """A WordPiece with BERT's special tokens."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=special))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = {f"{name}_token": f"[{name.upper()}]" for name in names}
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **tokens,
    ).save_pretrained(folder)


def llama(folder: Path) -> str:
    byte_level(folder)
    config = LlamaConfig(vocab_size=320, num_key_value_heads=1, max_position_embeddings=64, **SMALL)
    return _saved(LlamaForCausalLM, config, folder)


def gpt2(folder: Path) -> str:
    byte_level(folder)
    config = GPT2Config(
        vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    return _saved(GPT2LMHeadModel, config, folder)


def bert(folder: Path) -> str:
    word_pieces(folder)
    config = BertConfig(vocab_size=300, max_position_embeddings=64, **SMALL)
    return _saved(BertForMaskedLM, config, folder)


def vit(folder: Path, classes: int = 3) -> str:
    ViTImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(folder)
    config = ViTConfig(image_size=28, patch_size=7, num_labels=classes, **SMALL)
    return _saved(ViTForImageClassification, config, folder)


def _saved(network, config, folder: Path) -> str:
    torch.manual_seed(0)
    network(config).save_pretrained(folder)
    return str(folder)


def network() -> torch.nn.Module:
    """One of the user's own: `tiny_networks:network`."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=64))
