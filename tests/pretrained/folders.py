"""Small networks of transformers' families with random weights, and folders as a hub has them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import transformers

WORDS = 96
_SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
_TEXT = {**_SMALL, "vocab_size": WORDS, "max_position_embeddings": 64, "pad_token_id": 0}
_IDS = {"bos_token_id": 1, "eos_token_id": 2}


def _decoder(**more):
    return {**_TEXT, **_IDS, "num_key_value_heads": 2, "head_dim": 16, **more}


FAMILIES = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_decoder())),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_decoder())),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **_decoder(
                sliding_window=8,
                num_hidden_layers=2,
                layer_types=["sliding_attention", "full_attention"],
                query_pre_attn_scalar=16,
            )
        )
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=WORDS, n_positions=64, n_embd=64, n_layer=1, n_head=4, **_IDS)
    ),
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**_TEXT)),
    "modernbert": lambda: transformers.ModernBertForMaskedLM(
        transformers.ModernBertConfig(
            **{**_TEXT, "num_hidden_layers": 2}, **_IDS, local_attention=8, cls_token_id=1, sep_token_id=2
        )
    ),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(**_SMALL, image_size=32, patch_size=8, num_labels=5)
    ),
    "whisper": lambda: transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            vocab_size=WORDS,
            num_mel_bins=16,
            d_model=64,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=96,
            decoder_ffn_dim=96,
            max_source_positions=24,
            max_target_positions=32,
            pad_token_id=0,
            decoder_start_token_id=1,
            **_IDS,
        )
    ),
    "resnet": lambda: transformers.ResNetForImageClassification(
        transformers.ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64], depths=[1, 2], layer_type="basic", num_labels=5
        )
    ),
}


def network(family: str) -> transformers.PreTrainedModel:
    """The same small network every time."""
    torch.manual_seed(0)
    return FAMILIES[family]().eval()


def write(family: str, folder: Path, *, tokenizer: bool = True, **how) -> transformers.PreTrainedModel:
    """Save a network with a tokenizer, a card and a licence; `how` goes to save_pretrained."""
    made = network(family)
    made.save_pretrained(folder, **how)
    (folder / "README.md").write_text("# A model\n")
    (folder / "LICENSE").write_text("Do as you like.\n")
    if family in ("vit", "resnet"):
        processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    elif tokenizer:
        words_tokenizer().save_pretrained(folder)
    return made


def words_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One that knows the words w3, w4, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {
        word: i for i, word in enumerate(["[PAD]", "[BOS]", "[EOS]", *(f"w{i}" for i in range(3, WORDS))])
    }
    made = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]"
    )


def write_gguf(path: Path, family: str = "llama") -> transformers.PreTrainedModel:
    """A llama as a GGUF file with a vocabulary of bytes and words."""
    import gguf

    made = network("llama")
    config = made.config
    file = gguf.GGUFWriter(path, family)
    file.add_block_count(config.num_hidden_layers)
    file.add_context_length(config.max_position_embeddings)
    file.add_embedding_length(config.hidden_size)
    file.add_feed_forward_length(config.intermediate_size)
    file.add_head_count(config.num_attention_heads)
    file.add_head_count_kv(config.num_key_value_heads)
    file.add_rope_dimension_count(config.head_dim)
    file.add_rope_freq_base(10000.0)
    file.add_layer_norm_rms_eps(config.rms_norm_eps)
    file.add_vocab_size(WORDS)
    file.add_tokenizer_model("gpt2")
    file.add_token_list(["<s>", "</s>", "<unk>", *(chr(33 + i) for i in range(WORDS - 4)), '!"'])
    file.add_token_types([3, 3, 3, *[1] * (WORDS - 3)])
    file.add_token_merges(['! "'])
    file.add_bos_token_id(0)
    file.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in made.state_dict().items():
        array = tensor
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp pairs halves of a head otherwise
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            array = tensor.view(heads, 2, config.head_dim // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        file.add_tensor(names.get_name(name, try_suffixes=(".weight",)), array.numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return made


def sentences(path, count):
    """A file of so many sentences of words that the tokenizers know; each word is near the one before it."""
    draw, place = random.Random(0), 3
    lines = []
    for _ in range(count):
        words = []
        for _ in range(12):
            place = 3 + (place + draw.randint(-2, 3)) % (WORDS - 3)
            words.append(f"w{place}")
        lines.append(" ".join(words))
    path.write_text("\n".join(lines) + "\n")
    return path
