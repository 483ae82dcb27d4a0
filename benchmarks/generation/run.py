"""Tokens a second of a language model: ours in ONNX Runtime, onnxruntime-genai, llama.cpp; in turns.

    python benchmarks/generation/run.py --ours NAME=FOLDER --genai NAME=FOLDER --llama NAME=FILE.gguf
        [--threads 1 2] [--rounds 5] [--out RESULT.json]

Each of the first three may be repeated.
FOLDER is what `hybridkit export --target genai` wrote, or what onnxruntime-genai's own builder made
(`python -m onnxruntime_genai.models.builder -p int4 -e cpu --extra_options int4_block_size=32
int4_accuracy_level=4`); FILE what `hybridkit export model.gguf` wrote of the same codes. shapes.py makes a
larger model. Every measurement is a process of its own, which loads the file, reads prompts of 128 and of 512
tokens after one of another length to warm up, and finds 32 tokens behind 16 and behind 1,024: tokens a
second, seconds to load, and its largest resident memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from hybridkit.bench.machine import this_machine
from hybridkit.packing.atomic import atomic_file

PROMPTS: Final = (128, 512)
CONTEXTS: Final = (16, 1024)
FOUND: Final = 32  # tokens behind a context
WARM: Final = 24  # tokens of the first prompt
ROOM: Final = 2048  # tokens of a cache


def main() -> None:
    """Measure all in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for engine in ENGINES:
        parser.add_argument(f"--{engine}", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", nargs=3, metavar=("ENGINE", "PATH", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        engine, path, threads = options.worker
        print(json.dumps(measured(ENGINES[engine], Path(path), int(threads))))
        return
    rows = [
        {"engine": engine, "name": name, "path": path, "threads": threads, "runs": []}
        for engine in ENGINES
        for name, path in (each.split("=", 1) for each in getattr(options, engine))
        for threads in options.threads
    ]
    for number in range(options.rounds):
        for row in rows if number % 2 == 0 else reversed(rows):
            row["runs"].append(in_a_process(row["engine"], row["path"], row["threads"]))
            print(number, row["engine"], row["name"], row["threads"], row["runs"][-1], file=sys.stderr)
    for row in rows:
        row["bytes"] = size_of(Path(row.pop("path")))
    text = json.dumps({"machine": dataclasses.asdict(this_machine()), "rows": rows}, indent=1)
    if options.out:
        with atomic_file(options.out) as file:
            file.write(f"{text}\n".encode())
    print(text)


def in_a_process(engine: str, path: str, threads: int) -> dict[str, float]:
    """What a worker found."""
    command = [sys.executable, __file__, "--worker", engine, path, str(threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(engine: Callable[[Path, int], Speaks], path: Path, threads: int) -> dict[str, float]:
    """Of one engine, in this process."""
    began = time.perf_counter()
    speaks = engine(path, threads)
    found = {"load": time.perf_counter() - began}
    speaks(tokens(WARM, 1), 2)
    for count in PROMPTS:
        found[f"prompt {count}"] = count / speaks(tokens(count, count), 1)[0]
    for count in CONTEXTS:
        found[f"decode {count}"] = (FOUND - 1) / speaks(tokens(count, count + 1), FOUND)[1]
    return found | {"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def tokens(count: int, seed: int) -> list[int]:
    """A prompt that begins unlike others, so that no cache knows it."""
    return [100 + (seed * 7919 + 31 * place) % 5000 for place in range(count)]


# a prompt and how many tokens to find -> seconds for the first of them, and for the others
Speaks = Callable[[Sequence[int], int], tuple[float, float]]


def ours(folder: Path, threads: int) -> Speaks:
    """hybridkit's own loop, on native operators."""
    from hybridkit.runtime.generation import LanguageModel, Sampling

    model = LanguageModel(folder, threads=threads)
    model.ends = frozenset()

    def speaks(prompt: Sequence[int], count: int) -> tuple[float, float]:
        times = [time.perf_counter()]
        times.extend(time.perf_counter() for _ in model.stream(prompt, count, Sampling()))
        return times[1] - times[0], times[-1] - times[1]

    return speaks


def genai(folder: Path, threads: int) -> Speaks:
    """onnxruntime-genai, with our library, as docs/generation.md gives it to a folder of ours."""
    import onnxruntime_genai

    from hybridkit.runtime import library_path

    config = onnxruntime_genai.Config(str(folder))
    options = {"intra_op_num_threads": threads, "custom_ops_library": str(library_path())}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = onnxruntime_genai.Model(config)

    def speaks(prompt: Sequence[int], count: int) -> tuple[float, float]:
        how = onnxruntime_genai.GeneratorParams(model)
        how.set_search_options(max_length=ROOM, min_length=len(prompt) + count, do_sample=False)
        generator = onnxruntime_genai.Generator(model, how)
        times = [time.perf_counter()]
        generator.append_tokens(list(prompt))
        for _ in range(count):
            generator.generate_next_token()
            times.append(time.perf_counter())
        return times[1] - times[0], times[-1] - times[1]

    return speaks


def llama(file: Path, threads: int) -> Speaks:
    """llama.cpp, by the times that it takes itself."""
    import xllamacpp

    how = xllamacpp.CommonParams()
    how.model.path, how.n_ctx, how.n_parallel = str(file), ROOM, 1
    how.cpuparams.n_threads = how.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(how)

    def speaks(prompt: Sequence[int], count: int) -> tuple[float, float]:
        asked = {"prompt": list(prompt), "n_predict": count, "temperature": 0, "cache_prompt": False}
        said = server.handle_completions({**asked, "ignore_eos": True})["timings"]
        assert said["prompt_n"] == len(prompt)
        return said["prompt_ms"] / 1e3, said["predicted_ms"] / 1e3

    return speaks


ENGINES: Final = {"ours": ours, "genai": genai, "llama": llama}


def size_of(path: Path) -> int:
    """Bytes of a file, or of a folder's."""
    return sum(each.stat().st_size for each in ([path] if path.is_file() else path.iterdir()))


if __name__ == "__main__":
    main()
