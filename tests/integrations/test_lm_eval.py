"""lm-evaluation-harness on a run's network, packed and not, with tasks that lie in local files."""

from __future__ import annotations

import functools
import json
import sys

import pytest

pytest.importorskip("lm_eval")

import datasets
import torch
import yaml
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny_llama import tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import hybridkit
from hybridkit.cli import run
from hybridkit.errors import UsageError
from hybridkit.integrations.folders import save_pretrained
from hybridkit.integrations.lm_eval import HybridkitLM, main
from hybridkit.runtime.modules import PackedLinear

QUESTIONS = [
    {"q": "The sky is", "choices": [" blue", " green"], "gold": 0, "text": "The sky is blue, mostly."},
    {"q": "Two and two is", "choices": [" five", " four"], "gold": 1, "text": "Two and two is four."},
    {"q": "Ice is", "choices": [" hot", " cold"], "gold": 1, "text": "Ice is cold; fire is not."},
]
TASKS = {
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False}
        ],
    },
    "say": {
        "output_type": "generate_until",
        "doc_to_text": "{{q}}",
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}


def tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte."""
    alphabet = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="!", pad_token="!")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder of tasks over a JSONL file."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    for name, task in TASKS.items():
        where = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}}
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"task": name, "test_split": "test", **where, **task})
        )
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of Hugging Face layout that holds a ternary network as it trained."""
    folder = tmp_path_factory.mktemp("network")
    save_pretrained(hybridkit.prepare_qat(tiny_llama(tie_word_embeddings=True), quantize_all=True), folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def judged(model, tasks):
    """Every answer to every question: log-likelihoods, and what was said."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(
        model=model, tasks=list(TASKS), task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    return {name: [sample["filtered_resps"] for sample in found["samples"][name]] for name in TASKS}


def flat(value):
    return [x for part in value for x in flat(part)] if isinstance(value, list | tuple) else [value]


def same(ours, theirs, tolerance):
    for name in TASKS:
        for a, b in zip(flat(ours[name]), flat(theirs[name]), strict=True):
            assert a == (pytest.approx(b, abs=tolerance) if isinstance(b, float) else b), name


def test_a_network_in_full_precision_is_judged_as_by_lm_eval_itself(tmp_path, tasks):
    tiny_llama().save_pretrained(tmp_path / "plain")
    tokenizer().save_pretrained(tmp_path / "plain")
    theirs = judged(HFLM(str(tmp_path / "plain"), device="cpu", dtype="float32"), tasks)
    assert len(flat(theirs["say"])) == len(QUESTIONS)
    assert judged(HybridkitLM(str(tmp_path / "plain")), tasks) == theirs


def test_a_network_that_trained_ternary_runs_packed(tasks, folder, tmp_path):
    ours = HybridkitLM(str(folder), batch_size=2)
    assert isinstance(ours.model.model.layers[0].mlp.up_proj, PackedLinear)
    packed = tmp_path / "packed.hk.safetensors"
    assert run(["quantize", str(folder), "-o", str(packed)]) == 0
    trained = hybridkit.prepare_qat(tiny_llama(tie_word_embeddings=True), quantize_all=True).eval()
    theirs = judged(HFLM(trained, tokenizer=tokenizer()), tasks)
    same(judged(ours, tasks), theirs, 1e-3)
    same(judged(HybridkitLM(str(packed)), tasks), theirs, 1e-3)


@pytest.fixture
def command(monkeypatch, tasks):
    """Runs lm_eval's command line in this process, without the thousands of tasks that it brings."""
    plain = functools.partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", plain)

    def run_(source, *arguments):
        what = ["--model", "hybridkit", "--model_args", f"source={source}", "--tasks", "choose"]
        monkeypatch.setattr(sys, "argv", ["lm_eval", "run", *what, "--include_path", str(tasks), *arguments])
        main()

    return run_


def test_the_command_is_lm_evals_with_one_more_model(command, folder, tmp_path):
    command(folder, "--output_path", str(tmp_path))
    (written,) = tmp_path.rglob("results_*.json")
    assert 0 <= json.loads(written.read_text())["results"]["choose"]["acc,none"] <= 1


def test_a_source_that_is_none_is_one_line(command, capsys):
    with pytest.raises(SystemExit, match="1"):
        command("nowhere")
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: nowhere: there is no run here")


def test_a_source_without_a_tokenizer_takes_that_of_another(folder, tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="tokenizer=FOLDER"):
        HybridkitLM(str(tmp_path))
    assert HybridkitLM(str(tmp_path), tokenizer=str(folder)).tok_encode("ab") == tokenizer().encode("ab")


def test_what_is_no_language_model_is_refused(tmp_path, monkeypatch):
    (tmp_path / "nets.py").write_text("import torch\n\ndef net():\n    return torch.nn.Linear(2, 2)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match="no causal language model"):
        HybridkitLM("nets:net")


def test_a_gpu_that_is_not_there_is_the_cpu(folder):
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert HybridkitLM(str(folder), device="cuda:0").model.device.type == expected
