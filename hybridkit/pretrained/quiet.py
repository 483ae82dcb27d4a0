"""transformers and the hub's client talk a lot: bars, reports, advice. Here they do their work in silence."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """In this context neither library writes to the terminal; afterwards both are as talkative as before."""
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging as ours

    hub_bars = importlib.import_module("huggingface_hub.utils.tqdm")  # the package shows a class by this name
    levels = [(log, log.get_verbosity()) for log in (hub, ours)]
    bars_of_hub, bars = not hub_bars.are_progress_bars_disabled(), ours.is_progress_bar_enabled()
    for log, _ in levels:
        log.set_verbosity(logging.CRITICAL)
    hub_bars.disable_progress_bars()
    ours.disable_progress_bar()
    try:
        # the bar of a GGUF file heeds neither switch
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in levels:
            log.set_verbosity(level)
        if bars_of_hub:
            hub_bars.enable_progress_bars()
        if bars:
            ours.enable_progress_bar()
