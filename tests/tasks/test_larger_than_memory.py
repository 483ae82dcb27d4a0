"""Data of each kind that do not fit into the memory that a process may take."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import textwrap

import datasets
import numpy as np
import pytest
from PIL import Image

WORDS = "".join(f"line {i} of a story that goes on " for i in range(40))[:1_000]

EPOCH = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    from hybridkit.tasks.language import documents
    from hybridkit.tasks.resolve import make_task

    documents.PIECE = 1 << 12

    def data_memory():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))

    name, model, small, large, room = sys.argv[1:]
    def epoch(where):
        options = {"sequence_length": 64} if name == "causal-lm" else {}
        task = make_task(name, {"model": model, "data_dir": where} | options)
        splits = task.splits()
        for start in range(0, len(splits.train), max(1, len(splits.train) // 50)):
            task.collate([splits.train[start]])
        task.provenance()
        return len(splits.train)
    epoch(small)  # what is imported and allocated once
    limit = data_memory() + int(room)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    print(epoch(large))
""")


def corpus(folder, size):
    path = folder / f"{size}.txt"
    path.write_text((WORDS + "\n") * (size // len(WORDS)))
    return path


def table(folder, size):
    path = folder / f"{size}.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["text", "label"])
        out.writerows((WORDS[i % 500 :][:500], "ab"[i % 2]) for i in range(size // 500))
    return path


def images(folder, size):
    """Bytes of files in a column of a table."""
    path, random = folder / f"{size}.parquet", np.random.default_rng(0)
    found: list[bytes] = []
    while sum(map(len, found)) < size:
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(file, "PNG")
        found.append(file.getvalue())
    rows = {"image": found, "label": ["ab"[i % 2] for i in range(len(found))]}
    datasets.Dataset.from_dict(rows).to_parquet(path, batch_size=50)
    return path


KINDS = {
    # task: network, data, their bytes, bytes that the process may allocate over what it has after few data
    "causal-lm": ("gpt2", corpus, 6 << 20, 3 << 19),
    "text-classification": ("bert", table, 32 << 20, 16 << 20),
    "image-classification": ("vit", images, 32 << 20, 13 << 20),
}


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux")
@pytest.mark.parametrize("name", KINDS)
def test_data_larger_than_memory(name, tiny, tmp_path):
    model, make, size, room = KINDS[name]
    small, large = (str(make(tmp_path, each)) for each in (size // 24, size))
    alone = os.environ | {  # no threads that start late (8 MiB of stack each), no memory kept for later
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    arguments = [name, tiny(model), small, large, str(room)]
    done = subprocess.run(
        # what threads start late all the same (a reader's own) has 1 MiB of stack
        ["sh", "-c", 'ulimit -s 1024; exec "$@"', "sh", sys.executable, "-c", EPOCH, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=alone,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) > 0
