"""`hybridkit quantize`: each kind of source, what is printed, and one line for every mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hybridkit.cli import run
from hybridkit.packing.model import PackedModel
from hybridkit.quant.config import QuantConfig
from hybridkit.runtime.modules import load_packed
from hybridkit.training.config import resolve
from hybridkit.training.loop import train
from hybridkit.training.runs import Run

MODEL = """
from torch import nn

def net():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 3))

ready = net()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    flags = {"plain": {}, "qat": {"qat": True, "ternary": True}}
    return {
        name: train(resolve(epochs=1, batch_size=256, threads=1, **given), run_dir=folder).run
        for name, given in flags.items()
    }


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "quantize_command_net.py").write_text(MODEL)
    return tmp_path


def test_a_run_is_quantised_afterwards(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", str(runs["plain"].path), "-o", "out.hk.safetensors"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Layer ")
    assert re.search(r"^hidden\.0 +ternary-mse +512x64 +1\.58 +\d+\.\d % +0\.\d{4}$", out, re.M)
    assert re.search(
        r"^Packed: \d\.\d{3} bits per weight on disk; [\d,]+ bytes, \d+\.\d\dx smaller than", out, re.M
    )
    packed = PackedModel.load("out.hk.safetensors")
    task, model = runs["plain"].load_model()
    assert packed.metadata["task"] == "digits"
    assert packed.metadata["run"] == runs["plain"].path.name
    x = task.inputs(task.splits().test)[0]
    with torch.no_grad():
        assert load_packed(model, packed)(x).shape == model(x).shape


def test_a_qat_run_is_packed_as_it_trained(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", str(runs["qat"].path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "hybridkit/quantize/1"
    assert {layer["quantizer"] for layer in document["layers"]} == {"ternary-absmean"}
    ours, theirs = PackedModel.load("model.hk.safetensors"), runs["qat"].packed()
    assert document["sizes"]["file_bytes"] == Path("model.hk.safetensors").stat().st_size
    for name, layer in theirs.layers.items():
        assert (layer.codes == ours.layers[name].codes).all()
        assert layer.spec == ours.layers[name].spec


def test_what_a_qat_run_spared_gets_its_own_bits(runs: dict[str, Run]) -> None:
    assert run(["quantize", str(runs["qat"].path), "--embeddings", "8"]) == 0
    ours, theirs = PackedModel.load("model.hk.safetensors"), runs["qat"].packed()
    assert set(ours.layers) - set(theirs.layers) == {"output"}
    assert (ours.layers["output"].quantizer, ours.layers["output"].codec) == ("nbit", "nbit8")
    assert all((layer.codes == ours.layers[name].codes).all() for name, layer in theirs.layers.items())


def test_one_checkpoint_of_a_run(runs: dict[str, Run]) -> None:
    checkpoint = next((runs["plain"].path / "checkpoints").glob("step-*"))
    assert run(["quantize", str(checkpoint), "--quantizer", "nbit", "--set", "quantizer.bits=8"]) == 0
    assert PackedModel.load("model.hk.safetensors").layers["hidden.0"].codec == "nbit8"


def test_options_reach_the_file(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--activations", "int8", "--codec", "base3", "--quantize-all", "--compress", "zstd"]
    assert run(["quantize", str(runs["plain"].path), "--quantizer", "ternary-absmean", *flags, "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)["sizes"]
    layers = PackedModel.load("model.hk.safetensors").layers
    assert {layer.codec for layer in layers.values()} == {"base3"}
    assert {layer.activations for layer in layers.values()} == {"int8"}
    assert "output" in layers
    assert 1.6 < sizes["bits_per_weight"] < 2.0
    assert Path("model.hk.safetensors").read_bytes()[:4] == b"\x28\xb5\x2f\xfd"  # a zstd frame


def test_what_is_left_alone_is_a_table_with_reasons(
    runs: dict[str, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("plain", "qat"):
        assert run(["quantize", str(runs[name].path)]) == 0
        assert re.search(
            r"^Left alone +Shape +Reason *\n^output +10x\d+ +last Linear *$", capsys.readouterr().out, re.M
        )
        assert run(["quantize", str(runs[name].path), "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["left_alone"]
        assert (row["name"], row["kind"], row["reason"]) == ("output", "linear", "last Linear")


def test_groups_and_layers_of_their_own(runs: dict[str, Run]) -> None:
    words = ["--granularity", "group:16", "--layer", "hidden.0=nbit", "--layer", "output=binary"]
    assert run(["quantize", str(runs["plain"].path), *words]) == 0
    packed = PackedModel.load("model.hk.safetensors")
    assert {layer.group_size for layer in packed.layers.values()} == {16}
    assert packed.layers["hidden.0"].codec == "nbit4"
    assert packed.layers["output"].codec == "one-bit"
    how = QuantConfig.from_json(packed.metadata["quantization"])
    assert how.layers == {"hidden.0": "nbit", "output": "binary"}
    flags = ["--set", "quantizer.granularity=group:16"]
    assert run(["quantize", str(runs["plain"].path), *flags]) == 0
    assert PackedModel.load("model.hk.safetensors").layers["hidden.0"].group_size == 16


def test_bits_within_a_budget(runs: dict[str, Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", str(runs["plain"].path), "--target-bits", "2.5", "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    sizes = [layer["shape"][0] * layer["shape"][1] for layer in layers]
    assert sum(n * layer["bits"] for n, layer in zip(sizes, layers, strict=True)) <= 2.51 * sum(sizes)
    assert {layer["quantizer"] for layer in layers} != {"ternary-mse"}


def test_weights_in_a_file_with_their_network(folder: Path) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 3))
    save_file(network.state_dict(), folder / "weights.safetensors")
    assert (
        run(["quantize", "weights.safetensors", "--model", "quantize_command_net:net", "--quantizer", "nbit"])
        == 0
    )
    packed = PackedModel.load("model.hk.safetensors")
    assert set(packed.layers) == {"0", "2"}
    assert (packed.tensors["3.weight"] == network[3].weight.detach().numpy()).all()


@pytest.mark.parametrize("attribute", ["net", "ready"])
def test_weights_in_several_files_in_half_precision(folder: Path, attribute: str) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 3)).half()
    state = network.state_dict()
    (folder / "parts").mkdir()
    for name, tensor in state.items():
        save_file({name: tensor}, folder / "parts" / f"{name}.safetensors")
    index = folder / "parts" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{name}.safetensors" for name in state}}))
    words = ["quantize", str(index), "--model", f"quantize_command_net:{attribute}", "--embeddings", "8"]
    assert run([*words, "--float-dtype", "bf16"]) == 0
    packed = PackedModel.load("model.hk.safetensors")
    assert {name: layer.codec for name, layer in packed.layers.items()} == {
        "0": "two-bit",
        "2": "two-bit",
        "3": "nbit8",
    }
    assert {array.dtype.name for array in packed.tensors.values()} == {"bfloat16"}
    assert {layer.scale_type for layer in packed.layers.values()} == {"F16"}


@pytest.mark.parametrize("attribute", ["net", "ready"])
def test_a_network_of_the_users_own(attribute: str) -> None:
    assert run(["quantize", f"quantize_command_net:{attribute}"]) == 0
    packed = PackedModel.load("model.hk.safetensors")
    assert packed.metadata["model"] == f"quantize_command_net:{attribute}"
    assert set(packed.layers) == {"0", "2"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["no-such-run"], 1, "no-such-run: there is no run here"),
        (["QAT", "--quantizer", "binary"], 2, "is packed as it trained; drop --quantizer"),
        (["QAT", "--target-bits", "2"], 2, "is packed as it trained; drop --target-bits"),
        (["QAT", "--set", "quantizer.bits=2"], 2, "is packed as it trained; drop --set quantizer"),
        (["PLAIN", "--quantizer", "ternary"], 2, "no quantizer is called 'ternary'; did you mean"),
        (["PLAIN", "--quantizer", "nbit", "--set", "quantizer.bits=5"], 2, "should be 2, 3, 4 or 8"),
        (["PLAIN", "--target-bits", "9"], 2, "target bits go from 1 to 8 per weight, not 9"),
        (["PLAIN", "--target-bits", "3", "--quantizer", "binary"], 2, "'binary' is not ternary"),
        (["PLAIN", "--activations", "int4"], 2, "no activation mode is called 'int4'"),
        (["PLAIN", "--codec", "base4"], 2, "base4"),
        (
            ["PLAIN", "--granularity", "group"],
            2,
            "'group' is no granularity; say tensor, channel or group:SIZE",
        ),
        (["PLAIN", "--layer", "head"], 2, "expected PATTERN=QUANTIZER"),
        (["PLAIN", "--layer", "haed=fp32"], 2, "'haed' matches no layer"),
        (["QAT", "--granularity", "tensor"], 2, "is packed as it trained; drop --granularity"),
        (["PLAIN", "--codec", "one-bit"], 2, "holds the levels of no layer"),
        (["PLAIN", "-o", "nowhere/model"], 1, "cannot write nowhere/model"),
        (["weights.safetensors"], 2, "say the network with --model"),
        (["weights.safetensors", "--model", "quantize_command_net:net"], 2, "lacks"),
        (["quantize_command_net:nett"], 2, "did you mean 'net'"),
        (["old.hk.safetensors"], 2, "is packed already"),
    ],
)
def test_mistakes_get_one_line_and_leave_no_file(
    arguments: list[str],
    code: int,
    message: str,
    runs: dict[str, Run],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_file({"other": torch.zeros(2)}, folder / "weights.safetensors")
    names = {"QAT": str(runs["qat"].path), "PLAIN": str(runs["plain"].path)}
    assert run(["quantize", *(names.get(a, a) for a in arguments)]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (folder / "model.hk.safetensors").exists()


def test_code_that_only_a_file_names_is_not_imported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "quantize_command_net2.py").write_text(
        "from hybridkit.quant.binary import Binary as Mine\n"
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Linear(64, 9), nn.Linear(9, 10))\n"
    )
    flags = {"model": "quantize_command_net2:net", "quantizer": "quantize_command_net2:Mine", "qat": True}
    made = train(resolve(epochs=1, batch_size=512, threads=1, **flags), run_dir=folder / "own").run
    assert run(["quantize", str(made.path)]) == 2
    assert "say --" in capsys.readouterr().err
    repeated = ["--model", flags["model"], "--quantizer", flags["quantizer"]]
    assert run(["quantize", str(made.path), *repeated]) == 0
