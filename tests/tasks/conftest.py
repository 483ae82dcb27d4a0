"""Tiny pretrained networks, made once; caches that live as long as a test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="session")
def _caches(tmp_path_factory):
    import datasets

    root = tmp_path_factory.mktemp("caches")
    patch = pytest.MonkeyPatch()
    patch.setenv("HYBRIDKIT_CACHE", str(root / "hybridkit"))
    patch.setenv("TOKENIZERS_PARALLELISM", "false")
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "datasets")
    yield
    patch.undo()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """`tiny("bert")`: the folder of a small network of that family."""
    import tiny_networks

    made: dict[str, str] = {}

    def folder(family: str) -> str:
        if family not in made:
            made[family] = getattr(tiny_networks, family)(tmp_path_factory.mktemp(family))
        return made[family]

    return folder
