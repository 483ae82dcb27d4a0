"""The rows of a table: the original, files of ours, and what other tools store, measured alike."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.quality.peers import PEERS
from benchmarks.quality.storing import given, importances, stored
from hybridkit.bench.machine import this_machine
from hybridkit.packing.atomic import atomic_file
from hybridkit.packing.model import PackedModel
from hybridkit.runtime.modules import load_packed

Measure = Callable[[nn.Module], dict[str, float]]


def parser_of(description: str) -> argparse.ArgumentParser:
    """Options that every table has."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("folder", type=Path)
    add("--ours", nargs="*", default=[], metavar="NAME=FILE")
    add("--folders", nargs="*", default=[], metavar="NAME=FOLDER", help="what autoround.py wrote")
    add("--peers", nargs="*", metavar="NAME", help="these alone (all); none: no peer")
    add("--out", type=Path)
    return parser


def write_rows(
    network: nn.Module,
    measure: Measure,
    calibrate: Callable[[], object],
    options: argparse.Namespace,
    **about: Any,
) -> None:
    """Measure every row, say it, and write the file after each.

    calibrate: runs `network` on the text that importances are of.
    """
    found = {"machine": dataclasses.asdict(this_machine()), "model": options.folder.name, **about}
    rows: list[dict[str, Any]] = []

    def add(name: str, size: int, ours: nn.Module) -> None:
        rows.append({"name": name, "bytes": size, **measure(ours)})
        print(json.dumps(rows[-1]), flush=True)
        if options.out:
            with atomic_file(options.out) as file:
                file.write(f"{json.dumps(found | {'rows': rows}, indent=1)}\n".encode())

    add("original, fp32", sum(p.nbytes for p in dict.fromkeys(network.parameters())), network)
    for text in options.ours:
        name, _, file = text.rpartition("=")
        add(name, Path(file).stat().st_size, load_packed(network, PackedModel.load(file)))
    for text in options.folders:
        name, _, folder = text.rpartition("=")
        with given(network, Path(folder)) as size:
            add(name, size, network)
    chosen = [peer for peer in PEERS if options.peers is None or peer.name in options.peers]
    squares = importances(network, calibrate) if chosen else {}
    for peer in chosen:
        with stored(network, peer, squares) as size:
            add(peer.name, size, network)
