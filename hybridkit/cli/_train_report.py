"""What `hybridkit train` shows: epoch lines, the summary, the result as text and as JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from hybridkit.cli._shared import left_alone_lines, progress
from hybridkit.errors import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from hybridkit.packing.model import Sizes
    from hybridkit.training.events import EpochDone, Event, Listener
    from hybridkit.training.loop import HybridSummary, TrainResult


def watched(out: TextIO, work: Callable[[Listener], TrainResult]) -> TrainResult:
    """Do the work, with epoch lines on `out` and a live display on stderr where that is a terminal."""
    with progress() as display:
        return work(_Watcher(out, display))


class _Watcher:
    """Prints what a run tells."""

    def __init__(self, out: TextIO, display: Progress) -> None:
        self.out, self.display = out, display
        self.bar: TaskID | None = None
        self.pace, self.memory = Pace(), Memory()

    def __call__(self, event: Event) -> None:
        from hybridkit.training import events

        match event:
            case events.Started(step=step, total_steps=total):
                self.bar = self.display.add_task("training", total=total, completed=step)
                if step:
                    self._print(f"Resumed from step {step} of {total}")
            case events.StepDone(step=step, values=values) if self.bar is not None:
                parts = (f"epoch {values['epoch']}", f"loss {values['loss']:.4f}")
                text = "  ".join((*parts, self.pace.add(values), self.memory.text()))
                self.display.update(self.bar, completed=step, description=text)
            case events.EpochDone():
                self._print(epoch_line(event))
            case events.Warned(message=message):
                line = f"hybridkit: warning: {printable(message)}"
                with _gone_terminal():
                    self.display.console.print(line, markup=False, soft_wrap=True)
            case _:
                pass

    def _print(self, line: str) -> None:
        with _gone_terminal():
            if self.out.isatty() and self.display.console.is_terminal:  # one terminal: above the live display
                self.display.console.print(line, markup=False, soft_wrap=True)
            else:
                print(line, file=self.out, flush=True)


class Pace:
    """How fast the last steps were, in tokens where the task has them, else in samples."""

    STEPS = 20

    def __init__(self) -> None:
        self._steps: deque[tuple[int, float]] = deque(maxlen=self.STEPS)

    def add(self, values: Mapping[str, Any]) -> str:
        """Add what a step logged; `1,234 tokens/s`."""
        unit = "tokens" if "tokens" in values else "samples"
        self._steps.append((values[unit], values["seconds"]))
        amount, seconds = (sum(column) for column in zip(*self._steps, strict=True))
        return f"{amount / max(seconds, 1e-9):,.0f} {unit}/s"


class Memory:
    """What this process holds: resident memory, or where CUDA is in use, the most its tensors took there."""

    EVERY = 1.0  # seconds between two looks

    def __init__(self) -> None:
        self._text, self._next = "", 0.0

    def text(self) -> str:
        """`1.2 GiB`, or `1.2 GiB CUDA`, at most a second old."""
        if (now := time.monotonic()) >= self._next:
            import psutil
            import torch

            self._next = now + self.EVERY
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                self._text = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB CUDA"
            else:
                self._text = f"{psutil.Process().memory_info().rss / 2**30:.1f} GiB"
        return self._text


@contextlib.contextmanager
def _gone_terminal() -> Iterator[None]:
    """Let nothing keep a run whose terminal was closed from saving its state."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def epoch_line(done: EpochDone) -> str:
    """`Epoch 5, Loss: 1.234567, LR: 0.001150, Trust Radius: 0.012345`; without hybrid no radius."""
    line = f"Epoch {done.epoch}, Loss: {done.loss:.6f}, LR: {done.lr:.6f}"
    return line if done.trust_radius is None else f"{line}, Trust Radius: {done.trust_radius:.6f}"


def summary_block(summary: HybridSummary) -> str:
    """What a hybrid run prints at its end."""
    rule = "=" * 60
    return "\n".join(
        [
            "HYBRID OPTIMIZATION SUMMARY",
            rule,
            f"Total Steps: {summary.total_steps}",
            f"Final Loss: {summary.final_loss:.6f}",
            f"Avg Learning Rate Multiplier: {summary.avg_lr_multiplier:.2f}x",
            f"Constraint Activation Rate: {100 * summary.constraint_activation_rate:.1f}%",
            f"Final Trust Radius: {summary.trust_radius:.6f}",
            rule,
        ]
    )


def print_result(result: TrainResult, written: list[Path], out: TextIO) -> None:
    """Print what a run came to, and the files written beside it."""
    lines = [summary_block(result.summary)] if result.summary else []
    lines += [_metrics_line("Validation", result.validation), _metrics_line("Test", result.test)]
    packed = result.packed
    if packed:
        sizes = packed.sizes
        lines.append(_metrics_line("Packed test", packed.test.packed))
        if not result.config.qat:
            lines.append(
                f"Squared relative error of quantisation: {packed.test.error:.4g} (outputs on test data)"
            )
        lines.append(
            f"Packed: {sizes.bits_per_weight:.3f} bits per weight on disk; {sizes.file_bytes:,} bytes, "
            f"{sizes.ratio:.2f}x smaller than fp32 (quantised layers alone {sizes.layers_ratio:.2f}x)"
        )
        lines += left_alone_lines(packed.left_alone)
        lines.append(f"Packed model: {packed.path}")
    lines += [f"Metrics: {path}" for path in written]
    lines.append(f"Run: {result.run.path}")
    print("\n".join(lines), file=out, flush=True)


def _metrics_line(label: str, metrics: Mapping[str, float]) -> str:
    return f"{label}: " + ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def document(result: TrainResult, written: list[Path]) -> dict[str, Any]:
    """The result of a run as the one JSON document."""
    about = result.run.about()
    packed = result.packed
    return {
        "run": result.run.path,
        "config": result.config,
        "environment": about.get("environment"),
        "data": about.get("data"),
        "steps": result.steps,
        "final_loss": result.final_loss,
        "best_step": result.best_step,
        "validation": result.validation,
        "test": result.test,
        "summary": result.summary,
        "packed": packed
        and {
            **_size_fields(packed.sizes),
            "path": packed.path,
            "test": packed.test.packed,
            "error": packed.test.error,
            "left_alone": packed.left_alone,
        },
        "metrics_files": written,
    }


def _size_fields(sizes: Sizes) -> dict[str, Any]:
    ratios = {
        "bits_per_weight": sizes.bits_per_weight,
        "ratio": sizes.ratio,
        "layers_ratio": sizes.layers_ratio,
    }
    return {**dataclasses.asdict(sizes), **ratios}
