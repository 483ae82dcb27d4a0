"""Networks by their name on a hub: out of a cache laid out as the hub's client does, without a network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.errors
import pytest
from folders import write

from hybridkit.errors import FileError
from hybridkit.packing.model import PackedModel
from hybridkit.pretrained import open_pretrained

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


def cached(home: Path, name: str, files: Path, commit: str, *, main: bool = True) -> None:
    """Put a folder into the cache: content in blobs/, links to it in snapshots/COMMIT/."""
    place = home / "hub" / f"models--{name.replace('/', '--')}"
    (place / "blobs").mkdir(parents=True, exist_ok=True)
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file in files.iterdir():
        blob = place / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    if main:
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs/main").write_text(commit)


EACH = """
import json, sys
from hybridkit.cli import run
for line in json.loads(sys.argv[1]):
    print("code", run(line), flush=True)
    print("END", file=sys.stderr, flush=True)
"""


def hybridkit(*lines: list[str], home: Path) -> list[tuple[int, str]]:
    """Code and errors of each line, in a process of their own: the client reads its environment on import."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", EACH, json.dumps(lines)]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, check=True)
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("code ")]
    return list(zip(codes, done.stderr.split("END\n")[:-1], strict=True))


def test_a_name_is_opened_out_of_the_cache_and_its_revision_is_recorded(tmp_path):
    write("bert", tmp_path / "m")
    home = tmp_path / "home"
    cached(home, "owner/name", tmp_path / "m", COMMIT)
    cached(home, "owner/name", tmp_path / "m", OTHER, main=False)
    named, pinned, absent = hybridkit(
        ["quantize", "hf:owner/name"],
        ["quantize", f"hf:owner/name@{OTHER}", "-o", "other.hk.safetensors"],
        ["quantize", "hf:owner/absent", "-o", "x.hk.safetensors"],
        home=home,
    )
    assert named == (0, "")
    said = PackedModel.load(home / "model.hk.safetensors").metadata["assets"]
    assert (said["from"], said["revision"]) == ("hf:owner/name", COMMIT)
    record = json.loads((home / "model.assets/hybridkit-assets.json").read_text())
    assert record["revision"] == COMMIT
    assert not any(path.is_symlink() for path in (home / "model.assets").iterdir())
    assert pinned[0] == 0, pinned[1]
    said = PackedModel.load(home / "other.hk.safetensors").metadata["assets"]
    assert said["revision"] == OTHER
    code, error = absent
    assert code == 1
    assert error.count("\n") == 1
    assert "owner/absent cannot be had from the hub: it is not in the cache" in error
    assert not (home / "x.hk.safetensors").exists()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("GatedRepoError", "it is gated: ask for access"),
        ("RepositoryNotFoundError", "there is no such repository, or it is private"),
        ("RevisionNotFoundError", "it has no such revision"),
        ("LocalEntryNotFoundError", "the hub is out of reach or HF_HUB_OFFLINE set"),
    ],
)
def test_what_a_hub_refuses_is_one_line(error, reason, monkeypatch):
    kind = getattr(huggingface_hub.errors, error)

    def refuse(*_, **__):
        made = kind.__new__(kind)
        Exception.__init__(made, "401 Client Error.\n\nCannot access.\nhttps://example.org")
        raise made

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(FileError, match=reason) as caught:
        open_pretrained("hf:owner/name")
    assert "\n" not in str(caught.value)


def test_a_repository_without_a_network(tmp_path, monkeypatch):
    (tmp_path / COMMIT).mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / COMMIT))
    with pytest.raises(FileError, match=r"has no config\.json"):
        open_pretrained("hf:owner/name")
