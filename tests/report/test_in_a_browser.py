"""The page in Chromium, headless, where it is installed: drawn, without errors, without overflow."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from hybridkit.report.data import collect
from hybridkit.report.page import page
from hybridkit.training.runs import Run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")

# Measured in the page: the size of every chart and its drawn paths, what sticks out, colours, the tip.
PROBE = """
const width = document.documentElement.getBoundingClientRect().width;
const hidden = ".scroll > *, svg, details:not([open]) > *, script, style";
const sticksOut = [...document.querySelectorAll("body *")].filter(
  (e) => !e.closest(hidden) && e.getBoundingClientRect().right > width + 1);
const area = document.querySelector(".area"), box = area?.getBoundingClientRect();
area?.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + box.width / 2, clientY: box.top }));
const luminance = (text) => text.match(/[0-9.]+/g).slice(0, 3).reduce((sum, part) => sum + +part, 0) / 765;
document.body.dataset.probe = JSON.stringify({
  width,
  charts: [...document.querySelectorAll("figure.chart")].map((figure) => {
    const svg = figure.querySelector("svg").getBoundingClientRect();
    const lines = [...figure.querySelectorAll("path.line")].map((path) => path.getTotalLength());
    return { width: svg.width, height: svg.height, lines,
             labels: figure.querySelectorAll(".up span").length,
             across: figure.querySelectorAll(".across span").length };
  }),
  sticksOut: sticksOut.map((e) => e.outerHTML.slice(0, 200)),
  tip: document.querySelector(".tip")?.textContent,
  paper: luminance(getComputedStyle(document.body).backgroundColor),
  ink: luminance(getComputedStyle(document.body).color),
});
"""


def looked_at(text: str, folder: Path, width: int, dark: bool) -> dict[str, Any]:
    """What the probe measured, after the page was shown `width` pixels wide."""
    file = folder / "page.html"
    narrow = f"<style>html {{ width: {width}px }}</style></head>"  # a window has a least width
    text = text.replace("</head>", narrow, 1).replace("</body>", f"<script>{PROBE}</script></body>", 1)
    file.write_text(text, "utf-8")
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},900", *scheme,
         "--dump-dom", file.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    assert not said, said
    found = re.search(r'data-probe="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    measured: dict[str, Any] = json.loads(unescape(found[1]))
    return measured


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)], ids=["wide-light", "narrow-dark"])
def test_charts_are_drawn_and_nothing_sticks_out(
    ternary: Run, tmp_path: Path, width: int, dark: bool
) -> None:
    report = collect(ternary)
    seen = looked_at(page(report), tmp_path, width, dark)
    assert seen["width"] == width
    assert len(seen["charts"]) == len(report.charts) == 9
    for chart, drawn in zip(report.charts, seen["charts"], strict=True):
        assert drawn["width"] > 200, chart.title
        assert drawn["height"] > 100, chart.title
        assert drawn["labels"] >= 2, chart.title
        assert drawn["across"] >= 1, chart.title
        for line, length in zip(chart.lines, drawn["lines"], strict=True):
            assert (length > 100) == (len(line.steps) > 1), (chart.title, line.name)
    assert seen["sticksOut"] == []
    assert re.match(r"step \d+\neach step: \d", seen["tip"])
    assert (seen["paper"] < 0.2 < 0.8 < seen["ink"]) if dark else (seen["ink"] < 0.2 < 0.8 < seen["paper"])


def test_a_page_without_charts(plain: Run, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(plain.path, tmp_path / "run")))
    run.metrics_path.unlink()
    seen = looked_at(page(collect(run)), tmp_path, 360, False)
    assert (seen["charts"], seen["sticksOut"]) == ([], [])
