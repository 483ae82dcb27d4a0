"""GGUF files: blocks as ggml has them, what fits which type, tokenizers, and llama.cpp's own answers."""

from __future__ import annotations

import json

import folders
import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.cli import run
from hybridkit.errors import FileError, UsageError
from hybridkit.exporting import export
from hybridkit.exporting.gguf.tensors import type_for
from hybridkit.exporting.gguf.vocabulary import cut_of, scores_of, space_before
from hybridkit.packing.ggml import TYPES, from_blocks, to_blocks
from hybridkit.packing.layers import LayerSpec
from hybridkit.packing.model import PackedModel
from hybridkit.pretrained import open_pretrained
from hybridkit.pretrained.ggml_types import from_i2_s, refuse_fork, teach_gguf
from hybridkit.quant.config import QuantConfig
from hybridkit.quant.convert import convert
from hybridkit.quant.prepare import prepare_qat_
from hybridkit.runtime.modules import load_packed
from hybridkit.tasks.models.transformer import Shape, Transformer


def some(kind, rows, blocks, seed):
    random = np.random.default_rng(seed)
    codes = random.integers(kind.low, kind.high + 1, (rows, blocks * kind.size)).astype(np.int8)
    return (codes if kind.zero else np.where(codes >= 0, 1, -1).astype(np.int8)), random


def reference(kind, block):
    """One block, a weight at a time, as ggml-common.h describes it."""
    scale = np.frombuffer(bytes(block[-2:] if kind.name.startswith("TQ") else block[:2]), "<f2")[0]
    data = [int(byte) for byte in (block[:-2] if kind.name.startswith("TQ") else block[2:])]
    least = np.float32(0)
    if kind.name == "Q4_1":
        least, data = np.float32(np.frombuffer(block[2:4], "<f2")[0]), data[2:]
    place = {
        "Q1_0": lambda k: 2 * (data[k // 8] >> k % 8 & 1) - 1,
        "Q2_0": lambda k: (data[k // 4] >> 2 * (k % 4) & 3) - 1,
        "TQ2_0": lambda k: (data[k // 128 * 32 + k % 32] >> 2 * (k % 128 // 32) & 3) - 1,
        "TQ1_0": lambda k: _trit(data, k),
        "Q4_0": lambda k: (data[k] & 15 if k < 16 else data[k - 16] >> 4) - 8,
        "Q4_1": lambda k: data[k] & 15 if k < 16 else data[k - 16] >> 4,
        "Q8_0": lambda k: data[k] - 256 * (data[k] > 127),
    }[kind.name]
    return [np.float32(place(k)) * np.float32(scale) + least for k in range(kind.size)]


def _trit(data, k):
    if k < 160:
        byte, power = data[k % 32], k // 32
    elif k < 240:
        byte, power = data[32 + (k - 160) % 16], (k - 160) // 16
    else:
        byte, power = data[48 + (k - 240) % 4], (k - 240) // 4
    return (byte * 3**power % 256 * 3 >> 8) - 1


@given(st.sampled_from(sorted(TYPES)), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_blocks_hold_codes_and_scales_exactly(name, rows, blocks, seed):
    kind = TYPES[name]
    codes, random = some(kind, rows, blocks, seed)
    scale = random.standard_normal((rows, blocks)).astype(np.float16).astype(np.float32)
    least = random.integers(-64, 64, (rows, blocks)).astype(np.float32) / 8
    if kind.has_offset:  # with scales that make the weight of code 0 exact, too
        scale = random.integers(-64, 64, (rows, blocks)).astype(np.float32) / 8
    offset = least - kind.low * scale if kind.has_offset else None
    made = to_blocks(kind, codes, scale, kind.size, offset)
    assert made.shape == (rows, blocks * kind.bytes)
    wanted = codes * np.repeat(scale, kind.size, axis=1)
    if offset is not None:
        wanted += np.repeat(offset, kind.size, axis=1)
    assert np.array_equal(from_blocks(kind, made), wanted)
    assert np.array_equal(reference(kind, made[0, : kind.bytes]), wanted[0, : kind.size])


def test_the_last_group_of_a_row_may_be_shorter():
    kind = TYPES["Q2_0"]
    codes, random = some(kind, 2, 9, 0)  # 576 weights in groups of 128
    scale = random.standard_normal((2, 5)).astype(np.float16).astype(np.float32)
    wanted = codes * np.repeat(scale, 128, axis=1)[:, :576]
    assert np.array_equal(from_blocks(kind, to_blocks(kind, codes, scale, 128)), wanted)


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0", "Q4_0", "Q4_1", "Q8_0"])
def test_blocks_are_read_by_others(name):
    kind = TYPES[name]
    codes, random = some(kind, 5, 4, 0)
    scale, least = random.standard_normal((2, 5)).astype(np.float16).astype(np.float32)
    offset = least - kind.low * scale if kind.has_offset else None
    made = to_blocks(kind, codes, scale, 0, offset)
    found = gguf.dequantize(made, gguf.GGMLQuantizationType(kind.number))
    if kind.has_offset:
        assert np.array_equal(found, (codes - kind.low) * scale[:, None] + least[:, None])
    else:
        assert np.array_equal(found, codes * scale[:, None])
    assert np.array_equal(from_blocks(kind, made), found)


def layer(codec, K, group_size=0, bits=1.58, has_offset=False):
    return LayerSpec(
        name="a",
        kind="linear",
        codec=codec,
        shape=(8, K),
        bits=bits,
        activations="float",
        group_size=group_size,
        has_offset=has_offset,
    )


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (layer("two-bit", 512), ("TQ2_0", 1)),
        (layer("base3", 512, 256), ("TQ2_0", 1)),
        (layer("two-bit", 512, 64), ("Q2_0", 1)),  # scales change within a block of 256
        (layer("two-bit", 576), ("Q2_0", 1)),
        (layer("one-bit", 384, bits=1), ("Q1_0", 1)),
        (layer("one-bit", 64, bits=1), ("Q2_0", 1)),
        (layer("nbit2", 128, 64, bits=2), ("Q2_0", -1)),  # its levels are -2 to 1, those of blocks -1 to 2
        (layer("nbit4", 96, 32, bits=4), ("Q4_0", 1)),
        (layer("nbit4", 96, 32, 4, has_offset=True), ("Q4_1", 1)),
        (layer("nbit8", 96, bits=8), ("Q8_0", 1)),
    ],
)
def test_each_layer_gets_the_smallest_type_that_holds_it(spec, wanted):
    kind, sign = type_for(spec)
    assert (kind.name, sign) == wanted


@pytest.mark.parametrize(
    "spec",
    [
        layer("two-bit", 100),
        layer("two-bit", 64, 32),
        layer("nbit4", 96, 16, 4),
        layer("nbit8", 40),
        layer("nbit8", 96, bits=8, has_offset=True),  # no type of 8 bits has offsets
        layer("nbit2", 64, 32, bits=2, has_offset=True),  # one of more than twice the bits has
    ],
)
def test_a_layer_that_fits_no_type_is_an_error_that_names_it(spec):
    with pytest.raises(UsageError, match=r"layer 'a' has rows of \d+ weights"):
        type_for(spec)


def test_a_type_that_was_asked_for_is_taken_or_refused():
    assert type_for(layer("two-bit", 512), "TQ1_0")[0].name == "TQ1_0"
    with pytest.raises(UsageError, match="TQ1_0 of 256"):
        type_for(layer("two-bit", 576), "TQ1_0")


def test_how_text_is_cut_is_known_or_refused():
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    assert cut_of({"pre_tokenizer": plain}) == "gpt-2"
    assert cut_of({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, plain]}}) == "smollm"
    with pytest.raises(UsageError, match="is not known"):
        cut_of({"pre_tokenizer": {"type": "Whitespace"}})


def letters_tokenizer():
    """Byte-level BPE of the letters that the small networks have rows for."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = [chr(33 + i) for i in range(90)]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *letters, "ab", "cd", "Ġ"])}
    made = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("c", "d")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    folders.write(request.param, place)
    for file in place.glob("*token*"):
        file.unlink()
    letters_tokenizer().save_pretrained(place)
    return place


def quantized(folder, tmp_path, *how):
    packed = tmp_path / "m.hk.safetensors"
    assert run(["quantize", str(folder), "-o", str(packed), "--embeddings", "8", *how]) == 0
    return packed


@pytest.mark.parametrize(("offset", "wanted"), [("false", "Q4_0"), ("true", "Q4_1")])
def test_the_file_holds_the_network_and_its_tokenizer(folder, offset, wanted, tmp_path, capsys):
    four = ["--quantizer", "nbit", "--set", "quantizer.bits=4", "--granularity", "group:32"]
    four += ["--set", f"quantizer.offset={offset}"]
    packed, file = quantized(folder, tmp_path, *four), tmp_path / "m.gguf"
    assert run(["export", str(file), "--from", str(packed)]) == 0
    assert wanted in capsys.readouterr().out
    found = gguf.GGUFReader(file)
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert found.fields["tokenizer.ggml.tokens"].contents() == sorted(tokens, key=tokens.get)
    assert found.fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert found.fields["tokenizer.ggml.merges"].contents() == ["a b", "c d"]
    types = {tensor.name: tensor.tensor_type.name for tensor in found.tensors}
    assert types["blk.0.ffn_up.weight"] == wanted
    assert types["token_embd.weight"] == "Q8_0"
    assert types["output_norm.weight"] == "F32"
    # read by transformers, which dequantises it, it gives what the packed network gives
    if open_pretrained(str(folder)).config.model_type == "llama":
        ids = torch.arange(3, 19)[None]
        with torch.no_grad():
            read = open_pretrained(str(file)).network(head="causal-lm").eval()(input_ids=ids).logits
            network = open_pretrained(str(folder)).network(head="causal-lm")
            ours = load_packed(network, PackedModel.load(packed))(input_ids=ids).logits
        torch.testing.assert_close(read, ours, rtol=1e-2, atol=1e-2)


def answers(file, prompt, count):
    """Tokens that llama.cpp finds likeliest after `prompt`, and the logarithm of each one's probability."""
    engine = pytest.importorskip("xllamacpp")
    how = engine.CommonParams()
    how.model.path, how.n_ctx, how.cpuparams.n_threads, how.warmup = str(file), 64, 1, False
    asked = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": count, "cache_prompt": False}
    said = engine.Server(how).handle_completions(asked)
    [token] = said["choices"][0]["logprobs"]["content"]
    return {each["id"]: each["logprob"] for each in token["top_logprobs"]}


@torch.no_grad()
def likeliest(network, prompt, count):
    values, places = network(torch.tensor([prompt])).log_softmax(-1)[0, -1].topk(count)
    return dict(zip(places.tolist(), values.tolist(), strict=True))


@pytest.mark.parametrize(
    ("quantizer", "granularity", "types"),
    [
        ("ternary-mse", "channel", {"TQ2_0", "Q2_0"}),
        ("ternary-mse", "group:64", {"Q2_0"}),
        ("binary", "group:128", {"Q1_0"}),
    ],
)
def test_llama_cpp_gives_our_transformers_answers(quantizer, granularity, types, tmp_path):
    torch.manual_seed(0)
    shape = Shape(width=128, layers=2, heads=4, kv_heads=2, hidden=256)
    config = QuantConfig(weights=quantizer, activations="float", granularity=granularity)
    network = prepare_qat_(Transformer(shape).eval(), config)
    prompt = torch.randint(0, 256, (20,)).tolist()
    report = export(network, tmp_path / "m.gguf", example_inputs=[torch.tensor([prompt])])
    assert all(f"x {name}" in report.cast for name in types)
    ours = likeliest(load_packed(Transformer(shape), convert(network)), prompt, 256)
    theirs = answers(tmp_path / "m.gguf", prompt, 20)
    assert len(theirs) == 20
    # its activations are rounded to 8 bits in blocks of 32
    assert max(abs(ours[token] - value) for token, value in theirs.items()) < 0.05


def test_llama_cpp_gives_a_pretrained_networks_answers(folder, tmp_path):
    packed, file = quantized(folder, tmp_path, "--layer", "*down_proj=fp32"), tmp_path / "m.gguf"
    assert run(["export", str(file), "--from", str(packed)]) == 0
    opened = open_pretrained(str(folder))
    prompt = opened.tokenizer()("abcdQXYZ")["input_ids"]
    network = load_packed(opened.network(head="causal-lm"), PackedModel.load(packed))
    ours = likeliest(lambda ids: network(input_ids=ids).logits, prompt, 90)
    theirs = answers(file, "abcdQXYZ", 10)
    assert max(abs(ours[token] - value) for token, value in theirs.items()) < 0.05


def pieces_tokenizer(prefix, form):
    """BPE as SentencePiece has it, with bytes for what it does not know."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pairs = "a-b c-d ab-cd a-bcd _-a _a-b _-ab b-c b-cd bc-d".replace("_", "\u2581").split()
    merges = [tuple(pair.split("-")) for pair in pairs]
    made = list(dict.fromkeys(first + second for first, second in merges))
    letters = [chr(97 + i) for i in range(20)]
    tokens = ["<unk>", "<s>", "</s>", *[f"<0x{i:02X}>" for i in range(256)], "\u2581", *letters, *made]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    if form == "normalizer":
        steps = [normalizers.Prepend("\u2581")] if prefix else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    else:
        scheme = "first" if prefix else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback()])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("form", ["normalizer", "metaspace"])
def test_llama_cpp_cuts_text_as_sentencepiece_does(prefix, form, tmp_path):
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**shape, vocab_size=288, initializer_range=0.3)
    small = transformers.LlamaForCausalLM(config)
    small.lm_head.weight.data[:259] = 0  # of a byte, or an end, llama.cpp says no probabilities
    small.save_pretrained(tmp_path / "m")
    pieces_tokenizer(prefix, form).save_pretrained(tmp_path / "m")
    file = tmp_path / "m.gguf"
    assert run(["export", str(file), "--from", str(tmp_path / "m"), "--set", "exporter.floats=F32"]) == 0
    opened = open_pretrained(str(tmp_path / "m"))
    tokenizer, network = opened.tokenizer(), opened.network(head="causal-lm")
    texts = ["abcd ab", "bcd a  abc", "abc\u00e9d Z cdab"]
    # before a space Metaspace puts no other one, where SentencePiece and llama.cpp do
    for text in [*texts, *([" dcba"] if form == "normalizer" else [])]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        ours = likeliest(lambda ids: network(input_ids=ids).logits, ids, 288)
        theirs = answers(file, text, 10)
        assert max(abs(ours[token] - value) for token, value in theirs.items()) < 0.02, text


def test_tokenizers_that_only_resemble_sentencepiece_are_refused():
    bpe = {"type": "BPE", "byte_fallback": True, "vocab": {}, "merges": []}
    upper = {"type": "Uppercase"}
    assert space_before({"model": bpe, "normalizer": {"type": "Sequence", "normalizers": [upper]}}) is None
    assert space_before({"model": bpe}) is None
    assert space_before({"model": bpe | {"byte_fallback": False}}) is None
    assert scores_of(["a b", ["b", "c"], "a b"], ["a", "b", "c", "ab", "bc"]) == {"ab": 0, "bc": -1}
    with pytest.raises(UsageError, match="has no merge of 'a' and 'bc'"):
        scores_of(["a b", "b c", "ab c"], ["a", "b", "c", "ab", "bc", "abc"])


SCALED = {
    "linear": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def scaled(kind, place, **more):
    """A small Llama whose positions are scaled."""
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    rope = {"rope_type": kind, "rope_theta": 500.0, **SCALED[kind], **more}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **shape, vocab_size=96, max_position_embeddings=64, rope_parameters=rope, initializer_range=0.2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(place)
    letters_tokenizer().save_pretrained(place)


@pytest.mark.parametrize("kind", SCALED)
def test_llama_cpp_scales_positions_alike(kind, tmp_path):
    scaled(kind, tmp_path / "m")
    file = tmp_path / "m.gguf"
    assert run(["export", str(file), "--from", str(tmp_path / "m"), "--set", "exporter.floats=F32"]) == 0
    opened = open_pretrained(str(tmp_path / "m"))
    text = "XYZQabcd" * 5  # beyond what the positions were before they were scaled
    prompt = opened.tokenizer()(text)["input_ids"]
    network = opened.network(head="causal-lm")
    ours = likeliest(lambda ids: network(input_ids=ids).logits, prompt, 90)
    network.model.rotary_emb.inv_freq.mul_(1.5)  # other positions would show
    other = likeliest(lambda ids: network(input_ids=ids).logits, prompt, 90)
    theirs = answers(file, text, 10)
    apart = max(abs(ours[token] - value) for token, value in theirs.items())
    assert apart < 0.02
    assert max(abs(other[token] - value) for token, value in theirs.items()) > 5 * apart


def test_positions_that_llama_cpp_scales_otherwise_are_refused(tmp_path, capsys):
    scaled("yarn", tmp_path / "m", attention_factor=0.7)
    assert run(["export", str(tmp_path / "m.gguf"), "--from", str(tmp_path / "m")]) == 2
    assert "it has positions of the type yarn" in capsys.readouterr().err


def test_what_llama_cpp_does_not_compute_is_refused(tmp_path, capsys):
    folders.write("gpt2", tmp_path / "gpt2")
    assert run(["export", str(tmp_path / "m.gguf"), "--from", str(tmp_path / "gpt2")]) == 2
    assert "not gpt2; export .onnx" in capsys.readouterr().err
    folders.write("llama", tmp_path / "llama", tokenizer=False)
    assert run(["export", str(tmp_path / "m.gguf"), "--from", str(tmp_path / "llama")]) == 2
    assert "no tokenizer.json" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.gguf"))


def wide_llama(folder):
    """Its rows are whole numbers of blocks."""
    config = transformers.LlamaConfig(
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=256,
        vocab_size=folders.WORDS,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    letters_tokenizer().save_pretrained(folder)


@pytest.mark.parametrize(
    ("quantizer", "size", "wanted"), [("ternary-mse", 64, "Q2_0"), ("binary", 128, "Q1_0")]
)
def test_ternary_and_binary_files_are_sources(quantizer, size, wanted, tmp_path):
    """The types that gguf does not read: what they hold is found again, to the last code."""
    wide_llama(tmp_path / "m")
    how = ["--quantizer", quantizer, "--granularity", f"group:{size}"]
    packed, file = quantized(tmp_path / "m", tmp_path, *how), tmp_path / "m.gguf"
    assert run(["export", str(file), "--from", str(packed)]) == 0
    layers = PackedModel.load(packed).layers
    state = open_pretrained(str(file)).network(head="causal-lm").state_dict()
    assert any("self_attn" in name for name in layers)
    for layer in layers.values():
        found, expected = state[layer.weight_name].numpy(), layer.dequantize()
        exact = wanted in ("Q1_0", "Q2_0") and layer.codec in ("two-bit", "one-bit")
        np.testing.assert_allclose(found, expected, rtol=1e-3 if exact else 1e-2, atol=1e-4)


def i2_s(weights):
    """As bitnet.cpp's README and converter describe it, weight by weight."""
    scale, out = np.abs(weights).max(), np.zeros(weights.size // 4 + 32, np.uint8)
    for place, weight in enumerate(weights.reshape(-1)):
        block, within = divmod(place, 128)
        digit = 1 + int(np.sign(weight)) * int(abs(weight) > 1e-6)
        out[32 * block + within % 32] |= digit << 6 - 2 * (within // 32)
    out[weights.size // 4 :][:4] = np.frombuffer(np.float32(scale).tobytes(), np.uint8)
    return out


def rewritten_as_i2_s(source, file):
    """The same GGUF file with its layers' tensors in that type."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(file, "llama")
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.architecture")):
            kind, *inner = field.types
            writer.add_key_value(field.name, field.contents(), kind, inner[0] if inner else None)
    written = []
    for tensor in reader.tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        if weights.ndim == 1 or "blk" not in tensor.name:
            written.append(weights.astype(np.float32))
            writer.add_tensor_info(tensor.name, weights.shape, np.dtype(np.float32), written[-1].nbytes)
        else:
            written.append(i2_s(weights))
            writer.add_tensor_info(tensor.name, weights.shape, np.dtype(np.int8), written[-1].nbytes, 36)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for data in written:
        writer.write_tensor_data(data)
    writer.close()


def test_files_of_bitnet_cpp_are_sources(tmp_path):
    wide_llama(tmp_path / "m")
    packed, file = quantized(tmp_path / "m", tmp_path, "--granularity", "tensor"), tmp_path / "m.gguf"
    assert run(["export", str(file), "--from", str(packed)]) == 0
    teach_gguf()
    rewritten_as_i2_s(file, tmp_path / "i2_s.gguf")
    original, found = (
        open_pretrained(str(each)).network(head="causal-lm").state_dict()
        for each in (file, tmp_path / "i2_s.gguf")
    )
    assert found.keys() == original.keys()
    for name, tensor in original.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=0)


@given(rows=st.integers(1, 5), blocks=st.integers(1, 3), seed=st.integers(0, 99))
def test_i2_s_holds_ternary_weights(rows, blocks, seed):
    random = np.random.default_rng(seed)
    weights = random.integers(-1, 2, (rows, 128 * blocks)).astype(np.float32) * np.float32(0.37)
    weights[0, 0] = 0.37
    data = i2_s(weights)
    codes = data[: weights.size // 4].reshape(rows, -1)
    np.testing.assert_array_equal(from_i2_s(codes), weights)
    data[0] |= 3 << 6
    with pytest.raises(FileError, match="digit 3"):
        from_i2_s(codes)
    with pytest.raises(FileError, match="ends before its scale"):
        from_i2_s(codes.copy())


def write_blocks(file, bytes_per_weight):
    """A file with two tensors of 64 x 128 weights that say they are Q2_0."""
    size = int(64 * 128 * bytes_per_weight)
    writer = gguf.GGUFWriter(file, "llama")
    for name in ("a", "b"):
        writer.add_tensor_info(name, (64, 128), np.dtype(np.int8), size, 42)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _ in range(2):
        writer.write_tensor_data(np.zeros(size, np.uint8))
    writer.close()


def test_blocks_of_128_under_the_number_of_q2_0_are_refused(tmp_path):
    write_blocks(tmp_path / "ours.gguf", 18 / 64)
    write_blocks(tmp_path / "fork.gguf", 34 / 128)
    teach_gguf()
    refuse_fork(tmp_path / "ours.gguf", "ours.gguf")
    with pytest.raises(FileError, match="blocks of 128 weights"):
        refuse_fork(tmp_path / "fork.gguf", "fork.gguf")
