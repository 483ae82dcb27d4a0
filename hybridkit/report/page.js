// The values under the pointer. Without it the page lacks nothing else.
for (const figure of document.querySelectorAll("figure.chart")) {
  const chart = JSON.parse(figure.dataset.chart), [low, high] = chart.range;
  const area = figure.querySelector(".area"), cursor = figure.querySelector(".cursor");
  const tip = figure.querySelector(".tip");
  const shown = (value) => chart.percent ? `${+(100 * value).toPrecision(4)} %` : `${+value.toPrecision(5)}`;
  const nearest = (steps, at) => steps.reduce((best, x, i) => Math.abs(x - at) < Math.abs(steps[best] - at) ? i : best, 0);
  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect();
    const at = low + (high - low) * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const hits = chart.lines.map((line) => nearest(line.x, at));
    const step = chart.lines.map((line, i) => line.x[hits[i]])
      .reduce((best, x) => Math.abs(x - at) < Math.abs(best - at) ? x : best);
    const rows = chart.lines.map((line, i) => `${line.name}: ${shown(line.y[hits[i]])}` +
      (line.x[hits[i]] === step ? "" : ` (step ${line.x[hits[i]]})`));
    tip.textContent = [`step ${step}`, ...rows].join("\n");
    const place = (step - low) / (high - low) * box.width;
    cursor.style.cssText = `display: block; left: ${place}px`;
    tip.style.display = "block";
    tip.style.left = `${Math.max(0, place + 10 + tip.offsetWidth > box.width ? place - 10 - tip.offsetWidth : place + 10)}px`;
  });
  area.addEventListener("pointerleave", () => { cursor.style.display = tip.style.display = "none"; });
}
