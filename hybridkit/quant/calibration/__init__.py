"""Quantising with calibration data, block by block, without training the network.

Block after block, on what the quantised blocks before it give:

1. Its linear layers, in the order in which they run, get codes and scales that keep their outputs
   (output_fit.py), those with the same input together. What they are to give is what they give in the
   original network (`Moments.target`), so that errors of before are made up for.
2. Scales, norms, biases and codes are tuned to what the original network gives behind the next block
   (tuning.py).

Then scales, norms and biases of all blocks are tuned together to what the original network gives (joint.py),
best on data that no block was tuned on, as each is nearer to the original on its own than on any other; and
linear layers outside the blocks get codes and scales that keep their outputs on what reaches them.

In memory are the network, two blocks in full precision and, while one is tuned, four times more, and the
hidden states between two blocks, four times, and of unseen data once.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from hybridkit.blocks import main_blocks
from hybridkit.calls import Inputs, watch
from hybridkit.errors import UsageError
from hybridkit.memory import give_back_memory
from hybridkit.quant.calibration.joint import JointReport, tune_jointly_
from hybridkit.quant.calibration.keeping import Kept, fingerprint
from hybridkit.quant.calibration.moments import Side, moments, positions
from hybridkit.quant.calibration.streams import Behind, Call, Hidden, Recording, advance, outputs_of, record
from hybridkit.quant.calibration.tuning import JOINT, Tuning, block_error, tune_
from hybridkit.quant.frozen import freeze_layer_
from hybridkit.quant.frozen_codes import FrozenCodes
from hybridkit.quant.layers import QATLayer, qat_layers, set_ramp
from hybridkit.quant.output_fit import Grid, evenly_spaced, fit_output
from hybridkit.quant.prepare import full_precision_copy
from hybridkit.quant.protocol import (
    QuantizedTensor,
    Statistics,
    has_pattern,
    quantize_weight,
    takes_statistics,
)

__all__ = [
    "Batches",
    "BlockReport",
    "Calibration",
    "JointReport",
    "Kept",
    "Tuning",
    "calibrate_",
    "fingerprint",
]

DEFAULT: Final = Tuning()
Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, and of how much


@dataclass(frozen=True, slots=True)
class BlockReport:
    """One block: the `relative_error` behind the next block, before tuning and after."""

    place: int
    fitted: float
    tuned: float


@dataclass(frozen=True, slots=True)
class Batches:
    """Arguments of a network, and the positions that count in each, as `calibrate_` takes both."""

    inputs: Sequence[Inputs]
    counted: Sequence[Tensor | None]


@dataclass(frozen=True, slots=True)
class Calibration:
    """What calibrating did: to each block that was not kept, and to all together (None: not tuned)."""

    blocks: list[BlockReport]
    joint: JointReport | None


def calibrate_(
    network: nn.Module,
    batches: Sequence[Inputs],
    *,
    counted: Sequence[Tensor | None] | None = None,
    unseen: Batches | None = None,
    tuning: Tuning = DEFAULT,
    kept: Kept | None = None,
    progress: Progress = lambda doing, done, of: None,
) -> Calibration:
    """Give the fake-quantised layers in the blocks of `network` codes and scales that suit data, in place.

    network: prepared by `prepare_qat_`; afterwards its codes are frozen and `convert` packs it. batches: the
    network's arguments. counted: for each batch the positions that count, bool [batch, positions], or None
    for all. unseen: other data to tune all blocks together on; without, the same. kept: where finished blocks
    are kept, and how far all together are, and found again. `progress` is called after each block that was
    not, and after each step on all blocks together.

    A quantizer that takes statistics gets those of its layer; for any other one codes and scales are fitted,
    starting from its own. Raises UsageError where there is no block with such a layer.
    """
    blocks = main_blocks(network)
    if not batches or not any(qat_layers(block) for block in blocks):
        raise UsageError("calibration takes a network with quantised layers in its blocks, and data")
    counted = counted or [None] * len(batches)
    if kept:
        kept.begin()
    set_ramp(network, 0.0)  # full precision
    found = record(network, blocks, batches)
    steps = (JOINT if found.logits else 0) if tuning.joint is None else tuning.joint
    last = outputs_of(network, blocks[-1], unseen.inputs) if unseen and steps else None
    set_ramp(network, 1.0)
    network.eval()
    if any(len(calls) != len(batches) for calls in found.calls):
        raise UsageError("a block of the network does not run exactly once; it cannot be calibrated")
    reports, goals = _each_block(blocks, found, counted, tuning, kept, progress)
    joint = None
    if steps:
        if unseen is None or last is None:
            unseen, last = Batches(batches, counted), goals  # which the last block of the original gave
        del goals
        stepped = partial(progress, "Tuning all blocks")
        descent = kept.descent(steps) if kept else None
        data = (unseen.inputs, last, unseen.counted)
        with _full_precision_around(network, blocks):
            joint = tune_jointly_(network, blocks, found, *data, steps, tuning, stepped, descent)
        give_back_memory()
    _fit_rest(network, blocks, batches, counted)
    return Calibration(reports, joint)


def _each_block(
    blocks: Sequence[nn.Module],
    found: Recording,
    counted: Sequence[Tensor | None],
    tuning: Tuning,
    kept: Kept | None,
    progress: Progress,
) -> tuple[list[BlockReport], Hidden]:
    """Calibrate one block after the other; what was done, and what the last one of the original gives."""
    ours = original = found.hidden
    reports = []
    full = full_precision_copy(blocks[0])
    targets = goals = advance(full, original, found.calls[0])
    for place, (block, calls) in enumerate(zip(blocks, found.calls, strict=True)):
        following = [
            full_precision_copy(each).requires_grad_(False) for each in blocks[place + 1 : place + 2]
        ]
        behind = Behind(following, found.calls[place + 1 : place + 2])
        with torch.no_grad():
            goals = [behind.run(batch, x) for batch, x in enumerate(targets)]
        if kept and kept.load_(place, block):
            ours = advance(block, ours, calls)
        else:
            weights = _fit(block, full, ours, original, calls, counted)
            ours, errors = _tuned(block, ours, goals, calls, counted, tuning, weights, behind)
            if kept:
                kept.save(place, block)
            reports.append(BlockReport(place, *errors))
            give_back_memory()  # sets of hidden states come and go with each block
            progress("Calibrating", place + 1, len(blocks))
        original, targets = targets, goals
        [full] = following or [full]
    return reports, goals


def _tuned(
    block: nn.Module,
    given: Hidden,
    goals: Hidden,
    calls: Sequence[Call],
    counted: Sequence[Tensor | None],
    tuning: Tuning,
    weights: Mapping[QATLayer, Tensor],
    behind: Behind,
) -> tuple[Hidden, tuple[float, float]]:
    """What a block gives that was fitted and then tuned, and its error before tuning and after."""
    fitted = advance(block, given, calls)
    error = _error(fitted, goals, counted, behind)
    if not tuning.steps:
        return fitted, (error, error)
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    tune_(block, given, goals, calls, counted, tuning, weights, behind)
    better = advance(block, given, calls)
    reached = _error(better, goals, counted, behind)
    if reached < error:
        return better, (error, reached)
    block.load_state_dict(before)  # so few steps, or so little to gain, that it was for nothing
    return fitted, (error, error)


@contextlib.contextmanager
def _full_precision_around(network: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[None]:
    """In this context layers outside the blocks are what they are in the original."""
    inside = {module for block in blocks for module in block.modules()}
    around = [layer for layer in qat_layers(network).values() if layer not in inside]
    for layer in around:
        layer.ramp = 0.0
    yield
    for layer in around:
        layer.ramp = 1.0


def _fit(
    block: nn.Module,
    full: nn.Module,
    ours: Hidden,
    original: Hidden,
    calls: Sequence[Call],
    counted: Sequence[Tensor | None],
) -> dict[QATLayer, Tensor]:
    """Freeze the codes of a block's layers as they run; what the codes that may move stand for, [N, K]."""
    found: dict[QATLayer, Tensor] = {}
    names = {layer: name for name, layer in qat_layers(block).items()}
    for layers in _together(block, ours[0], calls[0]):
        first = layers[0]
        known = None
        if first.kind == "linear":
            twin = full.get_submodule(names[first])
            known = moments(Side(block, first, ours), Side(full, twin, original), calls, counted)
        for layer in layers:
            weight = layer.weight_matrix().detach()
            if known is None:
                freeze_layer_(layer, layer.quantized_weight())
                continue
            target = known.target(weight)
            movable = _movable(layer)
            freeze_layer_(layer, _fitted(layer, target, Statistics(known.gram, known.count)))
            if movable and not has_pattern(layer.quantizer):
                found[layer] = target
    return found


@torch.no_grad()
def _fit_rest(
    network: nn.Module,
    blocks: Sequence[nn.Module],
    batches: Sequence[Inputs],
    counted: Sequence[Tensor | None],
) -> None:
    """Freeze the codes of linear layers outside the blocks, but for those that share their weight."""
    inside = {module for block in blocks for module in block.modules()}
    layers = qat_layers(network).values()
    holders = Counter(layer.weight for layer in layers)
    rest = [
        layer
        for layer in layers
        if layer not in inside and layer.kind == "linear" and holders[layer.weight] == 1
    ]
    sums: dict[QATLayer, tuple[Tensor, int]] = {}

    def seen(mask: Tensor | None, layer: nn.Module, x: Tensor) -> None:
        assert isinstance(layer, QATLayer)
        rows = positions(x.float(), mask)
        gram, count = sums.get(layer, (torch.zeros((), device=x.device), 0))
        sums[layer] = gram + rows.T @ rows, count + len(rows)

    for batch, mask in zip(batches, counted, strict=True) if rest else []:
        watch(network, batch, rest, partial(seen, mask))
    for layer, (gram, count) in sums.items():
        weight = layer.weight_matrix().detach()
        freeze_layer_(layer, _fitted(layer, weight, Statistics(gram / max(count, 1), count)))


def _fitted(layer: QATLayer, weight: Tensor, statistics: Statistics) -> QuantizedTensor:
    start = quantize_weight(layer.quantizer, weight, statistics)
    if not _movable(layer):
        return start
    in_pattern = has_pattern(layer.quantizer)
    grid = Grid.in_pattern(start.codes) if in_pattern else Grid.of(layer.quantizer.levels)
    return fit_output(weight, statistics.gram, start, grid)


def _movable(layer: QATLayer) -> bool:
    """Whether codes can be fitted here: the quantizer has not seen the data itself, and levels are even."""
    return not takes_statistics(layer.quantizer) and evenly_spaced(layer.quantizer.levels)


def _together(block: nn.Module, hidden: Tensor, each: Call) -> Iterator[list[QATLayer]]:
    """The layers with latent weights as they run, those that get one and the same tensor together."""
    seen: list[tuple[Tensor, QATLayer]] = []

    def hook(layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        assert isinstance(layer, QATLayer)
        if all(layer is not other for _, other in seen):
            seen.append((arguments[0], layer))

    handles = [layer.register_forward_pre_hook(hook) for layer in qat_layers(block).values()]
    try:
        with torch.no_grad():
            each.run(block, hidden)
    finally:
        for handle in handles:
            handle.remove()
    rest = [(x, layer) for x, layer in seen if not isinstance(layer.quantizer, FrozenCodes)]
    while rest:
        shared = [layer for x, layer in rest if x is rest[0][0] and layer.kind == rest[0][1].kind]
        rest = [(x, layer) for x, layer in rest if layer not in shared]
        yield shared


@torch.no_grad()
def _error(ours: Hidden, targets: Hidden, counted: Sequence[Tensor | None], behind: Behind) -> float:
    """Of what the next block makes of hidden states."""
    triples = enumerate(zip(ours, targets, counted, strict=True))
    each = [float(block_error(behind.run(batch, x), target, mask)) for batch, (x, target, mask) in triples]
    return sum(each) / len(each)
