from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.errors import FileError, UsageError
from hybridkit.tasks.resolve import make_task
from hybridkit.tasks.text import Text, byte_histogram, find_files, read_bytes, window_splits


@pytest.fixture(scope="module")
def stdlib():
    return make_task("text")


def test_the_default_is_the_standard_library(stdlib):
    files = find_files(Text.Options())
    names = [f.name for f in files]
    assert {"argparse.py", "typing.py"} <= set(names)
    assert names == sorted(names)
    assert not any(n.startswith("_sysconfigdata") for n in names)
    provenance = stdlib.provenance()
    assert provenance["files"] == len(files)
    assert provenance["samples"]["train"] > 15_000
    assert provenance["sequence_length"] == 128


@settings(max_examples=40, deadline=None)
@given(size=st.integers(0, 3000), sequence_length=st.integers(1, 64))
def test_windows_share_no_byte_and_keep_the_order(size, sequence_length):
    text = torch.arange(size) % 251  # neighbours differ, so that a shift shows
    text = text.to(torch.uint8)
    width = sequence_length + 1
    ends = size * 90 // 100, size * 95 // 100, size
    if min(ends[1] - ends[0], ends[2] - ends[1]) < width:
        with pytest.raises(FileError, match="too few"):
            window_splits(text, sequence_length)
        return
    splits = window_splits(text, sequence_length)
    start = 0
    for (inputs, targets), end in zip((splits.train, splits.validation, splits.test), ends, strict=True):
        assert inputs.shape == targets.shape == ((end - start) // width, sequence_length)
        for i in range(len(inputs)):
            window = text[start + i * width : start + (i + 1) * width]
            assert torch.equal(inputs[i], window[:-1])
            assert torch.equal(targets[i], window[1:])
        start = end


def test_windows_take_no_memory_of_their_own():
    text = torch.zeros(4000, dtype=torch.uint8)
    splits = window_splits(text, 16)
    storages = {t.untyped_storage().data_ptr() for part in (splits.train, splits.test) for t in part}
    assert storages == {text.untyped_storage().data_ptr()}


def test_a_folder_is_read_in_a_fixed_order(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/one.txt", "a.txt", "z.md", "b/two.py", "skipped.bin"):
        (tmp_path / name).write_text(name)
    files = find_files(Text.Options(data_dir=str(tmp_path)))
    assert [f.relative_to(tmp_path).as_posix() for f in files] == ["a.txt", "b/one.txt", "b/two.py", "z.md"]
    assert bytes(read_bytes(files, 100).tolist()) == b"a.txtb/one.txtb/two.pyz.md"
    only = find_files(Text.Options(data_dir=str(tmp_path), suffixes=".bin, .md"))
    assert [f.name for f in only] == ["skipped.bin", "z.md"]


def test_a_single_file_of_any_kind(tmp_path):
    path = tmp_path / "novel"
    path.write_bytes(bytes(range(256)) * 20)
    task = make_task("text", {"data_dir": str(path), "sequence_length": "31"})
    splits = task.splits()
    assert splits.train[0].shape == (144, 31)
    assert task.provenance()["files"] == 1
    assert task.provenance()["source"] == str(path)


def test_bad_sources_get_one_clear_line(tmp_path):
    def load(**options):
        make_task("text", {"data_dir": str(tmp_path), **options}).splits()

    with pytest.raises(FileError, match=r"holds no \.txt"):
        load()
    with pytest.raises(FileError, match="does not exist"):
        load(data_dir=str(tmp_path / "absent"))
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(FileError, match="9 bytes of text are too few"):
        load()
    with pytest.raises(FileError, match="9 bytes of text exceed 5"):
        load(max_bytes=5)
    (tmp_path / "short.txt").write_text("")
    with pytest.raises(FileError, match="0 bytes of text are too few"):
        load()
    with pytest.raises(UsageError, match="sequence_length"):
        load(sequence_length=0)


def test_loss_and_metrics_agree_with_their_definitions(stdlib):
    inputs, targets = (t[:3] for t in stdlib.splits().validation)
    logits = torch.randn(3, 128, 256, generator=torch.Generator().manual_seed(0))
    probability = F.softmax(logits.double(), -1).gather(-1, targets.long()[..., None])
    nats = float(-probability.log().mean())
    metrics = stdlib.metrics(logits, (inputs, targets))
    assert metrics["loss"] == pytest.approx(nats, rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(float((logits.argmax(-1) == targets).double().mean()))
    (tokens,) = stdlib.inputs((inputs, targets))
    assert tokens.dtype == torch.int64


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(1, 5), length=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_histogram_counts_bytes(samples, length, seed):
    windows = np.random.default_rng(seed).integers(0, 256, (samples, length), np.uint8)
    expected = np.stack([np.bincount(w, minlength=256) / length for w in windows])
    np.testing.assert_allclose(byte_histogram(torch.from_numpy(windows)).numpy(), expected, rtol=1e-6)
