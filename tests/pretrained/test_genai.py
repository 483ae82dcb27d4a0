"""Language models with a cache: our own generation, onnxruntime-genai's and torch's find the same tokens."""

from __future__ import annotations

import json
import subprocess
import sys

import folders
import numpy as np
import onnx
import pytest
import torch
import transformers

from hybridkit.cli import run
from hybridkit.errors import FileError, GateError, UsageError
from hybridkit.exporting import agreement
from hybridkit.exporting.genai.decoder import Shape
from hybridkit.packing.model import PackedModel
from hybridkit.pretrained import open_pretrained
from hybridkit.runtime.generation import LanguageModel, Sampling
from hybridkit.runtime.library import library_path
from hybridkit.runtime.modules import load_packed
from hybridkit.runtime.text import Text

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "w{{ loop.index + 2 }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}w9{% endif %}"
)
PROMPT = [5, 17, 33, 4, 90, 11]


def quantized(folder, tmp_path, *how):
    packed = tmp_path / "m.hk.safetensors"
    assert run(["quantize", str(folder), "-o", str(packed), *how]) == 0
    return packed


@torch.no_grad()
def likeliest(network, prompt, count):
    """Greedy tokens of a torch network that sees the whole text at every step."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(network(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.fixture(scope="module", params=["llama", "qwen3", "gpt2"])
def exported(request, tmp_path_factory):
    """The folder of a pretrained network, its packed file and what `export` made of it."""
    place = tmp_path_factory.mktemp(request.param)
    folders.write(request.param, place / "source")
    (place / "source" / "chat_template.jinja").write_text(TEMPLATE)
    packed = quantized(place / "source", place, "--activations", "int8", "--embeddings", "8")
    chat = place / "m"  # the assets of the packed file lie in m.assets, which is not the folder's
    assert run(["export", str(chat), "--target", "genai", "--from", str(packed)]) == 0
    return place / "source", packed, chat


def test_all_of_it_lies_in_one_folder(exported):
    *_, chat = exported
    names = {"model.onnx", "genai_config.json", "tokenizer.json", "config.json", "chat_template.jinja"}
    assert names <= {path.name for path in chat.iterdir()}
    assert {path.name for path in chat.parent.iterdir()} == {"source", "m.hk.safetensors", "m.assets", "m"}


@pytest.mark.parametrize("native", [True, False])
def test_tokens_are_those_of_the_packed_network(exported, native):
    source, packed, chat = exported
    network = load_packed(open_pretrained(str(source)).network(head="causal-lm"), PackedModel.load(packed))
    model = LanguageModel(chat, threads=1, native=native)
    model.ends = frozenset()
    assert list(model.stream(PROMPT, 40, Sampling())) == likeliest(network, PROMPT, 40)


def test_onnxruntime_genai_finds_the_same_tokens(exported):
    genai = pytest.importorskip("onnxruntime_genai")
    *_, chat = exported
    ours = list(LanguageModel(chat, threads=1, native=False).stream(PROMPT, 30, Sampling()))
    model = genai.Model(str(chat))
    how = genai.GeneratorParams(model)
    how.set_search_options(max_length=len(PROMPT) + 30, do_sample=False)
    generator = genai.Generator(model, how)
    generator.append_tokens(PROMPT)
    while not generator.is_done():
        generator.generate_next_token()
    theirs = [int(token) for token in generator.get_sequence(0)][len(PROMPT) :]
    assert theirs[: len(ours)] == ours
    assert set(theirs[len(ours) :]) <= {2}  # the end


def test_what_the_cache_knows_is_not_computed_again(exported):
    *_, chat = exported
    model, fresh = LanguageModel(chat, threads=1), LanguageModel(chat, threads=1)
    for tokens in (PROMPT, [*PROMPT, 7, 8, 9], PROMPT[:3], [*PROMPT[:4], 60], [8]):
        fresh._seen = []
        torch.testing.assert_close(model.logits(tokens), fresh.logits(tokens), rtol=1e-4, atol=1e-5)
    model.logits(PROMPT)
    assert model.logits([*PROMPT, 3]).shape == (folders.WORDS,)
    assert model._seen == [*PROMPT, 3]


def test_prompts_are_read_in_pieces(exported, monkeypatch):
    *_, chat = exported
    whole = LanguageModel(chat, threads=1).logits(PROMPT)
    for piece in (1, 4, len(PROMPT)):
        monkeypatch.setattr("hybridkit.runtime.generation._PIECE", piece)
        model = LanguageModel(chat, threads=1)
        # codes of int8 may move
        torch.testing.assert_close(model.logits(PROMPT), whole, rtol=1e-2, atol=1e-2)
        assert model._seen == PROMPT


def test_a_cache_without_memory_is_an_empty_one(exported, monkeypatch):
    *_, chat = exported
    monkeypatch.setattr("hybridkit.runtime.generation._STEP", 1)
    model = LanguageModel(chat, threads=1)
    before = model.logits(PROMPT)

    def none(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("hybridkit.runtime.generation.np.zeros", none)
        with pytest.raises(MemoryError):
            model.logits([*PROMPT] * 4)
    assert model.cache_bytes == 0
    np.testing.assert_array_equal(model.logits(PROMPT), before)


@pytest.mark.skipif(library_path() is None, reason="installed without the native library")
@pytest.mark.parametrize(
    ("of", "factor", "agree"),
    [
        ("model.onnx", 1.02, True),
        ("model.onnx", 2, False),
        ("model.onnx", np.nan, False),
        ("stock-attention-model.onnx", 1.0001, False),
    ],
)
def test_attention_and_products_are_compared(exported, monkeypatch, of, factor, agree):
    """The whole file to what moved codes of int8 leave, and behind the same attention every bit."""
    *_, chat = exported
    network = onnx.load(chat / "model.onnx").graph
    assert {node.op_type for node in network.node} >= {"CachedAttention", "TernaryMatMulInt8"}
    rng = np.random.default_rng(0)
    sizes = {"batch": 1, "sequence": 3, "total_sequence": 3, "past_sequence": 0}
    feed = {}
    for given in network.input:
        shape = [sizes.get(d.dim_param, d.dim_value) for d in given.type.tensor_type.shape.dim]
        floats = given.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        feed[given.name] = np.zeros(shape, np.float32) if floats else rng.integers(1, 2, shape)
    run_file = agreement._run

    def spoiled(path, feed, native):
        found = run_file(path, feed, native)
        return [*found[:-1], found[-1] * np.float32(factor)] if native and path.name == of else found

    assert agreement.check_native(chat / "model.onnx", feed) == "close"
    monkeypatch.setattr(agreement, "_run", spoiled)
    if agree:
        assert agreement.check_native(chat / "model.onnx", feed) == "close"
    else:
        with pytest.raises(GateError):
            agreement.check_native(chat / "model.onnx", feed)
    assert {path.name for path in chat.iterdir() if path.suffix == ".onnx"} == {"model.onnx"}


def test_the_cache_grows_with_the_text(exported, monkeypatch):
    *_, chat = exported
    whole = list(LanguageModel(chat, threads=1).stream(PROMPT, 40, Sampling()))
    monkeypatch.setattr("hybridkit.runtime.generation._STEP", 1)
    model = LanguageModel(chat, threads=1)
    found, sizes = list(PROMPT), set()
    for _ in whole:
        found.append(int(model.logits(found).argmax()))
        sizes.add(model.cache_bytes)
    assert found[len(PROMPT) :] == whole
    assert len(sizes) > 2


def test_prompts_that_do_not_fit_are_refused(exported):
    model = LanguageModel(exported[2], threads=1)
    for tokens, why in (
        ([], "at least one token"),
        ([folders.WORDS], "from 0 to 95"),
        ([3] * 65, "context of 64"),
    ):
        with pytest.raises(UsageError, match=why):
            model.logits(tokens)
    assert len(list(model.stream([3] * 60, 100, Sampling(temperature=1.0, seed=0)))) <= 4


def test_a_conversation_goes_by_the_template(exported):
    words = Text(exported[2])
    said = [{"role": "user", "content": "w20 w21"}, {"role": "assistant", "content": "w22"}]
    assert list(words.decode(words.encode_chat(said))) == ["w3", " w20", " w21", " w4", " w22", " w9"]
    with pytest.raises(UsageError, match="does not take this: no tools"):
        words.encode_chat([{"role": "tool", "content": "w3"}])


def test_generate_prints_what_the_model_finds(exported, capsys):
    *_, chat = exported
    capsys.readouterr()
    asked = ["generate", str(chat), "w20 w21", "--chat", "--max-tokens", "9", "--temperature", "0", "--json"]
    assert run(asked) == 0
    answer = json.loads(capsys.readouterr().out)
    words = Text(chat)
    prompt = words.encode("w3 w20 w21 w9")
    tokens = list(LanguageModel(chat).stream(prompt, 9, Sampling()))
    assert answer["tokens"] == tokens
    assert answer["prompt_tokens"] == len(prompt)
    assert run([word for word in asked if word != "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "".join(words.decode(tokens)) + "\n"
    assert printed.err.startswith("4 tokens of prompt in ")


def test_generate_does_without_torch(exported):
    code = (
        "import sys; from hybridkit.cli import run\n"
        f"assert run(['generate', {str(exported[2])!r}, 'w5', '--max-tokens', '3']) == 0\n"
        "sys.exit('torch' in sys.modules or 'onnx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["{chat}"], "say the prompt"),
        (["{chat}", "w3", "--system", "w4"], "--system belongs to --chat"),
        (["{chat}", "w3", "--top-p", "0"], "top-p is above 0"),
        (["{source}", "w3"], "is not what `hybridkit export FOLDER --target genai` writes"),
    ],
)
def test_bad_questions_get_one_line(exported, capsys, words, why):
    source, _, chat = exported
    assert run(["generate", *(word.format(chat=chat, source=source) for word in words)]) in (1, 2)
    said = capsys.readouterr().err
    assert why in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("family", "why"),
    [("bert", "is no language model"), ("whisper", "is no language model")],
)
def test_what_has_no_such_cache_is_refused(family, why, tmp_path, capsys):
    folders.write(family, tmp_path / "source")
    asked = ["export", str(tmp_path / "chat"), "--target", "genai", "--from", str(tmp_path / "source")]
    assert run(asked) == 2
    assert why in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_heads_that_the_operator_does_not_take_are_refused():
    config = transformers.LlamaConfig(
        hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=32
    )
    with pytest.raises(UsageError, match="heads of 12"):
        Shape.of(transformers.LlamaForCausalLM(config))


def test_a_folder_of_something_else_is_not_replaced(exported, tmp_path, capsys):
    _, packed, _ = exported
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert run(["export", str(tmp_path / "mine"), "--target", "genai", "--from", str(packed)]) != 0
    assert "not of the target genai" in capsys.readouterr().err
    assert run(["export", str(tmp_path / "chat.onnx"), "--target", "genai", "--from", str(packed)]) == 2
    assert "writes a folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "letter.txt"]


def test_a_damaged_folder_is_an_error(exported, tmp_path):
    said = json.loads((exported[2] / "genai_config.json").read_text())
    for content in ("", "{}", json.dumps({**said, "model": {**said["model"], "decoder": {}}})):
        (tmp_path / "genai_config.json").write_text(content)
        with pytest.raises(FileError, match="is not what"):
            LanguageModel(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(FileError, match="cannot be read"):
        Text(tmp_path)


def windowed(family):
    """Layers that see eight tokens, in Gemma 2 with capped logits and in turn with others that see all."""
    if family == "gemma3":
        return folders.network("gemma3")
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"head_dim": 16, "vocab_size": folders.WORDS, "sliding_window": 8}
    if family == "mistral":
        return transformers.MistralForCausalLM(transformers.MistralConfig(num_hidden_layers=1, **shape))
    capped = {"num_hidden_layers": 2, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16}
    return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**shape, **capped))


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_windows_and_caps(family, tmp_path):
    network = windowed(family).eval()
    network.save_pretrained(tmp_path / "m")
    folders.words_tokenizer().save_pretrained(tmp_path / "m")
    assert run(["export", str(tmp_path / "chat"), "--target", "genai", "--from", str(tmp_path / "m")]) == 0
    model = LanguageModel(tmp_path / "chat", threads=1)
    model.ends = frozenset()
    assert list(model.stream(PROMPT, 40, Sampling())) == likeliest(network, PROMPT, 40)
