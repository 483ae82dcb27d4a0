"""Draws docs/overview.svg from the committed results: size against accuracy, speed against peers.

python benchmarks/picture.py [--out FILE]      a .png or another suffix gives another format
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.append(str(ROOT / "benchmarks" / "kernels"))

import results as kernels  # noqa: E402

SHAPE, ROWS = 2560, (1, 8, 128)
OURS = "hybridkit int8"
PEERS = ("ORT int8", "ORT MatMulNBits 2-bit", "ggml TQ2_0", "ORT fp32")
COLOURS = ("#1f6f8b", "#99a8b2", "#c9b79c", "#b5838d", "#6d6875")


def size_and_accuracy(axes: Axes) -> None:
    """The digits network: bytes of the whole file against test accuracy, trained quantised and not."""
    found = json.loads((RESULTS / "digits.json").read_text("utf-8"))["quantization"]
    fp32 = found["sizes"][0]["sizes"]["fp32_bytes"]

    def row(precision: str, **wanted: Any) -> dict[str, Any]:
        rows = (r for r in found["errors"] if r["precision"] == precision)
        return next(r for r in rows if all(r[k] == v for k, v in wanted.items()))

    points = [
        ("fp32", fp32, row("ternary", method="hybrid", trained=True)["fp32_test_metric"], "#444444", "D")
    ]
    for size in found["sizes"]:
        name, file = size["precision"], size["sizes"]["file_bytes"]
        label = f"{name}, {size['codec']}: {size['whole_file']:.1f}x smaller"
        trained = row(name, method="hybrid", trained=True)["test_metric"]
        after = row(name, method=found["best_afterwards"][name], trained=False)["test_metric"]
        points += [(label, file, trained, COLOURS[0], "o"), ("", file, after, COLOURS[3], "s")]
    beside = {"fp32": (-12, -3), "base3": (24, -4), "two-bit": (12, -16), "one-bit": (8, 6)}  # points
    for label, file, accuracy, colour, marker in points:
        middle = 100 * accuracy["median"]
        ends = [[middle - 100 * accuracy["low"]], [100 * accuracy["high"] - middle]]
        axes.errorbar(file / 1024, middle, ends, color=colour, marker=marker, markersize=7, capsize=3)
        for name, offset in beside.items():
            if name in label:
                align = "right" if offset[0] < 0 else "left"
                place = {"xytext": offset, "textcoords": "offset points", "ha": align}
                axes.annotate(label, (file / 1024, middle), fontsize=8, **place)
    axes.plot([], [], "o", color=COLOURS[0], label="trained quantised")
    axes.plot([], [], "s", color=COLOURS[3], label="quantised after training")
    axes.set(xscale="log", xlabel="whole file, KiB", ylabel="test accuracy, %", xlim=(50, 2000))
    axes.set_title("Size against accuracy: digits, 0.3 M weights", fontsize=10)
    axes.set_xticks([64, 128, 256, 512, 1024], ["64", "128", "256", "512", "1024"])
    axes.minorticks_off()
    axes.legend(fontsize=8, loc="lower right")


def speed(axes: Axes, isa: str) -> None:
    """Time of one layer over ours."""
    run = kernels.read(RESULTS / f"kernels-{isa}.json")
    width = 0.8 / len(PEERS)
    for i, peer in enumerate(PEERS):
        heights = []
        for m in ROWS:
            case = kernels.Case(SHAPE, SHAPE, m, 1)
            ratio = run.ratio(peer, OURS, case)
            assert ratio is not None
            heights.append(ratio)
        places = [group + (i - (len(PEERS) - 1) / 2) * width for group in range(len(ROWS))]
        bars = axes.bar(places, heights, width * 0.92, label=peer, color=COLOURS[i + 1])
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.axhline(1, color=COLOURS[0], linewidth=2, label=OURS)
    axes.set(yscale="log", ylim=(0.7, 40), ylabel=f"time over {OURS}")
    axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.set_xticks(range(len(ROWS)), [f"M = {m}" for m in ROWS])
    axes.set_title(f"{SHAPE} x {SHAPE}, 1 thread, {isa}", fontsize=10)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "overview.svg")
    out = parser.parse_args().out
    plt.rcParams["svg.hashsalt"] = "hybridkit"  # the same file from the same numbers
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    size_and_accuracy(axes[0])
    speed(axes[1], "avx512vnni")
    speed(axes[2], "avx2")
    axes[2].legend(fontsize=8, loc="upper right", ncols=2)
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, dpi=110)


if __name__ == "__main__":
    main()
