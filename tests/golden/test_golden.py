"""What is not meant to change behaviour changes no bit of a training, its packed and its exported file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hybridkit.tasks.fashion_mnist import FashionMNIST

from .trainings import GOLDEN, RUNS, comparable, digests


@pytest.mark.parametrize("name", sorted(RUNS))
def test_trainings_give_the_bits_that_were_written_down(name: str, tmp_path: Path) -> None:
    if not comparable():
        pytest.skip("the bits were written down for x86-64 and another version of torch")
    if name == "fashion-mnist" and not Path(FashionMNIST.Options().data_dir).is_dir():
        pytest.skip("Fashion-MNIST is not installed")
    golden = json.loads(GOLDEN.read_text())["digests"]
    assert digests(tmp_path, [name]) == {k: v for k, v in golden.items() if k.startswith(f"{name} ")}
