"""What `--full` adds: larger, coarser, distilled and long-tailed settings, for the best methods of the core.

Nothing is tuned there: a rival keeps the learning rate that it was given in the core setting most like it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hybridkit.bench.convergence.methods import BALANCED
from hybridkit.bench.convergence.settings import CORE, Setting

TEACHER: Final = "hybridkit.bench.convergence.teacher:fashion_mnist"
LONG_TAILED: Final = "hybridkit.bench.convergence.longtail:fashion_mnist_long_tailed"


@dataclass(frozen=True, slots=True)
class Extra:
    """A setting of `--full`.

    like: the core setting whose learning rates hold. also: methods of ours to compare.
    """

    setting: Setting
    like: Setting
    also: tuple[str, ...] = ()


def _extras() -> Iterator[Extra]:
    core = {(setting.task, setting.precision): setting for setting in CORE}
    for (task, precision), like in core.items():
        steps, batch = like.steps, like.batch_size
        if task == "text":
            yield Extra(Setting(task, precision, steps, batch, model="transformer-3m"), like)
        if task == "fashion-mnist":
            yield Extra(Setting(LONG_TAILED, precision, steps, batch), like, (BALANCED,))
        if precision == "ternary":
            yield Extra(Setting(task, "1-bit", steps, batch), like)
        if (task, precision) == ("fashion-mnist", "ternary"):
            yield Extra(Setting(task, precision, steps, batch, teacher=TEACHER), like)


EXTRAS: Final = tuple(_extras())
