"""The processes of a run: who they are, what they tell each other, and how they end together.

torchrun and `accelerate launch` start them and say in the environment who each is. torch.distributed is used
as it is: accelerate's own `Accelerator` shards on accelerators alone, deals whole batches of a data loader of
its own to the processes, and swaps the parameters of an optimizer that was made before. Here each process
takes a share of the run's one batch, from a feed that goes on exactly where it was, and the optimizer is made
afterwards.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from hybridkit.errors import HybridkitError, UsageError
from hybridkit.training.config import TrainConfig
from hybridkit.training.signals import stop_requests

PATIENCE: Final = timedelta(hours=6)  # for the one that packs and writes while the others wait

_SAID: Final = "hybridkit/said"  # in the store: how many processes had something to say
T = TypeVar("T")


class LostProcessError(HybridkitError):
    """Another process of the run has ended."""


@dataclass(frozen=True, slots=True)
class World:
    """One process among those of a run. What it asks of the others, all have to ask at the same point."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def gathered(self, value: T) -> list[T]:
        """The values of all, in order. They are pickled on the way between the processes of the run."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sum of each over all, in float64: the same bits everywhere."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether it is true anywhere."""
        return self.sums([float(flag)])[0] > 0

    def shared(self, compute: Callable[[], T]) -> T:
        """What the main process computes, or the HybridkitError that it raises, everywhere."""
        if self.size == 1:
            return compute()
        found: list[Any] = [None]
        if self.main:
            try:
                found = [compute()]
            except HybridkitError as error:
                found = [error]
        dist.broadcast_object_list(found)
        if isinstance(found[0], HybridkitError):
            raise found[0]
        result: T = found[0]
        return result


def world() -> World:
    """This process among those that `processes` has joined; alone without."""
    if dist.is_available() and dist.is_initialized():
        return World(dist.get_rank(), dist.get_world_size())
    return World()


def launched() -> bool:
    """Whether torchrun, or what sets its variables, has started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def as_launched(config: TrainConfig, environment: Mapping[str, str] = os.environ) -> TrainConfig:
    """`config` with what `accelerate launch` was told, where the configuration itself says nothing.

    That is bf16 or fp16, and FSDP. Raises UsageError for what this trainer has not.
    """
    said: dict[str, Any] = {}
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision in ("bf16", "fp16") and config.precision == "fp32":
        said["precision"] = precision
    elif precision not in ("no", "fp32", "bf16", "fp16"):
        raise UsageError(f"accelerate's mixed precision {precision!r}: say no, bf16 or fp16")
    if environment.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise UsageError("accelerate was told to use DeepSpeed; hybridkit trains with DDP or FSDP2")
    if environment.get("ACCELERATE_USE_FSDP") == "true":
        said["shard"] = True
    return dataclasses.replace(config, **said)


@contextmanager
def processes(device: str) -> Iterator[World]:
    """Join the other processes that were launched, if there are any; in this context `world()` knows them.

    An error that ends the run is raised by the process that met it first; in the others it is marked as said.
    """
    if not launched() or dist.is_initialized():
        yield world()
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    with ExitStack() as leaving:
        try:
            with _ending_together(store, World(rank, size)):
                try:
                    yield world()
                except BaseException:
                    # torchrun stops all as soon as one has ended, but what is wrong is said first
                    leaving.enter_context(stop_requests(once=True))
                    raise
        finally:
            dist.destroy_process_group()


@contextmanager
def _ending_together(store: Any, here: World) -> Iterator[None]:
    try:
        yield
    except HybridkitError as error:
        error.said = not _first_to_speak(store, here)
        raise
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        lost = LostProcessError(
            "another process of this run has ended, so this one does too; go on from the last checkpoint "
            "with hybridkit train --resume RUN"
        )
        lost.said = not _first_to_speak(store, here)
        raise lost from None


def _first_to_speak(store: Any, here: World) -> bool:
    try:
        place = int(store.add(_SAID, 1))
        # torchrun keeps the store; without it that is the main process, which lets the others ask first
        until = time.monotonic() + (here.main and "TORCHELASTIC_RUN_ID" not in os.environ) * 10
        while time.monotonic() < until and int(store.add(_SAID, 0)) < here.size:
            time.sleep(0.02)
        return place == 1
    except RuntimeError:  # the store has gone with the process that kept it
        return True


def _is_loss(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or "gloo" in text or "connection" in text
