"""Short trainings whose results are written down to the bit: `python tests/golden/trainings.py --write`.

A change that is not meant to change behaviour leaves every digest where it is. Bits depend on the kernels
that torch picks; the environment below makes it pick those that every x86-64 processor has. MKL still gives
other bits on processors of another maker, so each maker has its own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("golden.json")
SAME_KERNELS = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_CORETYPE": "NEHALEM",
}
HYBRID_TERNARY = ("--hybrid", "--ternary", "--qat", "--threads", "1", "--seed", "5")
RUNS: dict[str, tuple[str, ...]] = {
    "digits": ("--task", "digits", "--max-steps", "60"),
    "fashion-mnist": ("--task", "fashion-mnist", "--max-steps", "12"),
    # a text that comes with the very version of torch the bits are for
    "text": (
        "--task",
        "text",
        "--max-steps",
        "12",
        "--batch-size",
        "8",
        "--data-dir",
        "{torch}/_tensor_docs.py",
    ),
}


def torch_version() -> str:
    """Bits are promised for one version of torch."""
    from importlib.metadata import version

    return version("torch").partition("+")[0]


def torch_folder() -> Path:
    """Where torch is installed."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def maker() -> str:
    """Who made this x86-64 processor, as it says itself; empty elsewhere."""
    if platform.machine() != "x86_64" or not (about := Path("/proc/cpuinfo")).is_file():
        return ""
    lines = (line.partition(":") for line in about.read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == "vendor_id"), "")


def written_down(file: Path) -> dict[str, Any]:
    """By maker, what was written down for this version of torch."""
    golden = json.loads(file.read_text())
    by_maker: dict[str, Any] = golden["by_maker"] if golden["torch"] == torch_version() else {}
    return by_maker


def write_down(file: Path, found: Any) -> None:
    """What this processor gives, beside what was written down for others."""
    by_maker = {**written_down(file), maker(): found}
    file.write_text(json.dumps({"torch": torch_version(), "by_maker": by_maker}, indent=2) + "\n")


def digest(parts: Iterable[tuple[str, Any]]) -> str:
    """A hash of named arrays, types and shapes included."""
    import numpy as np

    found = hashlib.sha256()
    for name, value in parts:
        array = np.ascontiguousarray(value)
        found.update(f"{name} {array.dtype} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()[:24]


def of_packed(path: Path) -> str:
    """Of everything a packed network computes with: codes and scales of its layers, its other tensors."""
    from hybridkit.packing.model import PackedModel

    packed = PackedModel.load(path)
    parts: list[tuple[str, Any]] = []
    for name, layer in sorted(packed.layers.items()):
        parts += [(f"{name} {layer.bits} {layer.activations} {layer.group_size}", layer.unpack())]
        parts += [(f"{name} scale", layer.scale)]
    parts += [(name, value) for name, value in sorted(packed.tensors.items())]
    return digest(parts)


def of_onnx(path: Path) -> str:
    """Of nodes, attributes, and types and shapes of constants of an ONNX file, on every processor the same.

    What is in the constants is what is in the packed file. Names and metadata may change.
    """
    import onnx

    model = onnx.load(str(path))
    parts: list[tuple[str, Any]] = []
    for node in model.graph.node:
        said = sorted(
            (a.name, a.SerializeToString())
            for a in node.attribute
            if not a.HasField("t") and not a.HasField("g")
        )
        parts += [(f"{node.domain}:{node.op_type} {len(node.input)} {len(node.output)} {said}", 0)]
    constants = sorted(f"{each.data_type} {list(each.dims)}" for each in model.graph.initializer)
    return digest([*parts, *((text, 0) for text in constants)])


def digests(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Train, export, resume, with the command line, in an environment that fixes the kernels."""
    command = [sys.executable, __file__, "--measure", str(folder), *names]
    environment = {**os.environ, **SAME_KERNELS, "HYBRIDKIT_RUNS": str(folder)}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def measured(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The same in this process, which has that environment."""
    found: dict[str, str] = {}
    for name in names:
        words = [word.format(torch=torch_folder()) for word in RUNS[name]]
        run = Path(hybridkit("train", *HYBRID_TERNARY, *words)["run"])
        found[f"{name} packed"] = of_packed(run / "model.hk.safetensors")
        hybridkit("export", str(folder / f"{name}.onnx"), "--from", str(run), "--no-verify")
        found[f"{name} onnx"] = of_onnx(folder / f"{name}.onnx")
        if name == "digits":
            hybridkit("train", "--resume", str(run), "--max-steps", "90")
            found[f"{name} resumed"] = of_packed(run / "model.hk.safetensors")
    return found


def hybridkit(*words: str) -> Mapping[str, Any]:
    """The document that a command prints."""
    from hybridkit.cli import run

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = run([*words, "--json"])
    if code:
        raise SystemExit(f"hybridkit {' '.join(words)} exited with {code}")
    found: Mapping[str, Any] = json.loads(printed.getvalue())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write down what comes out")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        folder, *names = options.measure
        print(json.dumps(measured(Path(folder), names)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = digests(Path(folder), RUNS)
    print(json.dumps(found, indent=2))
    if options.write:
        write_down(GOLDEN, found)


if __name__ == "__main__":
    main()
