"""`hybridkit export`, from a run, a packed file, plain weights and a module."""

from __future__ import annotations

import json
import sys

import onnx
import pytest
import torch
from safetensors.torch import save_file

from hybridkit.cli import run
from hybridkit.cli._export_inputs import described, parse_input
from hybridkit.errors import UsageError
from hybridkit.runtime.library import library_path
from hybridkit.runtime.session import session
from hybridkit.sources.protocol import open_source

TRAIN = ["train", "--hybrid", "--ternary", "--qat", "--epochs", "1", "--batch-size", "256", "--threads", "1"]
NETWORK = """
import torch
from torch import nn

class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 6), nn.Linear(6, 3)

    def forward(self, ids):
        return self.head(self.embedding(ids).mean(1))

def bag():
    torch.manual_seed(0)
    return Bag()

class Masked(Bag):
    def forward(self, ids, bias=None, mask=None):
        x = self.embedding(ids.reshape(ids.shape))
        x = x if mask is None else x * mask[..., None]
        rows = x if bias is None else x + bias
        return {"scores": self.head(x.sum(1)), "rows": rows, "past_key_values": (x,)}

class Hungry(nn.Module):
    def forward(self, table):
        return torch.zeros(5, 3)[table]
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A folder with one short digits run in it and a module with a network."""
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYBRIDKIT_RUNS", str(folder / "runs"))
        assert run(TRAIN) == 0
    (folder / "export_networks.py").write_text(NETWORK)
    return folder


@pytest.fixture(autouse=True)
def _at_work(workdir, monkeypatch):
    monkeypatch.setenv("HYBRIDKIT_RUNS", str(workdir / "runs"))
    monkeypatch.chdir(workdir)
    monkeypatch.syspath_prepend(str(workdir))


def test_the_newest_run_is_exported_and_verified(capsys):
    assert run(["export", "model.onnx"]) == 0
    first, second, third, *native, heading, spared = capsys.readouterr().out.splitlines()
    assert first.startswith("model.onnx: ")
    assert "x smaller than in fp32" in first
    assert "bits per weight" in second
    assert third.startswith("Verified on 179 samples")
    assert native == ["Native operators and portable bodies agree bit for bit"] * (library_path() is not None)
    assert heading.split() == ["Left", "alone", "Shape", "Reason"]
    assert spared.endswith("10x512  last Linear")
    properties = {p.key: p.value for p in onnx.load("model.onnx").metadata_props}
    assert properties["hybridkit.task"] == "digits"
    assert "accuracy" in properties["hybridkit.metrics"]
    assert "/" not in properties["hybridkit.run"]
    runner = session("model.onnx", threads=1)
    (given,) = runner.get_inputs()
    (scores,) = runner.run(None, {given.name: torch.zeros(3, 64).numpy()})
    assert scores.shape == (3, 10)


def test_json_and_the_packed_file_of_the_run(workdir, capsys):
    (packed,) = (workdir / "runs").glob("*/model.hk.safetensors")
    command = ["export", "m.onnx", "--from", str(packed), "--target", "matmulnbits", "--json"]
    assert run([*command, "--set", "exporter.block_size=32"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "hybridkit/export/1"
    report = document["report"]
    assert report["target"] == "matmulnbits"
    assert report["verification"]["samples"] == 179
    assert document["ratio"] == pytest.approx(report["fp32_bytes"] / report["file_bytes"])
    sizes = {a.i for n in onnx.load("m.onnx").graph.node for a in n.attribute if a.name == "block_size"}
    assert sizes == {32}


def test_a_module_of_the_users_own(workdir, capsys):
    command = ["export", "bag.onnx", "--model", "export_networks:bag", "--input", "ids:int64:batch,length=5"]
    assert run([*command, "--opset", "20"]) == 0
    assert "Verified on 16 samples" in capsys.readouterr().out
    proto = onnx.load("bag.onnx")
    assert proto.opset_import[0].version == 20
    shape = proto.graph.input[0].type.tensor_type.shape
    assert [d.dim_param for d in shape.dim] == ["batch", "length"]
    weights = {
        name: torch.zeros_like(t) for name, t in sys.modules["export_networks"].bag().state_dict().items()
    }
    save_file(weights, "zeros.safetensors")
    assert run([*command, "--from", "zeros.safetensors", "--no-verify"]) == 0
    assert "Not verified" in capsys.readouterr().out
    (scores,) = session("bag.onnx", threads=1).run(None, {"ids": torch.ones(2, 5, dtype=torch.int64).numpy()})
    assert not scores.any()


def test_an_input_that_an_embedding_gets_is_of_indices(capsys):
    assert run(["export", "bag.onnx", "--model", "export_networks:bag", "--input", "ids:batch,length=5"]) == 0
    assert "Verified on 16 samples" in capsys.readouterr().out
    assert onnx.load("bag.onnx").graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.INT64


MASKED = ["--model", "export_networks:Masked", "--input"]


def test_inputs_by_name_and_outputs_by_key(capsys):
    command = ["export", "masked.onnx", *MASKED, "mask:int64:batch,length", "--input", "ids:batch,length"]
    assert run(command) == 0
    assert "Largest differences: scores: " in capsys.readouterr().out
    graph = onnx.load("masked.onnx").graph
    assert [v.name for v in graph.input] == ["mask", "ids"]
    assert [v.name for v in graph.output] == ["scores", "rows"]
    assert run(["export", "ids.onnx", *MASKED, "ids:batch,length"]) == 0
    assert [v.name for v in onnx.load("ids.onnx").graph.input] == ["ids"]


def test_indices_are_random_and_other_integers_are_ones():
    inputs = ["mask:int64:batch,length", "ids:batch,length", "bias:1,6"]
    (batch,) = described(open_source("export_networks:Masked"), None, inputs).validation.batches
    assert list(batch) == ["mask", "ids", "bias"]
    assert bool((batch["mask"] == 1).all())
    assert batch["ids"].dtype == torch.int64
    assert 0 <= int(batch["ids"].min()) < int(batch["ids"].max()) < 12
    assert batch["bias"].dtype == torch.float32
    texts = ["tokens:batch,length"]
    (batch,) = described(open_source("export_networks:Masked"), None, texts).validation.batches
    assert isinstance(batch, tuple), "no argument has the name"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m.onnx", "--model", "export_networks:Hungry", "--input", "table:1,4"], "table:int64:1,4"),
        (["model.tflite"], "no exporter writes such files"),
        (["model.onnx", "--target", "onx"], "did you mean 'onnx'"),
        (["model.onnx", "--opset", "12"], "from 18 to 23"),
        (["model.onnx", "--input", "x:1,64"], "--input describes a network of --model"),
        (["model.onnx", "--model", "export_networks:nothing", "--input", "x:1,64"], "has no 'nothing'"),
        (["model.onnx", "--model", "export_networks:bag", "--input", "x"], "expected NAME:SHAPE"),
        (["model.onnx", "--from", "nowhere"], "there is no run here"),
        (["model.onnx", "--target", "matmulnbits", "--set", "exporter.blok_size=32"], "block_size"),
        (["no/folder/model.onnx"], "there is no folder"),
    ],
)
def test_mistakes_get_one_line(arguments, message, capsys):
    assert run(["export", *arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_weights_without_a_network(capsys):
    save_file({"a": torch.zeros(2)}, "plain.safetensors")
    assert run(["export", "m.onnx", "--from", "plain.safetensors"]) == 2
    assert "holds weights only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x:1,64", ("x", None, [1, 64], {0: "batch"})),
        ("x:8", ("x", None, [8], {0: "batch"})),
        ("ids:int64:batch,seq", ("ids", torch.int64, [2, 32], {0: "batch", 1: "seq"})),
        ("a:float16:3,time=400", ("a", torch.float16, [3, 400], {1: "time"})),
    ],
)
def test_inputs(text, expected):
    assert parse_input(text) == expected


@pytest.mark.parametrize("text", ["", "x", "x:", ":1,2", "x:floaty:1", "x:1,-2", "x:1,,2", "x:0,3", "x:a b"])
def test_inputs_of_another_form(text):
    with pytest.raises(UsageError, match="expected NAME:SHAPE"):
        parse_input(text)
