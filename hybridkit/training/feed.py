"""What a run is fed with, batch by batch: samples that a sampler draws by index, or a stream as it comes.

Where the run has several processes, each is fed its share of every batch (`share`).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Protocol

from hybridkit.clustering.samplers import Draw, Sampler
from hybridkit.errors import FileError, UsageError
from hybridkit.tasks.data import Batch, Collate, Data, collated, take
from hybridkit.training.ahead import Ahead

MOST: Final = 2**62  # batches, epochs or samples that a saved state may name


@dataclass(frozen=True, slots=True)
class Fed:
    """One batch, the data cluster that it comes from (-1: several), and its share of each cluster.

    `batch` is this process's share: `own` of its `samples`. Where that is none, a sample of no weight.
    """

    batch: Batch
    cluster_id: int = -1
    histogram: tuple[float, ...] = ()
    own: int = 1
    samples: int = 1


def share(samples: Sequence[Any], part: int, parts: int) -> tuple[Sequence[Any], int]:
    """Samples of a batch for process `part` of `parts`, and how many: in their order, even give or take one.

    A process for which none is left gets the first one, counted as 0: its network has to run as all do.
    """
    start, end = (len(samples) * n // parts for n in (part, part + 1))
    return (samples[start:end], end - start) if end > start else (samples[:1], 0)


def origin(fed: Sequence[Fed]) -> tuple[int, tuple[float, ...]]:
    """The data cluster that all of several batches come from (-1: several), and their share of each."""
    if len(fed) == 1:
        return fed[0].cluster_id, fed[0].histogram
    clusters, samples = {one.cluster_id for one in fed}, sum(one.samples for one in fed)
    shares = zip(*([one.samples / samples * part for part in one.histogram] for one in fed), strict=True)
    return clusters.pop() if len(clusters) == 1 else -1, tuple(map(sum, shares))


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

    def close(self) -> None:
        """End the processes that read ahead; no batch is taken after it."""
        ...


class Sampled:
    """Batches of data that can be indexed, as a sampler draws them.

    Args:
        data, sampler: what is drawn from, and by whom.
        collate: puts samples together.
        part, parts: which share of each batch is taken, see `share`.
        workers: processes that read batches ahead; 0: this one reads each when its turn comes.
    """

    def __init__(
        self,
        data: Data,
        sampler: Sampler,
        collate: Collate | None = None,
        *,
        part: int = 0,
        parts: int = 1,
        workers: int = 0,
    ) -> None:
        self.data, self.sampler, self.collate = data, sampler, collate
        self.part, self.parts = part, parts
        self._ahead = Ahead(self._take, workers, sampler.seed) if workers else None

    @property
    def steps_per_epoch(self) -> int:
        """How many batches show every sample once."""
        return self.sampler.steps_per_epoch

    @property
    def drawn(self) -> int:
        """How many batches were taken."""
        return self.sampler.drawn

    def __next__(self) -> Fed:
        if self._ahead and not self._ahead.running:
            self._ahead.start(copy.deepcopy(self.sampler), self.drawn)
        draw = next(self.sampler)
        batch = next(self._ahead) if self._ahead else self._take(draw)
        own = self._share(draw)[1]
        return Fed(batch, draw.cluster_id, draw.histogram, own, len(draw.indices))

    def _share(self, draw: Draw) -> tuple[Any, int]:
        return share(draw.indices, self.part, self.parts)  # type: ignore[arg-type]

    def _take(self, draw: Draw) -> Batch:
        return take(self.data, self._share(draw)[0], self.collate)

    def state_dict(self) -> dict[str, Any]:
        """The sampler's."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the sampler."""
        self.sampler.load_state_dict(state)
        self.close()

    def close(self) -> None:
        """End the processes that read ahead, if there are any."""
        if self._ahead:
            self._ahead.stop()


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
        part, parts: which share of each batch is taken, see `share`. Every process reads all samples.
    """

    def __init__(
        self,
        stream: Any,
        batch_size: int,
        epoch_steps: int | None,
        collate: Collate | None = None,
        *,
        part: int = 0,
        parts: int = 1,
    ) -> None:
        self.stream, self.batch_size, self.collate = stream, batch_size, collate
        self.part, self.parts = part, parts
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
                mine, own = share(samples, self.part, self.parts)
                return Fed(collated(mine, self.collate), own=own, samples=len(samples))
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

    def close(self) -> None:
        """There is nothing to end."""


class StreamedAhead:
    """A `Streamed` that another process reads ahead: the same batches, and the state of the last one taken.

    One process reads a stream, since its samples come one after the other.
    """

    def __init__(self, feed: Streamed, seed: int) -> None:
        self.feed, self.state = feed, feed.state_dict()
        self._ahead = Ahead(self._read, 1, seed)

    @property
    def steps_per_epoch(self) -> int:
        """How many batches show every sample once."""
        return self.feed.steps_per_epoch

    @property
    def drawn(self) -> int:
        """How many batches were taken."""
        return int(self.state["drawn"])

    def __next__(self) -> Fed:
        if not self._ahead.running:
            self._ahead.start(itertools.repeat(None), self.drawn)
        fed, self.state = next(self._ahead)
        made: Fed = fed
        return made

    def _read(self, _: None) -> tuple[Fed, dict[str, Any]]:
        return next(self.feed), self.feed.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """The stream's, behind the last batch taken."""
        return self.state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there."""
        self._ahead.stop()
        self.feed.load_state_dict(state)
        self.state = self.feed.state_dict()

    def close(self) -> None:
        """End the process that reads ahead."""
        self._ahead.stop()
