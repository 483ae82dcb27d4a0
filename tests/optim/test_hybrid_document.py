"""docs/hybrid-optimization.md: its code runs, and what it says about names is true."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from hybridkit import builtins
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.optim.radius import TARGET_SHARE, WINDOW

TEXT = (Path(__file__).parents[2] / "docs" / "hybrid-optimization.md").read_text("utf-8")


def test_the_code_runs():
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for block in blocks:
            exec(compile(block, "hybrid-optimization.md", "exec"), names)
    assert names["summary"]["total_steps"] == 40
    optimizer = names["optimizer"]
    assert isinstance(optimizer, HybridOptimizer)
    for key in optimizer.last_step:
        assert f"`{key}`" in TEXT


def test_every_builtin_strategy_is_named():
    kinds = ("lr_controller", "constraint")
    named = [s.name for s in builtins.hybridkit_strategies() if s.kind in kinds]
    assert len(named) == 13
    for name in named:
        assert f"| `{name}` |" in TEXT


def test_the_radius_rule_has_its_numbers():
    assert f"quantile of n_{{t-{WINDOW - 1}}} ... n_t,    q = {TARGET_SHARE}" in TEXT
