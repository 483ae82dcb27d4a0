"""TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from hybridkit.errors import UsageError
from hybridkit.options import option
from hybridkit.sinks.protocol import RunInfo, scalars, texts


class TensorBoard:
    """Event files in the run folder: `tensorboard --logdir runs` finds every run.

    A run that goes on from an earlier checkpoint purges what came later: TensorBoard shows it no more.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `tensorboard`."""

        flush_seconds: Annotated[int, Ge(1)] = option(30, "seconds until what was logged is on the disk")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "--sink tensorboard needs TensorBoard: pip install 'hybridkit[tensorboard]'"
            ) from None
        self._make: Any = SummaryWriter

    def open(self, run: RunInfo) -> int:
        """Write into the run's folder, with a mark that purges the steps after `run.step`."""
        known = any(run.folder.glob("events.out.tfevents.*"))
        self._writer = self._make(
            log_dir=str(run.folder),
            purge_step=run.step + 1 if known else None,
            flush_secs=self.options.flush_seconds,
        )
        return run.step if known else 0

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """A scalar for each number, a text panel for each text."""
        for tag, value in scalars(event, values).items():
            self._writer.add_scalar(tag, value, step)
        for tag, text in texts(event, values).items():
            indented = "\n".join(f"    {line}" for line in text.splitlines())  # Markdown, as it stands
            self._writer.add_text(tag, indented, step)

    def close(self, *, ended: bool) -> None:
        """Flush and close the file."""
        self._writer.close()
