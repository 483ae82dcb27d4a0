"""Samples out of a task's data, and others from between them."""

from __future__ import annotations

import json

import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.samples import draw, draw_others
from hybridkit.tasks.supervised import SupervisedTask


def numbers(count):
    data = torch.arange(count, dtype=torch.float32)[:, None], torch.zeros(count, dtype=torch.int64)
    return SupervisedTask(name="numbers", load=lambda: Splits(data, data, data), models={})


def places(samples):
    return json.loads(samples.told)[1]


@given(count=st.integers(1, 200), wanted=st.integers(1, 40))
def test_others_lie_between(count, wanted):
    task = numbers(count)
    first, others = draw(task, wanted), draw_others(task, wanted)
    if others is None:
        assert wanted == 1 or count < 2 * wanted
        return
    between = places(others)
    assert len(between) == wanted - 1
    assert sorted(places(first) + between)[::2] == places(first)
    assert not set(between) & set(places(first))
    drawn = torch.cat([x for (x,) in others.inputs])
    assert drawn[:, 0].tolist() == between
