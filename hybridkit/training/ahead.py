"""Reading ahead: other processes make the batches, which arrive in their order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from hybridkit.errors import FileError, HybridkitError


class Ahead:
    """An iterator over `make(order)` for each of some orders, made by `workers` processes ahead of time.

    The processes are torch's DataLoader's. What is random in `make` depends on `seed` and on the number of
    the order alone: not on which process makes it, nor on where the reading began.
    """

    def __init__(self, make: Callable[[Any], Any], workers: int, seed: int) -> None:
        self.make, self.workers, self.seed = make, workers, seed
        self._made: Iterator[Any] | None = None

    @property
    def running(self) -> bool:
        """Whether it has been started."""
        return self._made is not None

    def start(self, orders: Iterable[Any], number: int) -> None:
        """Begin with the first of `orders`, which never end; it is the one with that `number`."""
        from torch.utils.data import DataLoader

        loader: Any = DataLoader(
            _Makes(self.make, self.seed),  # type: ignore[arg-type]
            batch_size=None,
            sampler=_Numbered(orders, number),
            num_workers=self.workers,
            worker_init_fn=_quiet,
            generator=torch.Generator(),  # which would be the global one, that the network draws from
        )
        self._made = iter(loader)

    def stop(self) -> None:
        """Forget what has been read ahead."""
        self._made = None

    def __next__(self) -> Any:
        assert self._made is not None, "start comes first"
        try:
            return next(self._made)
        except Exception as error:  # whatever the data raise, with a traceback for its message
            kind = type(error) if isinstance(error, HybridkitError) else FileError
            raise kind(f"a process of --workers could not read the training data: {_reason(error)}") from None


class _Makes:
    """A map-style dataset for DataLoader: each index is an order with its number."""

    def __init__(self, make: Callable[[Any], Any], seed: int) -> None:
        self.make, self.seed = make, seed

    def __getitem__(self, numbered: tuple[int, Any]) -> Any:
        from hybridkit.training.network import seed_everything

        number, order = numbered
        seed_everything((self.seed + 0x9E3779B97F4A7C15 * (number + 1)) % 2**63)
        return self.make(order)


class _Numbered:
    """Orders with their numbers."""

    def __init__(self, orders: Iterable[Any], number: int) -> None:
        self.orders, self.number = orders, number

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return enumerate(self.orders, self.number)


def _quiet(worker: int) -> None:
    """Ctrl-C is the run's to act on; its workers go when it goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _reason(error: BaseException) -> str:
    """The last line of a worker's traceback, without the type of a message of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    return last.partition(": ")[2] if last.startswith("hybridkit.errors.") else last
