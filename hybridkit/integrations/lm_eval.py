"""lm-evaluation-harness (EleutherAI) on any source that is a causal language model.

python -m hybridkit.integrations.lm_eval run --model hybridkit --model_args source=RUN --tasks lambada_openai

The command is lm_eval's own with one more model. In Python: `simple_evaluate(model=HybridkitLM(source))`.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from hybridkit.errors import FileError, HybridkitError, UsageError
from hybridkit.pretrained import open_pretrained
from hybridkit.pretrained.examples import inner_model
from hybridkit.runtime.modules import load_packed
from hybridkit.sources.protocol import Code, Source, open_source


@register_model("hybridkit")
class HybridkitLM(HFLM):  # type: ignore[misc]
    """lm_eval's model of transformers over the network of a source; it scores and generates as lm_eval does.

    A network that trained quantised weights runs packed, with the arithmetic that its file has.

    Args:
        source: what `hybridkit quantize` and `export` take.
        tokenizer: a folder or a name, where the source brings none.
        task, model: as `--task` and `--model` there.
        trust_remote_code: whether code in the source's own folder may run.
        device: without a GPU it is the CPU, whatever this says.
        **settings: HFLM's own that are not about loading: `batch_size`, `max_length`, `add_bos_token`,
            `softmax_dtype`, `mixed_precision_dtype`, ...

    Raises:
        UsageError: for a source that is no causal language model of transformers, or has no tokenizer.
    """

    def __init__(
        self,
        source: str,
        tokenizer: str | None = None,
        *,
        task: str | None = None,
        model: str | None = None,
        trust_remote_code: bool = False,
        device: str = "cuda",
        **settings: Any,
    ) -> None:
        found = open_source(str(source), Code(task, model, remote=trust_remote_code))
        if device.startswith("cuda") and not torch.cuda.is_available():
            device = "cpu"  # `cuda:0` is what lm_eval's command line says by default
        network = causal_network(found).to(device)
        words = open_pretrained(tokenizer).tokenizer() if tokenizer else tokenizer_of(found)
        super().__init__(network, tokenizer=words, trust_remote_code=trust_remote_code, **settings)


def causal_network(source: Source) -> Any:
    """The source's network as transformers' class of it, packed if it trained quantised weights."""
    network, packed = source.network, source.packed
    inner: Any = inner_model(network if packed is None else load_packed(network, packed))
    if inner is None or not inner.can_generate():
        raise UsageError(
            f"{source.text} is no causal language model of transformers, and only such are evaluated"
        )
    if packed is not None:
        inner.tie_weights = _nothing  # packed layers share their codes already, and have no weight to tie
    return inner


def tokenizer_of(source: Source) -> Any:
    """The tokenizer that travels with the source. Raises UsageError where there is none."""
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(FileError):
        if source.assets is not None:
            source.assets.save(Path(folder, "assets"))
            return open_pretrained(str(Path(folder, "assets"))).tokenizer()
    raise UsageError(f"{source.text} brings no tokenizer that can be read; say tokenizer=FOLDER")


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""


def main() -> None:
    """lm_eval's command line; what a user can mend becomes one line on stderr."""
    try:
        cli_evaluate()
    except HybridkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
