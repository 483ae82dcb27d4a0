"""How a cell is trained. A rival has a grid of learning rates; what is ours has none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from hybridkit.bench.runs import Precision

RIVALS_FILE: Final = "hybridkit.bench.arena.rivals"


@dataclass(frozen=True, slots=True)
class Method:
    """Flags of `train` that make it. `only`, `precisions`: what it is for; none: everything."""

    flags: dict[str, Any] = field(default_factory=dict)
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    grid: tuple[float, ...] = ()
    only: tuple[str, ...] = ()
    precisions: tuple[Precision, ...] = ()

    def suits(self, task: str, precision: Precision) -> bool:
        """Whether it is for this task in this precision."""
        return (not self.only or task in self.only) and (not self.precisions or precision in self.precisions)


_ADAM: Final = (3e-4, 1e-3, 3e-3, 6e-3, 1.2e-2)
BASELINE: Final = "AdamW, constant 1e-3"
TUNED: Final = "AdamW, constant"
COSINE: Final = "AdamW, cosine"
MUON: Final = "Muon, WSD"
OURS: Final = "hybrid"
BALANCED: Final = "with balanced data clusters"
UNCONSTRAINED: Final = "without the trust region"
RIVALS: Final[dict[str, Method]] = {
    TUNED: Method(grid=(1e-4, *_ADAM[:4])),
    COSINE: Method({"lr_controller": "cosine"}, grid=_ADAM),
    "AdamW, WSD": Method({"lr_controller": "wsd"}, grid=_ADAM),
    "schedule-free AdamW": Method(
        {"optimizer": f"{RIVALS_FILE}:ScheduleFree"}, grid=(1e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)
    ),
    "Prodigy": Method(
        {"optimizer": f"{RIVALS_FILE}:Prodigy", "lr_controller": "cosine"}, grid=(0.25, 0.5, 1.0, 2.0, 4.0)
    ),
    MUON: Method({"optimizer": "muon", "lr_controller": "wsd"}, grid=(1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)),
    "SGD, cosine": Method(
        {"optimizer": "sgd", "lr_controller": "cosine"},
        grid=(0.01, 0.03, 0.1, 0.3, 1.0),
        only=("fashion-mnist",),
    ),
    "AdamW, WSD, global clipping": Method(
        {"optimizer": f"{RIVALS_FILE}:Clipped", "lr_controller": "wsd"}, grid=_ADAM
    ),
    "AdamW, WSD, adaptive clipping": Method(
        {"optimizer": f"{RIVALS_FILE}:Clipped", "lr_controller": "wsd"},
        {"optimizer": {"mode": "adaptive", "limit": 0.1}},
        grid=_ADAM,
    ),
    "AdamW, WSD, quantisation ramp": Method(
        {"lr_controller": "wsd", "ramp": 0.8}, grid=_ADAM, precisions=("ternary", "1-bit")
    ),
}
BASELINES: Final[dict[str, Method]] = {BASELINE: Method()}
OURS_AND_ABLATIONS: Final[dict[str, Method]] = {
    OURS: Method({"hybrid": True}),
    "without the auxiliary network": Method({"hybrid": True, "lr_controller": "wsd"}),
    "with a learned multiplier": Method({"hybrid": True, "lr_controller": "aux-nn"}),
    "with a random multiplier": Method(
        {"hybrid": True, "lr_controller": "aux-nn"}, {"lr_controller": {"multiplier": "random"}}
    ),
    BALANCED: Method({"hybrid": True, "clusterer": "kmeans"}),
    "with a radius for each parameter cluster": Method({"hybrid": True, "constraint": "per-cluster"}),
    UNCONSTRAINED: Method({"hybrid": True, "constraint": "none"}),
    "without the quantisation ramp": Method({"hybrid": True, "ramp": 0.0}, precisions=("ternary", "1-bit")),
    "with a learned quantiser": Method(
        {"hybrid": True, "quantizer": "ternary-learned"}, precisions=("ternary",)
    ),
    "with AdamW as its base": Method({"hybrid": True, "optimizer": "adamw"}),
}
METHODS: Final[dict[str, Method]] = {**BASELINES, **RIVALS, **OURS_AND_ABLATIONS}


def is_ours(method: str) -> bool:
    """Whether a method uses what is ours, or only what its rivals have, too."""
    return method in OURS_AND_ABLATIONS
