"""The held-out tasks: their data, and what happens without. Nothing is trained on them here."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from hybridkit.errors import FileError, UsageError
from hybridkit.tasks.resolve import make_model, make_task

sys.path.append(str(Path(__file__).parents[2]))

from benchmarks.heldout import austen, data, letters, mlbench, satellite, second


def loaded(module, package):
    """The task, or a skipped test where Debian cannot be reached."""
    name = module.__name__
    try:
        data.fetch(package)
    except FileError as error:
        if "cannot get" not in str(error):
            raise
        pytest.skip(str(error))
    return make_task(f"{name}:{name.rpartition('.')[2]}")


def parts_of(splits):
    return splits.train, splits.validation, splits.test


def network_fits(task):
    """The shape of its output for four samples; one backward pass gives every weight a finite gradient."""
    model = make_model(task)
    batch = tuple(tensor[:4] for tensor in task.splits().train)
    output = model(*task.inputs(batch))
    task.loss(output, batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    return output.shape


@pytest.mark.network
def test_austen():
    task = loaded(austen, austen.PACKAGE)
    novels = austen.read_novels()
    stream = "".join(novels.values()).encode()
    assert [len(text) // 1000 for text in novels.values()] == [673, 684, 883, 883, 433, 466]
    assert novels["emma"].startswith("EMMA\n\nBy Jane Austen\n")
    assert novels["persuasion"].endswith("\n\nFinis\n")
    assert len(stream) == 4_025_029  # a pound sign takes two

    ends = [0, len(stream) * 90 // 100, len(stream) * 95 // 100, len(stream)]
    for (inputs, targets), start, end in zip(parts_of(task.splits()), ends, ends[1:], strict=False):
        windows = torch.cat([inputs, targets[:, -1:]], 1)
        assert inputs.dtype == torch.uint8
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert windows.shape == ((end - start) // 129, 129)
        assert windows.numpy().tobytes() == stream[start : start + windows.numel()]
    assert task.provenance()["sha256"].startswith("102178c442ff1973")
    assert task.cluster_features(task.splits().test).shape == (len(task.splits().test[0]), 256)
    assert network_fits(task) == (4, 128, 256)


@pytest.mark.network
def test_letters():
    task = loaded(letters, mlbench.PACKAGE)
    measured, targets = letters.read_letters()
    counts = torch.bincount(targets)
    assert measured.shape == (20_000, 16)
    assert torch.equal(measured.unique(), torch.arange(16.0))
    assert "".join(chr(ord("A") + i) for i in targets[:5].tolist()) == "TIDNG"
    assert (len(counts), int(counts.min()), int(counts.max())) == (26, 734, 813)

    assert task.provenance()["samples"] == {"train": 16_667, "validation": 1_667, "test": 1_666}
    assert task.provenance()["sha256"].startswith("7a1dbbb39ff9e1db")
    are_standardised_parts(task.splits(), measured, targets, part=1 / 12)
    assert network_fits(task) == (4, 26)


@pytest.mark.network
def test_satellite():
    task = loaded(satellite, mlbench.PACKAGE)
    measured, targets = satellite.read_satellite()
    assert measured.shape == (6_435, 36)
    assert (measured.min(), measured.max()) == (27, 157)
    assert torch.equal(measured, measured.round())
    assert torch.bincount(targets).tolist() == [1533, 703, 1358, 626, 707, 1508]

    assert task.provenance()["samples"] == {"train": 4_289, "validation": 1_072, "test": 1_074}
    assert task.provenance()["sha256"].startswith("f7fcb6b31dd92c2b")
    are_standardised_parts(task.splits(), measured, targets, part=1 / 6)
    assert network_fits(task) == (4, 6)


SECOND = {
    "vehicle": "4a34f0c652956635",
    "boston": "d79df75865a234c2",
    "dna": "4f664ff5eb48c77b",
    "vowel": "ecf3ab358674da37",
    "shuttle": "c05c9b8fe4c8a6d5",
    "reviews": "2cc700a370f6aac7",
}


@pytest.mark.network
@pytest.mark.parametrize("name", SECOND)
def test_the_second_six(name):
    try:
        data.fetch(second.REVIEWS if name == "reviews" else mlbench.PACKAGE)
    except FileError as error:
        pytest.skip(str(error))
    task = make_task(f"benchmarks.heldout.second:{name}")
    splits = task.splits()
    assert task.provenance()["sha256"].startswith(SECOND[name])
    sizes = [len(targets) for _, targets in parts_of(splits)]
    assert sizes[1] == pytest.approx(sum(sizes) / 6, abs=7)
    assert network_fits(task)[0] == 4
    if name == "boston":
        mean = splits.train[1].mean()
        torch.testing.assert_close(mean, torch.zeros(()), atol=1e-4, rtol=0)


def are_standardised_parts(splits, measured, targets, part):
    """`splits` are the data, every class shared out alike, inputs of mean 0 and deviation 1."""
    parts, counts = parts_of(splits), torch.bincount(targets)
    for _, labels in parts[1:]:
        assert ((torch.bincount(labels) - counts * part).abs() <= 1).all()
    deviation, mean = torch.std_mean(parts[0][0], 0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(deviation, torch.ones_like(mean), atol=1e-4, rtol=0)

    # Together the parts are the data, every row as often as there: none is in two of them. Ranks are what
    # standardising keeps.
    together = map(torch.cat, zip(*parts, strict=True))
    assert rows(*together) == rows(measured, targets)


def rows(inputs, targets):
    """How often there is each row of ranks, with its target."""
    ranks = [column.unique(return_inverse=True)[1] for column in inputs.T]
    return Counter(map(tuple, torch.column_stack([*ranks, targets]).tolist()))


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """A package in an empty cache, whose archive cannot be reached."""
    monkeypatch.setenv("HYBRIDKIT_BENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(data, "POOL", (tmp_path / "nowhere").as_uri() + "/")
    content = debian_package({"./usr/lib/R/site-library/a/b": b"of a", "./usr/lib/R/site-library/c": b"of c"})
    (tmp_path / "p.deb").write_bytes(content)
    return data.Package("p/p.deb", hashlib.sha256(content).hexdigest())


def debian_package(files):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz") as tar:
        for path, content in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    packed = b"!<arch>\n"
    for name, content in ((b"odd", b"2.0"), (b"data.tar.xz", archive.getvalue())):
        header = b"%-16s%-12d%-6d%-6d%-8d%-10d`\n" % (name, 0, 0, 0, 100644, len(content))
        packed += header + content + b"\n" * (len(content) % 2)
    return packed


def test_a_package_put_into_the_cache_is_read(cached):
    assert data.read_files(cached, "c", "a/b") == [b"of c", b"of a"]


def test_a_package_is_fetched_once(cached, tmp_path, monkeypatch):
    (tmp_path / "pool" / "p").mkdir(parents=True)
    source = cached.cached.rename(tmp_path / "pool" / cached.path)
    monkeypatch.setattr(data, "POOL", source.parents[1].as_uri() + "/")
    content = data.fetch(cached)
    source.unlink()
    assert data.fetch(cached) == content


def test_out_of_reach_says_where_to_put_it(cached):
    cached.cached.unlink()
    with pytest.raises(
        FileError, match=r"cannot get .*nowhere/p/p\.deb .*put the file at .*p\.deb$"
    ) as error:
        data.fetch(cached)
    assert "\n" not in str(error.value)


def test_another_file_is_refused_and_not_kept(cached, tmp_path, monkeypatch):
    cached.cached.write_bytes(b"another")
    with pytest.raises(FileError, match=r"p\.deb \(delete it\) has the sha256"):
        data.fetch(cached)
    (tmp_path / "p").mkdir()
    cached.cached.rename(tmp_path / cached.path)
    monkeypatch.setattr(data, "POOL", tmp_path.as_uri() + "/")
    with pytest.raises(FileError, match="not the expected"):
        data.fetch(cached)
    assert not cached.cached.exists()


def test_without_rdata(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdata", None)
    with pytest.raises(UsageError, match=r"pip install 'hybridkit\[bench\]'"):
        data.read_r(b"", "rds")
