"""Text to calibrate on, and two others to measure on.

    python benchmarks/quality/texts.py FOLDER

writes FOLDER/calibration.txt (articles of WikiText-2, and the Anarchist FAQ), novels.txt (Jane Austen) and
addresses.txt (on the State of the Union).
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.distillation.sentences import addresses, arguments, articles
from benchmarks.heldout.austen import read_novels
from hybridkit.packing.atomic import atomic_file

CALIBRATION, NOVELS, ADDRESSES = "calibration.txt", "novels.txt", "addresses.txt"
AT_ONCE = 12  # sentences of a paragraph


def main(folder: Path) -> None:
    """Write the files."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        CALIBRATION: [*articles(), *_paragraphs(list(arguments()))],
        NOVELS: list(read_novels().values()),
        ADDRESSES: _paragraphs(list(addresses())),
    }
    for name, parts in texts.items():
        with atomic_file(folder / name) as file:
            file.write("\n\n".join(parts).encode())


def _paragraphs(sentences: list[str]) -> list[str]:
    return [" ".join(sentences[i : i + AT_ONCE]) for i in range(0, len(sentences), AT_ONCE)]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
