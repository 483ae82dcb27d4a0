"""Corpora in blocks, covered tokens, pooling, heads, and what does not fit together."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from hybridkit.errors import FileError, UsageError
from hybridkit.tasks.data import first, in_order
from hybridkit.tasks.language import documents, tokens
from hybridkit.tasks.language.blocks import block_parts
from hybridkit.tasks.language.embedding import cosent, spearman
from hybridkit.tasks.language.masked import IGNORED, covered
from hybridkit.tasks.language.pooling import described_pooling, pooled
from hybridkit.tasks.resolve import make_model, make_task
from hybridkit.training.evaluation import evaluate

STORY = "".join(f"line {i} of a story that goes on\n" for i in range(400))


@pytest.fixture
def story(tmp_path):
    (tmp_path / "a.txt").write_text(STORY)
    (tmp_path / "b.txt").write_text(STORY[::-1])
    return tmp_path


@pytest.fixture
def causal(tiny, story):
    return make_task("causal-lm", {"model": tiny("gpt2"), "data_dir": str(story), "sequence_length": 32})


def test_blocks_are_the_corpus_with_its_boundaries(causal, tiny):
    splits = causal.splits()
    whole = [part[i]["input_ids"] for part in (splits.train,) for i in range(len(part))]
    tokenizer = AutoTokenizer.from_pretrained(tiny("gpt2"))
    text = tokenizer.decode(torch.cat(whole))
    expected = STORY + "<|endoftext|>" + STORY[::-1] + "<|endoftext|>"
    assert expected.startswith(text)
    assert len(text) > 0.85 * len(expected)
    (file,) = causal._token_files.values()
    assert file.text_bytes == 2 * len(STORY)
    assert file.tokens[-1] == tokenizer.eos_token_id
    sizes = sum(float(splits.train[i]["bytes"]) for i in range(len(splits.train)))
    assert sizes == pytest.approx(len(text.replace("<|endoftext|>", "")), rel=0.01)


def test_parts_follow_each_other_and_share_no_token(causal):
    (file,) = causal._token_files.values()
    parts = block_parts({"train": file}, 32, "here")
    spans = [(parts[name].start, parts[name].end) for name in ("train", "validation", "test")]
    assert [start for start, _ in spans] == [0, spans[0][1], spans[1][1]]
    assert spans[2][1] == file.count
    with pytest.raises(FileError, match="tokens are too few for blocks of 4096"):
        block_parts({"train": file}, 4096, "here")


def test_the_corpus_is_tokenised_once(causal, tiny, story, monkeypatch):
    digest = causal.provenance()["sha256"]
    monkeypatch.setattr(tokens, "_write", lambda *_: pytest.fail("tokenised again"))
    options = {"model": tiny("gpt2"), "data_dir": str(story), "sequence_length": 32}
    assert make_task("causal-lm", options).provenance()["sha256"] == digest
    monkeypatch.undo()
    (story / "b.txt").write_text("another")
    assert make_task("causal-lm", options).provenance()["sha256"] != digest


def test_a_damaged_token_file_is_not_used(causal, tiny, story, monkeypatch, tmp_path):
    monkeypatch.setenv("HYBRIDKIT_CACHE", str(tmp_path / "cache"))
    (file,) = causal._token_files.values()
    (file.folder / "tokens.bin").write_bytes(b"")
    with pytest.raises(FileError, match="damaged"):
        make_task("causal-lm", {"model": tiny("gpt2"), "data_dir": str(story)}).splits()


def test_what_is_interrupted_leaves_nothing(tiny, story, monkeypatch, tmp_path):
    monkeypatch.setenv("HYBRIDKIT_CACHE", str(tmp_path / "cache"))
    (story / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match=r"c.txt is not text"):
        make_task("causal-lm", {"model": tiny("gpt2"), "data_dir": str(story)}).splits()
    assert not list((tmp_path / "cache" / "tokens").iterdir())


def test_metrics_are_those_of_transformers(causal, tiny):
    splits = causal.splits()
    network = make_model(causal)
    found = evaluate(network, causal, splits.validation, batch_size=4)
    model = AutoModelForCausalLM.from_pretrained(tiny("gpt2")).eval()
    losses, sizes = [], []
    for batch in in_order(splits.validation, 1, causal.collate):
        with torch.no_grad():
            losses.append(float(model(input_ids=batch["input_ids"], labels=batch["input_ids"]).loss))
        sizes.append(float(batch["bytes"]))
    mean = sum(losses) / len(losses)
    assert found["loss"] == pytest.approx(mean, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    bits = sum(losses) * 31 / math.log(2) / sum(sizes)
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=300),
    size=st.integers(4, 40),
)
def test_pieces_are_the_document(text, size):
    piece, documents.PIECE = documents.PIECE, size
    try:
        chunks = [text[i : i + size] for i in range(0, len(text), size)]
        found = list(documents._pieces(chunks))
    finally:
        documents.PIECE = piece
    assert "".join(part.text for part in found) == text
    assert [part.last for part in found] == [False] * (len(found) - 1) + [True]
    assert all(len(part.text) < 3 * size for part in found)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 6), length=st.integers(2, 80), seed=st.integers(0, 99))
def test_covered_tokens(rows, length, seed):
    ids = torch.randint(10, 1000, (rows, length), generator=torch.Generator().manual_seed(seed))
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, 0] = True
    inputs, labels = covered(ids, special, 0.15, 4, 1000)
    chosen = labels != IGNORED
    assert (chosen.sum(1) == max(1, round((length - 1) * 0.15))).all()
    assert not (chosen & special).any()
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(inputs[~chosen], ids[~chosen])
    again, _ = covered(ids, special, 0.15, 4, 1000)
    assert torch.equal(inputs, again)


def test_how_tokens_are_covered():
    ids = torch.randint(10, 1000, (64, 256), generator=torch.Generator().manual_seed(0))
    inputs, labels = covered(ids, torch.zeros_like(ids, dtype=torch.bool), 0.15, 4, 1000)
    chosen = labels != IGNORED
    masked, kept = (inputs == 4)[chosen].float().mean(), (inputs == ids)[chosen].float().mean()
    assert float(masked) == pytest.approx(0.8, abs=0.03)
    assert float(kept) == pytest.approx(0.1, abs=0.03)
    other, _ = covered(ids.flip(0), torch.zeros_like(ids, dtype=torch.bool), 0.15, 4, 1000)
    assert not torch.equal(other.flip(0), inputs), "with other neighbours other tokens are covered"


def test_pooling_sees_what_the_mask_shows():
    hidden = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1]])
    rows = [hidden[0, :2], hidden[1, 1:]]
    expected = {
        "mean": [row.mean(0) for row in rows],
        "max": [row.amax(0) for row in rows],
        "cls": [row[0] for row in rows],
        "lasttoken": [row[-1] for row in rows],
    }
    for mode, vectors in expected.items():
        torch.testing.assert_close(pooled(hidden, mask, mode), torch.stack(vectors))


def test_pooling_of_a_folder(tmp_path):
    assert described_pooling(tmp_path) == ("mean", True)
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": f"1_{kind}"}
        for kind in ("Transformer", "Pooling")
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_Pooling").mkdir()
    config = tmp_path / "1_Pooling" / "config.json"
    config.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    assert described_pooling(tmp_path) == ("cls", False)
    config.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}))
    with pytest.raises(UsageError, match="its pooling is cls, mean"):
        described_pooling(tmp_path)
    config.write_text("{")
    with pytest.raises(FileError, match="cannot be read"):
        described_pooling(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "x.Dense", "path": ""}]))
    with pytest.raises(UsageError, match="has a Dense"):
        described_pooling(tmp_path)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-1, 1, width=16), st.integers(0, 5)), min_size=2, max_size=30))
def test_losses_and_ranks_of_pairs(pairs):
    from scipy.stats import spearmanr

    cosines, scores = (torch.tensor(x, dtype=torch.float64) for x in zip(*pairs, strict=True))
    total = sum(math.exp(20 * (b - a)) for a, i in pairs for b, j in pairs if i > j)
    assert float(cosent(cosines, scores)) == pytest.approx(math.log1p(total), rel=1e-6, abs=1e-9)
    if len(set(cosines.tolist())) > 1 and len(set(scores.tolist())) > 1:
        assert spearman(cosines, scores) == pytest.approx(spearmanr(cosines, scores).statistic)
    else:
        assert spearman(cosines, scores) == 0


def test_embeddings_do_not_see_the_padding(tiny, tmp_path):
    (tmp_path / "lines.txt").write_text("short\n\na longer line that needs more tokens than that\n" * 5)
    task = make_task("text-embedding", {"model": tiny("bert"), "data_dir": str(tmp_path)})
    assert task.needs_teacher
    network = make_model(task)
    samples = [{"text": "short"}, {"text": "a longer line that needs more tokens than that"}]
    with torch.no_grad():
        both = network(**task.inputs(task.collate(samples)))["embedding"]
        alone = network(**task.inputs(task.collate(samples[:1])))["embedding"]
    torch.testing.assert_close(both[:1], alone)
    torch.testing.assert_close(both.norm(dim=1), torch.ones(2))
    assert "pooler" not in " ".join(name for name, _ in network.named_parameters())
    assert all(row["text"] for row in task.splits().train.__getitems__([0, 1, 2]))


def test_sentences_without_scores_need_a_teacher(tiny, tmp_path, capsys):
    from hybridkit.cli import run as hybridkit

    (tmp_path / "lines.txt").write_text("a line\n" * 20)
    flags = ["--task", "text-embedding", "--model", tiny("bert"), "--data-dir", str(tmp_path)]
    assert hybridkit(["train", *flags, "--max-steps", "2", "--run-dir", str(tmp_path / "runs")]) == 2
    assert "--teacher" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_head_of_another_size_is_replaced(tiny, tmp_path, caplog):
    rows = [{"text": f"word {i}", "label": i % 5} for i in range(50)]
    (tmp_path / "five").mkdir()
    (tmp_path / "five" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first_task = make_task("text-classification", {"model": tiny("bert"), "data_dir": str(tmp_path / "five")})
    network = make_model(first_task)
    assert network.config.id2label == dict(enumerate("01234"))
    trained = tmp_path / "trained"
    network.save_pretrained(trained)
    first_task.tokenizer.save_pretrained(trained)

    caplog.clear()
    again = make_model(
        make_task("text-classification", {"model": str(trained), "data_dir": str(tmp_path / "five")})
    )
    torch.testing.assert_close(again.classifier.weight, network.classifier.weight)
    assert not caplog.records
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "rows.jsonl").write_text(
        "".join(json.dumps({"text": row["text"], "label": row["label"] % 2}) + "\n" for row in rows)
    )
    task = make_task("text-classification", {"model": str(trained), "data_dir": str(tmp_path / "two")})
    assert make_model(task).classifier.weight.shape == (2, 32)
    assert "its head knows 5 classes, the data have 2 (0, 1): it gets a new one" in caplog.text


def test_labels_follow_the_networks_order(tiny, tmp_path):
    names = ["positive", "negative", "neutral"]
    rows = [{"text": f"word {i}", "label": names[i % 3]} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"model": tiny("bert"), "data_dir": str(tmp_path / "rows.jsonl")}
    made = make_task("text-classification", options)
    assert made.labels.names == sorted(names)
    network = make_model(made)
    network.config.id2label = dict(enumerate(names))
    network.config.label2id = {name: i for i, name in enumerate(names)}
    network.save_pretrained(tmp_path / "trained")
    made.tokenizer.save_pretrained(tmp_path / "trained")
    task = make_task("text-classification", {**options, "model": str(tmp_path / "trained")})
    assert task.labels.names == names
    for row in task.splits().train.__getitems__([0, 1, 2]):
        assert row["label"] == int(row["text"].split()[1]) % 3


def test_what_does_not_belong_together(tiny, story, tmp_path):
    with pytest.raises(UsageError, match="needs a network: --model"):
        make_task("causal-lm", {})
    other = {"model": tiny("vit"), "data_dir": str(story)}
    with pytest.raises(FileError, match=r"has no tokenizer.*--set task.tokenizer"):
        make_task("causal-lm", other).splits()
    from tiny_networks import byte_level

    byte_level(tmp_path / "large", vocabulary=700)
    (tmp_path / "large" / "config.json").write_text(Path(tiny("gpt2"), "config.json").read_text())
    task = make_task(
        "causal-lm",
        {"model": tiny("gpt2"), "data_dir": str(story), "tokenizer": str(tmp_path / "large")},
    )
    with pytest.raises(UsageError, match="tokens, the network knows 300: they do not belong together"):
        make_model(task)
    options = {"model": tiny("gpt2"), "data_dir": str(story / "a.txt")}
    with pytest.raises(UsageError, match="999 tokens are asked for, the network takes 64"):
        make_task("causal-lm", {**options, "sequence_length": 999}).splits()
    task = make_task("masked-lm", options)
    blocks = task.splits().train
    with pytest.raises(UsageError, match="no mask token"):
        task.collate([blocks[0]])


def test_a_network_of_ones_own_takes_another_ones_tokenizer(tiny, story):
    options = {"model": "tiny_networks:network", "data_dir": str(story), "sequence_length": 16}
    with pytest.raises(UsageError, match=r"--set task\.tokenizer"):
        make_task("causal-lm", options).splits()
    task = make_task("causal-lm", {**options, "tokenizer": tiny("gpt2")})
    network = make_model(task, "tiny_networks:network")
    batch = first(task.splits().train, 2, task.collate)
    assert math.isfinite(task.loss(network(**task.inputs(batch)), batch).item())


def test_the_digest_depends_on_content_and_tokenizer(tiny, story, tmp_path):
    import shutil

    shutil.copytree(story, tmp_path / "copy", ignore=shutil.ignore_patterns("copy"))
    found = [
        make_task("causal-lm", {"model": tiny(model), "data_dir": str(where)}).provenance()["sha256"]
        for model, where in (
            ("gpt2", story / "a.txt"),
            ("gpt2", tmp_path / "copy" / "a.txt"),
            ("bert", story / "a.txt"),
        )
    ]
    assert found[0] == found[1] != found[2]


def test_cluster_features_count_tokens(causal):
    batch = first(causal.splits().train, 5, causal.collate)
    features = causal.cluster_features(batch)
    np.testing.assert_allclose(features.sum(1), 1, rtol=1e-5)
    assert F.cosine_similarity(*torch.from_numpy(features[:2]).split(1)).item() > 0
