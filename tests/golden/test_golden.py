"""What is not meant to change behaviour changes no bit of a training, its packed and its exported file."""

from __future__ import annotations

from pathlib import Path

import pytest
from trainings import GOLDEN, RUNS, digests, maker, written_down

from hybridkit.tasks.fashion_mnist import FashionMNIST


@pytest.mark.parametrize("name", sorted(RUNS))
def test_trainings_give_the_bits_that_were_written_down(name: str, tmp_path: Path) -> None:
    golden = written_down(GOLDEN).get(maker())
    if golden is None:
        pytest.skip("the bits were written down for other processors or another version of torch")
    if name == "fashion-mnist" and not Path(FashionMNIST.Options().data_dir).is_dir():
        pytest.skip("Fashion-MNIST is not installed")
    assert digests(tmp_path, [name]) == {k: v for k, v in golden.items() if k.startswith(f"{name} ")}
