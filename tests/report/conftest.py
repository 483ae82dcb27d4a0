"""Two short runs that many tests look at."""

from __future__ import annotations

import pytest

from hybridkit.training.config import resolve
from hybridkit.training.loop import resume, train
from hybridkit.training.runs import Run


@pytest.fixture(scope="session")
def ternary(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A language model, hybrid and ternary, resumed once."""
    folder = tmp_path_factory.mktemp("ternary")
    (folder / "text.txt").write_text("the cat sat on the mat, and the dog sat on the log. " * 200)
    config = resolve(
        task="text",
        data_dir=str(folder / "text.txt"),
        options={"task": {"sequence_length": 32}},
        hybrid=True,
        ternary=True,
        qat=True,
        max_steps=12,
        eval_every=4,
        batch_size=4,
        threads=1,
    )
    run = train(config, run_dir=folder).run
    return resume(run, max_steps=16, threads=1).run


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A classifier in full precision."""
    config = resolve(max_steps=12, eval_every=6, threads=1)
    return train(config, run_dir=tmp_path_factory.mktemp("plain")).run
