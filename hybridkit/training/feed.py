"""What a run is fed with, batch by batch: samples that a sampler draws by index, or a stream as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol

from hybridkit.clustering.samplers import Sampler
from hybridkit.errors import FileError, UsageError
from hybridkit.tasks.data import Batch, Collate, Data, collated, take

MOST: Final = 2**62  # batches, epochs or samples that a saved state may name


@dataclass(frozen=True, slots=True)
class Fed:
    """One batch, the data cluster that it comes from (-1: several), and its share of each cluster."""

    batch: Batch
    cluster_id: int = -1
    histogram: tuple[float, ...] = ()


class Feed(Protocol):
    """An endless iterator over batches that can go on where it was."""

    @property
    def steps_per_epoch(self) -> int:
        """How many batches show every sample once."""
        ...

    @property
    def drawn(self) -> int:
        """How many batches were taken."""
        ...

    def __next__(self) -> Fed:
        """The next batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there."""
        ...


class Sampled:
    """Batches of data that can be indexed, as a sampler draws them."""

    def __init__(self, data: Data, sampler: Sampler, collate: Collate | None = None) -> None:
        self.data, self.sampler, self.collate = data, sampler, collate

    @property
    def steps_per_epoch(self) -> int:
        """How many batches show every sample once."""
        return self.sampler.steps_per_epoch

    @property
    def drawn(self) -> int:
        """How many batches were taken."""
        return self.sampler.epoch * self.sampler.steps_per_epoch + self.sampler.position

    def __next__(self) -> Fed:
        draw = next(self.sampler)
        return Fed(take(self.data, draw.indices, self.collate), draw.cluster_id, draw.histogram)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sampler."""
        self.sampler.load_state_dict(state)


class Streamed:
    """Batches of a stream in its own order; it starts again where it ends.

    One batch is in memory at a time. A stream with `set_epoch` (as those of Hugging Face's datasets) is told
    the epoch, counted from 0, so that it can shuffle anew. To go on where it was, the samples of the epoch
    that were seen are read again and dropped, unless the stream has a `state_dict` of its own.

    Args:
        stream: an iterable that gives samples.
        batch_size: samples of a batch; the last of an epoch may have fewer.
        epoch_steps: batches of an epoch where the stream does not know its length (`__len__`).
        collate: puts samples together.
    """

    def __init__(
        self, stream: Any, batch_size: int, epoch_steps: int | None, collate: Collate | None = None
    ) -> None:
        self.stream, self.batch_size, self.collate = stream, batch_size, collate
        known = len(stream) if hasattr(stream, "__len__") else None
        steps = -(-known // batch_size) if known else epoch_steps
        if steps is None:
            raise UsageError("the training data are a stream of unknown length: say --max-steps N")
        self._steps, self.drawn = steps, 0
        self._start(0)

    @property
    def steps_per_epoch(self) -> int:
        """How many batches show every sample once, or what counts as an epoch where that is not known."""
        return self._steps

    def __next__(self) -> Fed:
        for _ in range(2):
            if samples := list(islice(self._samples, self.batch_size)):
                self.samples += len(samples)
                self.drawn += 1
                return Fed(collated(samples, self.collate))
            self._start(self.epoch + 1)
        raise UsageError("the training data are a stream without samples")

    def _start(self, epoch: int, state: Any = None) -> None:
        self.epoch, self.samples = epoch, 0
        if callable(set_epoch := getattr(self.stream, "set_epoch", None)):
            set_epoch(epoch)
        if state is not None:
            self.stream.load_state_dict(state)
        self._samples: Iterator[Any] = iter(self.stream)

    def state_dict(self) -> dict[str, Any]:
        """Batches taken, epoch, samples seen in it, and the stream's own state where it keeps one."""
        own = getattr(self.stream, "state_dict", None)
        state = {"drawn": self.drawn, "epoch": self.epoch, "samples": self.samples}
        return {**state, "stream": own()} if callable(own) else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on behind the samples seen.

        Raises FileError for the state of something else, and where the stream has fewer samples now.
        """
        here = self.state_dict()
        counts: list[Any] = [state.get(name) for name in ("drawn", "epoch", "samples")]
        if set(state) != set(here) or not all(type(n) is int and 0 <= n < MOST for n in counts):
            raise FileError(f"this is not the state of a stream: it must hold {', '.join(here)}")
        self.drawn, epoch, seen = counts
        if "stream" in state:
            try:
                self._start(epoch, state["stream"])
            except Exception as error:  # whatever a stranger's stream raises for a state of something else
                raise FileError(f"the training data cannot go on from the saved state ({error})") from None
            self.samples = seen
            return
        self._start(epoch)
        self.samples = sum(1 for _ in islice(self._samples, seen))
        if self.samples < seen:
            raise FileError(
                f"the training data have {self.samples} samples, the checkpoint has seen {seen} of them: "
                "other data"
            )
