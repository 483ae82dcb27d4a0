"""Prodigy (Mishchenko and Defazio 2023) for hybridkit: describes the strategies, imports nothing heavy."""

from __future__ import annotations

from hybridkit import Strategy, hookimpl


@hookimpl
def hybridkit_strategies() -> list[Strategy]:
    """Return the learning-rate controller and the base optimizer."""
    return [
        Strategy(
            kind="lr_controller",
            name="prodigy",
            summary="hypergradient descent on the multiplier; Prodigy chooses how far it moves",
            target="hybridkit_prodigy.controller:ProdigyController",
        ),
        Strategy(
            kind="optimizer",
            name="prodigy",
            summary="Adam with Prodigy's step size (prodigyopt); use --lr 1",
            target="hybridkit_prodigy.optimizer:Prodigy",
        ),
    ]
