"""How a setting is trained. A rival has a grid of learning rates; what is ours has none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from hybridkit.bench.convergence.settings import Precision, Setting

RIVALS_FILE: Final = "hybridkit.bench.convergence.rivals"


@dataclass(frozen=True, slots=True)
class Method:
    """Flags of `train` that make it. `only`, `precisions`: what it is for; none: everything.

    Within one plan a name is one method, so that methods are equal by name. ours: it uses what rivals have
    not, runs at its default and is not tuned. custom: somebody brought it along.
    """

    name: str
    flags: dict[str, Any] = field(default_factory=dict, compare=False)
    options: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)
    grid: tuple[float, ...] = field(default=(), compare=False)
    only: tuple[str, ...] = field(default=(), compare=False)
    precisions: tuple[Precision, ...] = field(default=(), compare=False)
    ours: bool = field(default=False, compare=False)
    custom: bool = field(default=False, compare=False)

    def suits(self, setting: Setting) -> bool:
        """Whether it is for this task in this precision."""
        return (not self.only or setting.task in self.only) and (
            not self.precisions or setting.precision in self.precisions
        )


ADAM_GRID: Final = (3e-4, 1e-3, 3e-3, 6e-3, 1.2e-2)
BASELINE: Final = "AdamW, constant 1e-3"
TUNED: Final = "AdamW, constant"
COSINE: Final = "AdamW, cosine"
MUON: Final = "Muon, WSD"
OURS: Final = "hybrid"
BALANCED: Final = "with balanced data clusters"
UNCONSTRAINED: Final = "without the trust region"
_LOW_BITS: Final[tuple[Precision, ...]] = ("ternary", "3:4-sparse", "1-bit")
_WSD: Final = {"lr_controller": "wsd"}
_CLIPPED: Final = {"optimizer": f"{RIVALS_FILE}:Clipped", **_WSD}


def _named(*methods: Method) -> dict[str, Method]:
    return {method.name: method for method in methods}


def _ours(
    name: str, flags: dict[str, Any], options: dict[str, dict[str, Any]] | None = None, *only: Precision
) -> Method:
    return Method(name, {"hybrid": True, **flags}, options or {}, precisions=only, ours=True)


RIVALS: Final = _named(
    Method(TUNED, grid=(1e-4, *ADAM_GRID[:4])),
    Method(COSINE, {"lr_controller": "cosine"}, grid=ADAM_GRID),
    Method("AdamW, WSD", _WSD, grid=ADAM_GRID),
    Method(
        "schedule-free AdamW",
        {"optimizer": f"{RIVALS_FILE}:ScheduleFree"},
        grid=(1e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2),
    ),
    Method(
        "Prodigy",
        {"optimizer": f"{RIVALS_FILE}:Prodigy", "lr_controller": "cosine"},
        grid=(0.25, 0.5, 1.0, 2.0, 4.0),
    ),
    Method(MUON, {"optimizer": "muon", **_WSD}, grid=(1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)),
    Method(
        "SGD, cosine",
        {"optimizer": "sgd", "lr_controller": "cosine"},
        grid=(0.01, 0.03, 0.1, 0.3, 1.0),
        only=("fashion-mnist",),
    ),
    Method("AdamW, WSD, global clipping", _CLIPPED, grid=ADAM_GRID),
    Method(
        "AdamW, WSD, adaptive clipping",
        _CLIPPED,
        {"optimizer": {"mode": "adaptive", "limit": 0.1}},
        grid=ADAM_GRID,
    ),
    Method("AdamW, WSD, quantisation ramp", {**_WSD, "ramp": 0.8}, grid=ADAM_GRID, precisions=_LOW_BITS),
)
BASELINES: Final = _named(Method(BASELINE))
OURS_AND_ABLATIONS: Final = _named(
    _ours(OURS, {}),
    _ours("without the plan", _WSD),
    _ours("with a learned multiplier", {"lr_controller": "aux-nn"}),
    _ours(
        "with a random multiplier", {"lr_controller": "aux-nn"}, {"lr_controller": {"multiplier": "random"}}
    ),
    _ours(BALANCED, {"clusterer": "kmeans"}),
    _ours("with a radius for each parameter cluster", {"constraint": "per-cluster"}),
    _ours(UNCONSTRAINED, {"constraint": "none"}),
    _ours("without the quantisation ramp", {"ramp": 0.0}, None, *_LOW_BITS),
    _ours("with a learned quantiser", {"quantizer": "ternary-learned"}, None, "ternary"),
    _ours("with AdamW as its base", {"optimizer": "adamw"}),
)
METHODS: Final[dict[str, Method]] = {**BASELINES, **RIVALS, **OURS_AND_ABLATIONS}
