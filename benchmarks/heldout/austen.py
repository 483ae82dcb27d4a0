"""Jane Austen's six novels, byte by byte: prose, where `text` is mostly Python.

hybridkit bench convergence --task benchmarks.heldout.austen:austen --steps 200 --batch-size 16
"""

from __future__ import annotations

import zlib
from typing import Final

import torch
from torch import Tensor

from benchmarks.heldout.data import Package, read_files, read_r
from hybridkit.tasks.models.transformer import transformer_04m
from hybridkit.tasks.protocol import Splits
from hybridkit.tasks.supervised import SupervisedTask, accuracy
from hybridkit.tasks.text import bits_per_byte, byte_histogram, next_byte_loss, window_splits

PACKAGE: Final = Package(
    "r/r-cran-janeaustenr/r-cran-janeaustenr_1.0.0-1_all.deb",
    "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
)
NOVELS: Final = (  # in the order in which they were published
    "sensesensibility",
    "prideprejudice",
    "mansfieldpark",
    "emma",
    "northangerabbey",
    "persuasion",
)
SEQUENCE: Final = 128


def austen() -> SupervisedTask:
    """Inputs uint8 [batch, 128], targets the same bytes one position later; split as `text` is."""
    return SupervisedTask(
        name="austen",
        load=load,
        models={"transformer-0.4m": transformer_04m},
        prepare=Tensor.long,
        loss_function=next_byte_loss,
        measures={"bits_per_byte": bits_per_byte, "accuracy": accuracy},
        metric="loss",
        metric_goal="min",
        features=byte_histogram,
        input_names=("tokens",),
        dynamic_axes=({0: "batch", 1: "sequence"},),
        source="Debian r-cran-janeaustenr 1.0.0-1",
    )


austen.version = 1  # raised when data, network or loss give other numbers


def load() -> Splits:
    """Windows that share no byte. Raises FileError if the data are out of reach."""
    stream = bytearray("".join(read_novels().values()).encode())
    return window_splits(torch.frombuffer(stream, dtype=torch.uint8), SEQUENCE)


def read_novels() -> dict[str, str]:
    """The text of each of `NOVELS`, every line with its newline. Raises FileError if it is out of reach.

    R keeps them in a lazy-load database: an index of (start, length), and zlib streams, each behind four
    bytes of its size.
    """
    index, database = read_files(PACKAGE, "janeaustenr/data/Rdata.rdx", "janeaustenr/data/Rdata.rdb")
    places = read_r(index, "rds")["variables"]
    texts = {}
    for novel in NOVELS:
        start, length = places[novel]
        lines = read_r(zlib.decompress(database[start + 4 : start + length]), "rds")
        texts[novel] = "".join(f"{line}\n" for line in lines)
    return texts
