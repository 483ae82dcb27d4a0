"""`hybridkit generate`: text from a language model that was exported with a cache, without torch."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybridkit.cli._shared import ConfigOption, JsonOption, emit_json, flag, with_flags
from hybridkit.errors import UsageError

if TYPE_CHECKING:
    from hybridkit.runtime.generation import LanguageModel, Sampling
    from hybridkit.runtime.text import Text

WHAT, HOW = "What is asked", "How tokens are drawn"


@dataclass(frozen=True, kw_only=True, slots=True)
class Flags:
    """The options of the verb."""

    chat: Annotated[
        bool,
        flag(WHAT, "As a conversation, in the model's own template; without PROMPT, one at the terminal."),
    ] = False
    system: Annotated[str | None, flag(WHAT, "What a conversation begins with.", "TEXT")] = None
    max_tokens: Annotated[int, flag(WHAT, "Tokens of an answer at most.", "N", min=1)] = 256
    temperature: Annotated[
        float | None, flag(HOW, "0: the likeliest token (default: what the model's folder says).", min=0)
    ] = None
    top_k: Annotated[int | None, flag(HOW, "Among the K likeliest; 0: all.", "K", min=0)] = None
    top_p: Annotated[
        float | None, flag(HOW, "Among the likeliest that together have probability P.", "P")
    ] = None
    repetition_penalty: Annotated[float | None, flag(HOW, "Above 1: against repetition.")] = None
    seed: Annotated[int | None, flag(HOW, "For the same answer again.", "N", min=0)] = None
    threads: Annotated[int | None, flag(HOW, "As many as physical cores by default.", "N", min=1)] = None


@with_flags
def command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="What `hybridkit export FOLDER --target genai` wrote.", show_default=False
        ),
    ],
    flags: Flags,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The text to go on from; `-` reads it from stdin.")
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Generate text with an exported language model, as it is found; how fast goes to stderr.

    Runs on ONNX Runtime with the native operators, without torch.
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    if text is None and not (flags.chat and sys.stdin.isatty()):
        raise UsageError("say the prompt, `-` for stdin, or --chat at a terminal")

    from hybridkit.runtime.generation import LanguageModel, sampling_of
    from hybridkit.runtime.text import Text

    began = time.perf_counter()
    network, words = LanguageModel(model, threads=flags.threads), Text(model)
    loaded = time.perf_counter() - began
    sampling = sampling_of(
        network.search,
        temperature=flags.temperature,
        top_k=flags.top_k,
        top_p=flags.top_p,
        repetition_penalty=flags.repetition_penalty,
        seed=flags.seed,
    )
    conversation = [{"role": "system", "content": flags.system}] if flags.system else []
    if text is None:
        _converse(network, words, conversation, sampling, flags.max_tokens)
        return
    if flags.chat:
        tokens = words.encode_chat([*conversation, {"role": "user", "content": text}])
    elif flags.system:
        raise UsageError("--system belongs to --chat")
    else:
        tokens = words.encode(text)
    answer = _answer(network, words, tokens, sampling, flags.max_tokens, quiet=json)
    if json:
        emit_json("generate", {**answer, "load_seconds": loaded, "cache_bytes": network.cache_bytes})
    else:
        print(_speed(answer), file=sys.stderr)


def _answer(
    network: LanguageModel, words: Text, tokens: list[int], sampling: Sampling, most: int, *, quiet: bool
) -> dict[str, Any]:
    """Generate and show; the text, its tokens, and how long the prompt and the rest took."""
    times = [time.perf_counter()]
    found: list[int] = []

    def noted() -> Any:
        for token in network.stream(tokens, most, sampling):
            times.append(time.perf_counter())
            found.append(token)
            yield token

    pieces = []
    for piece in words.decode(noted()):
        pieces.append(piece)
        if not quiet:
            print(piece, end="", flush=True)
    if not quiet:
        print()
    prompt = times[1] - times[0] if len(times) > 1 else 0.0
    rest = times[-1] - times[1] if len(times) > 2 else 0.0
    return {
        "text": "".join(pieces),
        "tokens": found,
        "prompt_tokens": len(tokens),
        "prompt_seconds": prompt,
        "tokens_per_second": (len(times) - 2) / rest if rest else None,
    }


def _speed(answer: dict[str, Any]) -> str:
    rate = answer["tokens_per_second"]
    after = f", then {rate:.1f} tokens a second" if rate else ""
    return f"{answer['prompt_tokens']} tokens of prompt in {answer['prompt_seconds']:.2f} s{after}"


def _converse(
    network: LanguageModel,
    words: Text,
    conversation: list[dict[str, str]],
    sampling: Sampling,
    most: int,
) -> None:
    """Ask and answer until the input ends."""
    while True:
        try:
            said = input("> ")
        except EOFError:
            print()
            return
        conversation.append({"role": "user", "content": said})
        answer = _answer(network, words, words.encode_chat(conversation), sampling, most, quiet=False)
        conversation.append({"role": "assistant", "content": answer["text"]})
