"""ONNX files of others, to a budget: smaller than ONNX Runtime's own int8, and as right?

    python benchmarks/quality/third_party.py inputs DATA
    hybridkit quantize MODEL.onnx --inputs DATA/lines.npz --within 1% -o OURS.onnx
    python benchmarks/quality/third_party.py measure lines MODEL.onnx OURS.onnx DATA/lines.npz \
        --name NAME --out FILE

`inputs` writes what the models are fed with: lines.npz, 256 lines of a novel set in the system's fonts, with
blur and noise, as a PP-OCR recogniser takes them; voice/, one file for each of 32 recordings of a human voice
(Debian's alsa-utils) among silence and noise, as the sequence model of silero-vad takes them; and, where the
package magika is installed, files.npz, what its model sees of some 150 files of the system. Every other
sample is what `quantize` measures on and fits nothing to (docs/quantization.md); those are measured here: how
often ours, and the model after `quantize_dynamic`, decide as the original does, and the outputs' cosine.

What a decision is: of `lines` the text of a line, of `voice` whether a window of 32 ms is speech, of
`classes` the likeliest class of a sample.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import tempfile
import wave
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks.heldout.austen import read_novels
from hybridkit.packing.atomic import atomic_file

Feed = dict[str, NDArray[Any]]
LINES, REPEATS = 256, 4
HEIGHT, WIDTH = 48, 320
WINDOW, CONTEXT = 512, 64  # samples at 16 kHz
FONTS, SOUNDS = Path("/usr/share/fonts"), Path("/usr/share/sounds/alsa")
SPEECH: Final = 0.5
FILES, SMALLEST = 150, 200  # files, bytes of one


def main() -> None:
    """Write inputs, or measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("inputs").add_argument("folder", type=Path)
    measure = verbs.add_parser("measure")
    measure.add_argument("kind", choices=DECISIONS)
    for name in ("model", "ours", "data"):
        measure.add_argument(name, type=Path)
    measure.add_argument("--name", default="model")
    measure.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.verb == "inputs":
        options.folder.mkdir(exist_ok=True)
        np.savez(options.folder / "lines.npz", x=lines())
        (options.folder / "voice").mkdir(exist_ok=True)
        for place, feed in enumerate(recordings()):
            np.savez(options.folder / "voice" / f"{place:02}.npz", **feed)
        if importlib.util.find_spec("magika"):
            np.savez(options.folder / "files.npz", bytes=files())
        return
    found = measured(options.kind, options.model, options.ours, list(others(options.data)))
    print(json.dumps(found, indent=1))
    if options.out:
        before = json.loads(options.out.read_text("utf-8")) if options.out.is_file() else {}
        with atomic_file(options.out) as file:
            file.write(f"{json.dumps(before | {options.name: found}, indent=1)}\n".encode())


def lines() -> NDArray[np.float32]:
    """float32 [LINES, 3, HEIGHT, WIDTH], from -1 to 1, zeros behind a line."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    choose, words = random.Random(0), next(iter(read_novels().values())).split()
    kinds = ("Liberation", "DejaVu")
    fonts = sorted(str(p) for p in FONTS.rglob("*.ttf") if p.name.startswith(kinds) and "Math" not in p.name)
    made = np.zeros((LINES, 3, HEIGHT, WIDTH), np.float32)
    for place in range(LINES):
        first, count = choose.randrange(len(words) - 4), choose.randint(2, 4)
        text = " ".join(words[first : first + count])
        font = ImageFont.truetype(choose.choice(fonts), choose.randint(24, 34))
        image = Image.new("L", (int(font.getlength(text)) + 20, HEIGHT), choose.randint(200, 255))
        ImageDraw.Draw(image).text((10, 4), text, font=font, fill=choose.randint(0, 80))
        if choose.random() < 0.5:
            image = image.filter(ImageFilter.GaussianBlur(1.2 * choose.random()))
        pixels = np.asarray(image.resize((min(image.width, WIDTH), HEIGHT)), np.float32)
        pixels = pixels + np.random.default_rng(place).normal(0, 12 * choose.random(), pixels.shape)
        made[place, :, :, : pixels.shape[1]] = np.clip(pixels, 0, 255) / 127.5 - 1
    return made


def recordings() -> Iterator[Feed]:
    """Windows [count, CONTEXT + WINDOW] of each recording, and the state that a sequence begins with."""
    random_ = np.random.default_rng(0)
    sounds = {path.stem: samples(path) for path in sorted(SOUNDS.glob("*.wav"))}
    noise = sounds.pop("Noise")
    for _ in range(REPEATS):
        for voice in sounds.values():
            before, after = (np.zeros(n) for n in random_.integers(4_000, 16_000, 2))
            sound = np.concatenate([before, voice * random_.uniform(0.2, 1), after])
            sound = sound + np.resize(noise, len(sound)) * random_.uniform(0, 0.15)
            sound = sound + random_.normal(0, random_.uniform(1e-4, 5e-3), len(sound))
            padded = np.concatenate([np.zeros(CONTEXT), sound]).astype(np.float32)
            starts = range(0, len(sound) // WINDOW * WINDOW, WINDOW)
            windows = np.stack([padded[i : i + CONTEXT + WINDOW] for i in starts])
            state = np.zeros((1, 1, 128), np.float32)
            yield {"input": windows, "h": state, "c": state}


def samples(path: Path) -> NDArray[np.float64]:
    """A recording at 16 kHz, from -1 to 1."""
    with wave.open(str(path)) as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), np.int16) / 32768
        mono = raw.reshape(-1, file.getnchannels()).mean(axis=1)
        places = np.arange(int(len(mono) * 16_000 / file.getframerate())) * file.getframerate() / 16_000
    return np.interp(places, np.arange(len(mono)), mono)


def files() -> NDArray[np.int32]:
    """What magika's model is given for files under /usr/share, a few of each suffix: int32 [files, bytes]."""
    import magika

    found: dict[str, list[Path]] = {}
    for path in sorted(Path("/usr/share").rglob("*.*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size > SMALLEST:
            found.setdefault(path.suffix.lower(), []).append(path)
    chosen = [
        path for _, paths in sorted(found.items(), key=lambda each: -len(each[1])) for path in paths[:3]
    ]
    tool: Any = magika.Magika()
    seen: list[NDArray[np.int32]] = []
    session = tool._onnx_session

    class Spy:
        """The session, which remembers what it is given."""

        def run(self, names: list[str], feed: Mapping[str, Any]) -> Any:
            """As it does."""
            seen.append(np.array(feed["bytes"], np.int32))
            return session.run(names, feed)

    tool._onnx_session = Spy()
    tool.identify_paths(chosen[:FILES])
    return np.concatenate(seen)


def others(data: Path) -> Iterator[Feed]:
    """What nothing was fitted to: every second file of a folder, or every second sample."""
    if data.is_dir():
        yield from (dict(np.load(path)) for path in sorted(data.glob("*.npz"))[1::2])
        return
    arrays: Mapping[str, NDArray[Any]] = dict(np.load(data))
    count = len(next(iter(arrays.values())))
    yield from ({name: x[i : i + 1] for name, x in arrays.items()} for i in range(1, count, 2))


def texts(output: NDArray[Any]) -> list[tuple[int, ...]]:
    """The characters of each line: the likeliest at every place, repetitions and blanks (0) left out."""
    found = []
    for row in output.argmax(axis=-1):
        kept = np.concatenate([[True], row[1:] != row[:-1]]) & (row != 0)
        found.append(tuple(row[kept].tolist()))
    return found


def speech(output: NDArray[Any]) -> list[bool]:
    """Whether each window is speech."""
    return [bool(p > SPEECH) for p in output.ravel()]


def classes(output: NDArray[Any]) -> list[int]:
    """The likeliest class of each sample."""
    found: list[int] = output.argmax(axis=-1).ravel().tolist()
    return found


DECISIONS: Final[dict[str, Callable[[NDArray[Any]], list[Any]]]] = {
    "lines": texts,
    "voice": speech,
    "classes": classes,
}


def measured(kind: str, model: Path, ours: Path, feeds: list[Feed]) -> dict[str, Any]:
    """Bytes, decisions that are the original's, and cosine of the first output, of ours and of int8."""
    from onnxruntime.quantization import quantize_dynamic

    decide = DECISIONS[kind]
    wanted = outputs(model, feeds)
    decisions = [each for output in wanted for each in decide(output)]
    with tempfile.TemporaryDirectory() as folder:
        int8 = Path(folder) / "int8.onnx"
        quantize_dynamic(model, int8)
        found: dict[str, Any] = {"decisions": len(decisions), "original": {"bytes": model.stat().st_size}}
        for name, file in {"ours": ours, "int8": int8}.items():
            got = outputs(file, feeds)
            same = [a == b for a, b in zip(decisions, [e for x in got for e in decide(x)], strict=True)]
            found[name] = {
                "bytes": file.stat().st_size,
                "same": float(np.mean(same)),
                "cosine": float(np.mean([cosine(a, b) for a, b in zip(got, wanted, strict=True)])),
            }
    return found


def outputs(file: Path, feeds: list[Feed]) -> list[NDArray[Any]]:
    """The first output for each feed."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    return [np.asarray(session.run(None, feed)[0]) for feed in feeds]


def cosine(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Of two outputs of a sample."""
    a, b = x.ravel().astype(np.float64), y.ravel().astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) or 1))


if __name__ == "__main__":
    main()
