"""Attention with a cache inside ONNX Runtime: our operator against GroupQueryAttention, its body, in turns.

    python benchmarks/generation/attention.py [--threads 1 2] [--processes 3] [--out RESULT.json]

A model of several layers that each have a cache of their own, so that one token comes from memory as in a
language model: one token behind 1,024, and prompts of 1,024 in pieces of 128 (their last, behind 896). Each
process measures both in turns, and reads the caches once with NumPy: what memory alone takes. Milliseconds a
layer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from hybridkit.bench.machine import this_machine
from hybridkit.exporting.functions import CACHED_ATTENTION, function
from hybridkit.packing.atomic import atomic_file
from hybridkit.runtime.library import register

SHAPES: Final = {  # heads, heads of the cache, their size
    "SmolLM2-135M": (9, 3, 64),
    "Llama 3.2 1B": (32, 8, 64),
    "Qwen3 0.6B": (16, 8, 128),
    "GPT-2": (12, 12, 64),
}
CALLS: Final = ((1, 1024), (128, 896), (1024, 0))  # new tokens and the past
LAYERS: Final = 16
SECONDS: Final = 0.15  # that one measurement takes
ROUNDS: Final = 3
OPSET: Final = 18


def main() -> None:
    """Processes one after the other; medians over all rounds are the tables' business."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measured(options.worker)))
        return
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    for number in range(options.processes):
        for threads in options.threads:
            command = [sys.executable, __file__, "--worker", str(threads)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            for found in json.loads(done.stdout):
                rounds = found.pop("rounds")
                key = found["shape"], found["tokens"], threads
                rows.setdefault(key, {**found, "threads": threads, "rounds": []})["rounds"] += rounds
            print(number, threads, file=sys.stderr)
    text = json.dumps({"machine": dataclasses.asdict(this_machine()), "rows": list(rows.values())}, indent=1)
    if options.out:
        with atomic_file(options.out) as file:
            file.write(f"{text}\n".encode())
    print(text)


def measured(threads: int) -> list[dict[str, Any]]:
    """Every shape and call, in this process."""
    found = []
    for shape, (heads, kv_heads, size) in SHAPES.items():
        for tokens, past in CALLS:
            ours, theirs = (
                Layers(heads, kv_heads, size, tokens, past, threads, own) for own in (True, False)
            )
            np.testing.assert_allclose(ours.once(), theirs.once(), rtol=1e-4, atol=1e-5)
            rounds = []
            for number in range(ROUNDS):
                pair = (ours, theirs) if number % 2 == 0 else (theirs, ours)
                seconds = {each.own: each.seconds() for each in pair}
                layer = 1e3 / LAYERS
                rounds.append([seconds[True] * layer, seconds[False] * layer, ours.read() * layer])
            found.append({"shape": shape, "tokens": tokens, "past": past, "rounds": rounds})
    return found


class Layers:
    """A session of LAYERS attentions, whose caches are shared buffers as generation has them."""

    def __init__(
        self, heads: int, kv_heads: int, size: int, tokens: int, past: int, threads: int, own: bool
    ) -> None:
        self.own = own
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        if own and not register(options):
            sys.exit("the native library is not there")
        model = _model(heads, kv_heads, size, own)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        rng = np.random.default_rng(0)
        self._caches = []
        binding = session.io_binding()
        for name, width in (("query", heads), ("key", kv_heads), ("value", kv_heads)):
            numbers = rng.normal(size=(1, tokens, width * size)).astype(np.float32)
            binding.bind_cpu_input(name, numbers)
        binding.bind_cpu_input("last", np.array([past + tokens - 1], np.int32))
        binding.bind_cpu_input("total", np.array(past + tokens, np.int32))
        for layer in range(LAYERS):
            for part in ("key", "value"):
                cache = rng.normal(size=(1, kv_heads, past + tokens, size)).astype(np.float32)
                shared = onnxruntime.OrtValue.ortvalue_from_numpy(cache)
                binding.bind_ortvalue_input(f"past_{part}.{layer}", shared)
                binding.bind_ortvalue_output(f"present_{part}.{layer}", shared)
                self._caches.append(cache)
        binding.bind_output("y")
        self._run = lambda: session.run_with_iobinding(binding)
        self._binding = binding

    def once(self) -> np.ndarray:
        """The output."""
        self._run()
        found: np.ndarray = self._binding.get_outputs()[-1].numpy()
        return found

    def seconds(self) -> float:
        """Of a run, the median."""
        return _seconds(self._run)

    def read(self) -> float:
        """Seconds for one pass over all caches."""
        return _seconds(lambda: [cache.max() for cache in self._caches])


def _seconds(run: Any) -> float:
    times, end = [], time.perf_counter() + SECONDS
    while not times or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _model(heads: int, kv_heads: int, size: int, own: bool) -> onnx.ModelProto:
    """Layers of the same new tokens, whose outputs are added up."""
    op, domain = (CACHED_ATTENTION, "hybridkit") if own else ("GroupQueryAttention", "com.microsoft")
    attributes = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": size**-0.5}
    attributes |= {"softcap": 0.0, "local_window_size": -1}
    nodes, inputs, outputs = [], [], []
    for name in ("query", "key", "value"):
        inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "tokens", None])]
    for name, shape in (("last", [1]), ("total", [])):
        inputs += [helper.make_tensor_value_info(name, TensorProto.INT32, shape)]
    for layer in range(LAYERS):
        caches = [f"{when}_{part}.{layer}" for when in ("past", "present") for part in ("key", "value")]
        values = [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, kv_heads, None, size]) for n in caches
        ]
        inputs += values[:2]
        outputs += values[2:]
        given = ["query", "key", "value", *caches[:2], "last", "total"]
        nodes.append(helper.make_node(op, given, [f"y.{layer}", *caches[2:]], domain=domain, **attributes))
    nodes.append(helper.make_node("Sum", [f"y.{layer}" for layer in range(LAYERS)], ["y"]))
    outputs.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "tokens", None]))
    return helper.make_model(
        helper.make_graph(nodes, "attention", inputs, outputs),
        functions=[function(CACHED_ATTENTION, OPSET)] if own else [],
        opset_imports=[
            helper.make_opsetid(name, version)
            for name, version in (("", OPSET), ("hybridkit", 1), ("com.microsoft", 1))
        ],
        ir_version=8,
    )


if __name__ == "__main__":
    main()
