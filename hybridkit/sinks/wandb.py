"""Weights & Biases."""

from __future__ import annotations

import html
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hybridkit.errors import UsageError
from hybridkit.options import option
from hybridkit.sinks.protocol import RunInfo, scalars, texts


class WandB:
    """A run of Weights & Biases, named after the run folder; offline runs lie there until `wandb sync`.

    Points that were logged cannot be taken back there: a run that goes on from an earlier checkpoint becomes
    a new one in the same group, with the log up to the checkpoint written again.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `wandb`."""

        project: str = option("hybridkit", "the project there")
        entity: str = option("", "the user or team (the account's default)")
        mode: Literal["", "online", "offline", "disabled"] = option("", "what WANDB_MODE says, else online")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # before the import, which reads it
        try:
            import wandb
        except ImportError:
            raise UsageError("--sink wandb needs Weights & Biases: pip install 'hybridkit[wandb]'") from None
        self._wandb: Any = wandb

    def open(self, run: RunInfo) -> int:
        """Begin or go on with the run whose id lies in the run's folder."""
        file = run.folder / "id"
        goes_on = file.exists() and run.logged <= run.step
        known, options = file.read_text() if goes_on else secrets.token_hex(4), self.options
        self._run = self._wandb.init(
            project=options.project,
            entity=options.entity or None,
            mode=options.mode or None,
            id=known,
            resume="allow",
            name=run.name,
            group=run.name,
            dir=str(run.folder),
            config={**run.config, "environment": dict(run.environment)},
            reinit="create_new",
            settings=self._wandb.Settings(silent=True, console="off", save_code=False),
        )
        file.write_text(known)  # now that there is a run of that id
        return run.step if goes_on else 0

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """A point of each number's chart, and each text as HTML."""
        found: dict[str, Any] = dict(scalars(event, values))
        for tag, text in texts(event, values).items():
            found[tag] = self._wandb.Html(f"<pre>{html.escape(text)}</pre>", inject=False)
        self._run.log(found, step=step)

    def close(self, *, ended: bool) -> None:
        """Send what is pending."""
        self._run.finish(exit_code=0 if ended else 1)
