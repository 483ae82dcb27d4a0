"""Every kind of source wherever a source is opened, a plugin's among them, and texts that mean nothing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from test_registry import Site, hook, site  # noqa: F401 - a fixture
from torch import nn

from hybridkit.cli import run
from hybridkit.errors import FileError, HybridkitError, UsageError
from hybridkit.packing.model import PackedModel
from hybridkit.quant.post_training import quantize_to_file
from hybridkit.registry import registry
from hybridkit.runtime.modules import load_packed
from hybridkit.runtime.session import session
from hybridkit.sources.protocol import Code, open_source
from hybridkit.tasks.digits import digits_mlp
from hybridkit.training.config import resolve
from hybridkit.training.loop import train
from hybridkit.training.runs import Run
from hybridkit.training.trainer import Trainer

MODULE = """
import torch
from hybridkit.tasks.digits import digits_mlp

def net():
    torch.manual_seed(3)
    return digits_mlp()

ready = net()
"""
FLAGS: dict[str, Any] = {"max_steps": 1, "batch_size": 64, "threads": 1}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in `runs/run`, its checkpoint, packed model and weights in one file and in two, and a module."""
    folder = tmp_path_factory.mktemp("shelf")
    made = train(resolve(qat=True, ternary=True, **FLAGS), run_dir=folder / "made").run
    (folder / "runs").mkdir()
    shutil.copytree(made.path, folder / "runs" / "run")
    shutil.copy(made.packed_path, folder / "model.hk.safetensors")
    state = made.checkpoint().model
    save_file(state, folder / "weights.safetensors")
    names = list(state)
    parts = {"one.safetensors": names[:1], "two.safetensors": names[1:]}
    for file, held in parts.items():
        save_file({name: state[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "parts.safetensors.index.json").write_text(json.dumps(index))
    (folder / "sources_net.py").write_text(MODULE)
    return folder


@pytest.fixture(autouse=True)
def folder(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The shelf's things by short names, in a folder of the test's own."""
    shutil.copytree(shelf, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("NO_COLOR", "1")
    yield tmp_path
    sys.modules.pop("sources_net", None)


TEXTS = {
    "run": "run",
    "checkpoint": "runs/run/checkpoints/step-1",
    "packed": "model.hk.safetensors",
    "weights": "weights.safetensors",
    "index": "parts.safetensors.index.json",
    "module": "sources_net:net",
}


def expected(kind: str) -> dict[str, torch.Tensor]:
    """The weights that a source stands for."""
    if kind == "module":
        torch.manual_seed(3)
        return digits_mlp().state_dict()
    state = Run(Path("runs/run")).checkpoint().model
    if kind == "packed":
        packed = PackedModel.load(TEXTS["packed"])
        state |= {f"{n}.weight": torch.from_numpy(layer.dequantize()) for n, layer in packed.layers.items()}
    return state


@pytest.mark.parametrize("kind", TEXTS)
def test_a_run_starts_from_any_source(kind: str) -> None:
    own = Trainer.seeded(resolve(init_from=TEXTS[kind], **FLAGS)).model.state_dict()
    wanted = expected(kind)
    assert set(own) == set(wanted)
    assert all(torch.equal(own[name], tensor) for name, tensor in wanted.items())
    assert run(["train", "--init-from", TEXTS[kind], "--max-steps", "1", "--threads", "1"]) == 0


@pytest.mark.parametrize("kind", TEXTS)
def test_any_source_teaches(kind: str) -> None:
    trainer = Trainer.seeded(resolve(teacher=TEXTS[kind], **FLAGS))
    teacher = trainer.objective.teacher
    assert teacher is not None
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    if kind == "packed":
        wanted = load_packed(digits_mlp(), PackedModel.load(TEXTS[kind]))(x)
    elif kind in ("run", "checkpoint"):
        wanted = Run(Path("runs/run")).load_model()[1](x)  # with fake-quantised layers
    else:
        network = digits_mlp().eval()
        network.load_state_dict(expected(kind))
        wanted = network(x)
    assert torch.equal(teacher(x), wanted)
    trainer.step()


def test_opening_a_teacher_of_weights_moves_no_random_state() -> None:
    draws = []
    for text in ("run", "weights.safetensors"):
        trainer = Trainer.seeded(resolve(teacher=text, **FLAGS))
        draws.append((torch.rand(3), trainer.model.state_dict()["output.weight"]))
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])


OF_TASK = ["--task", "digits"]
OF_MODEL = ["--model", "sources_net:net"]
INPUT = ["--input", "x:batch,64"]


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("run", []),
        ("checkpoint", []),
        ("weights", OF_TASK),
        ("index", OF_TASK),
        ("weights", [*OF_TASK, "--model", "mlp"]),
        ("index", OF_MODEL),
        ("module", []),
        ("module", OF_TASK),
    ],
)
def test_any_source_is_quantised(kind: str, flags: list[str]) -> None:
    assert run(["quantize", TEXTS[kind], *flags]) == 0
    packed = PackedModel.load("model.hk.safetensors")
    wanted = expected(kind)
    assert torch.equal(torch.from_numpy(packed.tensors["output.weight"].copy()), wanted["output.weight"])
    assert "metrics" not in packed.metadata


@pytest.mark.parametrize(
    ("kind", "flags"),
    [
        ("checkpoint", []),
        ("packed", [*OF_MODEL, *INPUT]),
        ("weights", OF_TASK),
        ("index", [*OF_MODEL, *INPUT]),
        ("module", INPUT),
        ("module", OF_TASK),
    ],
)
def test_any_source_is_exported(kind: str, flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "m.onnx", "--from", TEXTS[kind], *flags]) == 0
    assert "Verified on " in capsys.readouterr().out


@pytest.mark.parametrize("exporter", ["onnx", "fp32", "matmulnbits"])
def test_a_packed_file_and_its_run_are_exported_and_give_one_network(
    exporter: str, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    scores = []
    for name, source in (("a.onnx", "run"), ("b.onnx", TEXTS["packed"])):
        flags = [] if exporter == "onnx" else ["--target", exporter]
        assert run(["export", name, "--from", source, *flags]) == 0
        assert "Verified on " in capsys.readouterr().out
        runner = session(name, threads=1)
        scores += runner.run(None, {runner.get_inputs()[0].name: x})
    assert (scores[0] == scores[1]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--init-from", "x.onnx"], "x.onnx is an ONNX file; only hybridkit quantize takes it"),
        (["train", "--teacher", "x.onnx"], "x.onnx is an ONNX file; only hybridkit quantize takes it"),
        (["export", "m.onnx", "--from", "x.onnx"], "x.onnx is an ONNX file"),
        (["export", "m.onnx", "--from", "weights.safetensors", *OF_MODEL], "--input NAME:SHAPE"),
        (["export", "m.onnx", "--from", "sources_net:net"], "--input NAME:SHAPE"),
        (["export", "m.onnx", "--from", "run", *INPUT], "its task says"),
        (["quantize", "model.hk.safetensors"], "is packed already"),
        (["quantize", "weights.safetensors", "--task", "digit"], "did you mean 'digits'"),
        (["quantize", "run", "--set", "source.dtype=fp16"], "has no option 'dtype'"),
        (["train", "--teacher", "nowhere"], "there is no run here"),
        (["train", "--teacher", "missing.hk.safetensors"], "missing.hk.safetensors"),
        (["train", "--init-from", "missing.safetensors"], "there is no such file"),
        (["train", "--init-from", "pickle.pt"], "not a safetensors file"),
        (["train", "--teacher", "pickle.pt"], "not a safetensors file"),
        (["export", "m.onnx", "--from", "pickle.pt", *OF_TASK], "not a safetensors file"),
        (["quantize", "pickle.pt", *OF_TASK], "not a safetensors file"),
    ],
)
def test_mistakes_get_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    torch.save(digits_mlp().state_dict(), "pickle.pt")
    (folder / "x.onnx").write_bytes(b"")
    assert run(arguments) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (folder / "m.onnx").exists()


@pytest.mark.parametrize("part", ["network", "task"])
@pytest.mark.parametrize("says", [{"task": "evil_code:task"}, {"task": "digits", "model": "evil_code:net"}])
def test_code_that_only_a_packed_file_names_is_not_imported(
    says: dict[str, str], part: str, folder: Path
) -> None:
    packed = PackedModel.load(TEXTS["packed"])
    PackedModel(packed.layers, packed.tensors, packed.tied, says).save("evil.hk.safetensors")
    (folder / "evil_code.py").write_text(
        "from hybridkit.tasks.digits import Digits as task, digits_mlp as net"
    )
    named = says.get("model", says["task"])
    if part == "network" or "model" not in says:
        with pytest.raises(UsageError, match=f"say --(model|task) {named}"):
            getattr(open_source("evil.hk.safetensors"), part)
    assert "evil_code" not in sys.modules
    allowed = open_source("evil.hk.safetensors", Code(also=[named]))
    assert allowed.network is not None
    assert "evil_code" in sys.modules
    del sys.modules["evil_code"]


def test_of_a_run_only_what_its_network_needs_has_to_be_named(folder: Path) -> None:
    (folder / "sources_optimizer.py").write_text("from torch.optim import SGD as Mine")
    flags = {"model": "sources_net:net", "optimizer": "sources_optimizer:Mine"}
    made = train(resolve(**flags, **FLAGS), run_dir=folder / "own").run
    with pytest.raises(UsageError, match="say --model sources_net:net"):
        _ = open_source(str(made.path)).network
    assert open_source(str(made.path), Code(model="sources_net:net")).network is not None
    with pytest.raises(UsageError, match="say --optimizer"):
        made.config(Code(model="sources_net:net"))


NPZ = """
import numpy as np
import torch
from hybridkit.sources.kinds import WeightsFile

class Npz(WeightsFile):
    \"\"\"Weights in an .npz.\"\"\"

    def matches(self, text):
        return text.endswith(".npz")

    def weights(self):
        with np.load(self.text, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
"""


@pytest.fixture
def fresh_registry(site: Site) -> Any:  # noqa: F811
    """A place to install plugins, which the process then knows."""
    registry.cache_clear()
    yield site
    registry.cache_clear()


def test_a_plugins_kind_works_everywhere(fresh_registry: Site, capsys: pytest.CaptureFixture[str]) -> None:
    fresh_registry.install("hk-npz", "hk_npz", hook("source", "npz", "hk_npz:Npz") + NPZ)
    np.savez("w.npz", **{name: tensor.numpy() for name, tensor in expected("weights").items()})
    own = Trainer.seeded(resolve(init_from="w.npz", teacher="w.npz", **FLAGS))
    assert torch.equal(own.model.state_dict()["output.weight"], expected("weights")["output.weight"])
    assert own.objective.teacher is not None
    assert run(["quantize", "w.npz", *OF_MODEL]) == 0
    assert run(["export", "m.onnx", "--from", "w.npz", *OF_TASK]) == 0
    assert run(["plugins", "--kind", "source"]) == 0
    assert "hk-npz" in capsys.readouterr().out
    Path("bad.npz").write_bytes(b"PK")
    assert run(["quantize", "bad.npz", "--set", "source.x=1"]) == 2


@pytest.mark.parametrize("breaks", ["import", "matches", "make"])
def test_a_broken_kind_is_passed_over(
    fresh_registry: Site, breaks: str, caplog: pytest.LogCaptureFixture
) -> None:
    code = {
        "import": "import does_not_exist",
        "matches": "class Kind:\n    def matches(self, text): return 1 / 0",
        "make": "class Kind:\n    def __init__(self): raise RuntimeError('no')",
    }[breaks]
    (fresh_registry.folder / "broken_kind.py").write_text(code)
    fresh_registry.install("hk-broken", "hk_broken", hook("source", "broken", "broken_kind:Kind"))
    assert set(open_source("weights.safetensors").weights()) == set(expected("weights"))
    assert "source hk-broken:broken was passed over" in caplog.text


files = st.builds(
    lambda text, suffix: text.replace("\n", "") + suffix,
    st.text(),
    st.sampled_from([".safetensors", ".hk.safetensors", ".safetensors.index.json"]),
)


@given(st.text() | files | st.from_regex(r"\w+:\w+", fullmatch=True))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_other_text_is_one_line(text: str) -> None:
    source = open_source(text)
    for part in (source.weights, source.streamed, lambda: source.network, lambda: source.packed):
        with pytest.raises((FileError, UsageError)) as caught:
            part()
        assert str(caught.value).count("\n") == 0
        assert isinstance(caught.value, HybridkitError)


def test_the_weights_of_a_packed_file_that_ties_them_in_bf16() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(5, 8), nn.Linear(8, 5, bias=False)
            self.middle, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
            self.head.weight = self.table.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.last(self.middle(self.table(x))))

    network = Tied()
    quantize_to_file(network, "tied.hk.safetensors", float_dtype="bf16")
    weights = open_source("tied.hk.safetensors").weights()
    assert set(weights) == set(network.state_dict())
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert torch.equal(weights["head.weight"], network.table.weight.bfloat16().float())
    assert torch.equal(weights["table.weight"], weights["head.weight"])
    assert len(weights["middle.weight"].unique()) > 2
    assert len(weights["middle.weight"][0].unique()) <= 3
