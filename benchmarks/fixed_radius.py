"""How often a trust region of fixed radius shortens the step: digits, 200 steps of `--hybrid`, three seeds.

python benchmarks/fixed_radius.py [--optimizer adamw] [--constraint l2]
"""

from __future__ import annotations

import argparse
import statistics

from hybridkit.training.config import resolve
from hybridkit.training.trainer import Trainer

STEPS, SEEDS = 200, 3
RADII = (None, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # None: the radius follows the updates


def run(radius: float | None, seed: int, **flags: str) -> tuple[float, float]:
    """The share of the steps that were shortened, and the loss on the test data."""
    given = {} if radius is None else {"initial_trust_radius": radius}
    config = resolve(hybrid=True, max_steps=STEPS, threads=1, seed=seed, **given, **flags)
    trainer = Trainer.seeded(config)
    trainer.optimizer.radius.adapt = radius is None
    while not trainer.done:
        trainer.step()
    return trainer.progress.active_steps / STEPS, trainer.evaluate("test")["loss"]


def main() -> None:
    """Print a line per radius: medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--optimizer", default="steepest")
    parser.add_argument("--constraint", default="l2")
    flags = vars(parser.parse_args())
    for radius in RADII:
        shares, losses = zip(*(run(radius, seed, **flags) for seed in range(SEEDS)), strict=True)
        rate, loss = 100 * statistics.median(shares), statistics.median(losses)
        print(f"radius {radius or 'adapted'}: {rate:.1f} % of the steps shortened, test loss {loss:.3f}")


if __name__ == "__main__":
    main()
