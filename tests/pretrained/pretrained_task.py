"""A classifier of sentences whose networks are pretrained ones: `pretrained_task:task`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch

from hybridkit.pretrained import is_pretrained, open_pretrained
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.supervised import SupervisedTask

CLASSES = 3


class Networks(Mapping):
    """Whatever names a pretrained network is one of the task's models."""

    def __getitem__(self, text):
        if not is_pretrained(text):
            raise KeyError(text)
        return partial(open_pretrained(text).network, "text-classification", num_labels=CLASSES)

    def __contains__(self, text):
        return is_pretrained(str(text))

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self):
        return 0


def data(count):
    ids = torch.randint(3, 96, (count, 6), generator=torch.Generator().manual_seed(count))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "label": ids[:, 0] % CLASSES}


def load():
    return Splits(data(16), data(8), data(8))


def task():
    axes = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
    return SupervisedTask(name="sentences", load=load, models=Networks(), target="label", dynamic_axes=axes)
