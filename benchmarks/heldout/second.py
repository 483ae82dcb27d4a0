"""The second six held-out tasks, for the step that finds its own length.

Chosen on 30 November 2026, before anything had been trained on them; to be run once. They are of five kinds:
tables under 1,000 samples, a regression, a network wider than 512, a run longer than 3,000 steps, words.

hybridkit bench convergence --task benchmarks.heldout.second:vehicle --steps 400 --batch-size 32
"""

from __future__ import annotations

import io
import zipfile
import zlib
from functools import partial
from typing import Final

import torch

from benchmarks.distillation.sentences import REVIEWS
from benchmarks.heldout.data import fetch
from benchmarks.heldout.mlbench import SOURCE, class_table, read_table, regression, table_task
from hybridkit.tasks.models.mlp import MLP
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.splits import stratified_splits
from hybridkit.tasks.supervised import SupervisedTask

STEPS: Final = {  # and the size of batches
    "vehicle": (400, 32),
    "boston": (400, 32),
    "dna": (500, 64),
    "vowel": (3_200, 32),
    "shuttle": (600, 128),
    "reviews": (300, 32),
}
WORDS: Final = 4_096  # places that words are hashed into


def vehicle() -> SupervisedTask:
    """Silhouettes of four vehicles, 846 x 18 (Siebert 1987)."""
    return class_table("Vehicle", "Class", 18, 4)


def boston() -> SupervisedTask:
    """What homes cost in 506 places by 12 numbers (Harrison and Rubinfeld 1978, without their column b)."""
    read = partial(read_table, "BostonHousing", "medv", ["b"])
    return regression(table_task("boston", read, partial(MLP, 12, (128, 128), 1), SOURCE))


def dna() -> SupervisedTask:
    """Where genes are spliced, 3,186 sequences of 60 bases in 180 bits, 3 classes; layers of 1,024."""
    return class_table("DNA", "Class", 180, 3, width=1_024)


def vowel() -> SupervisedTask:
    """Eleven vowels of 15 speakers, 990 x 10 (Deterding 1989), in a run of 3,200 steps."""
    return class_table("Vowel", "Class", 10, 11)


def shuttle() -> SupervisedTask:
    """The state of a space shuttle's radiators, 58,000 x 9 in 7 classes, four fifths of them one."""
    return class_table("Shuttle", "Class", 9, 7)


def reviews() -> SupervisedTask:
    """2,000 film reviews, which words occur in them, for or against (Pang and Lee 2004)."""
    return SupervisedTask(
        name="reviews", load=load_reviews, models={"mlp": partial(MLP, WORDS, (128,), 2)}, source=REVIEWS.url
    )


def load_reviews() -> Splits:
    """A sixth of each class for validation and for test. Raises FileError if the data are out of reach."""
    rows, classes = [], []
    with zipfile.ZipFile(io.BytesIO(fetch(REVIEWS))) as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".txt")):
            row = torch.zeros(WORDS)
            row[[zlib.crc32(word) % WORDS for word in set(archive.read(name).split())]] = 1
            rows.append(row)
            classes.append(int("/pos/" in name))
    return stratified_splits(
        torch.stack(rows), torch.tensor(classes), validation=1 / 6, test=1 / 6, seed=2_000
    )


for _task in (vehicle, boston, dna, vowel, shuttle, reviews):
    _task.version = 1  # type: ignore[attr-defined]  # raised when data, network or loss give other numbers
del _task
