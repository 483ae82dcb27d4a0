"""Comparing an exported file with the network it was made from, on stock ONNX Runtime's portable bodies.

Where the native library is there, its operators are compared with the bodies too (see agreement.py).

Two runtimes agree bit for bit on what our operators compute, but not on the last bit of what lies between
them (normalisation, softmax). Where such a bit moves an activation across a rounding boundary of int8, the
output moves visibly; the deeper the network the more. So, where predictions or losses differ, how far the
network's own move is measured by disturbing the last bits of its layers' inputs. Twice that is allowed: the
margin within which either prediction may win, if it is more than MARGIN, and the difference of the losses, if
it is more than LOSS_TOLERANCE, but never more than APPROXIMATE_TOLERANCE.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybridkit.calls import Inputs, call, without_caches
from hybridkit.errors import GateError, UsageError
from hybridkit.exporting.agreement import check_native, portable
from hybridkit.exporting.protocol import Agreement, Validation, Verification
from hybridkit.memory import give_back_memory
from hybridkit.runtime.modules import PackedConv1d, PackedConv2d, PackedLinear, tile_layers
from hybridkit.trees import compared, named_outputs, tensors, with_outputs

Gate = Literal["float", "int8", "approximate"]

FLOAT_TOLERANCE: Final = 1e-4  # of the largest output, where activations are floats
MARGIN: Final = 1e-3  # between the two largest outputs: below it either may win
LOSS_TOLERANCE: Final = 1e-4  # where activations are int8
APPROXIMATE_TOLERANCE: Final = 0.01  # of the loss, where the file's arithmetic is another one by design
_LAST_BITS: Final = 2.0**-22  # two units in the last place, about what two runtimes differ by


def compare(
    path: Path, network: nn.Module, validation: Validation, packed: nn.Module | None = None
) -> Verification:
    """Run the file and `network` (on the CPU, in evaluation mode) on all batches.

    packed: the network with packed int8 layers, where it has some. Raises FileError if the file does not
    load, UsageError if there are no samples, GateError where native operators and bodies differ.
    """
    runner = portable(path)
    inputs, outputs = ([v.name for v in values] for values in (runner.get_inputs(), runner.get_outputs()))
    tally = _Tally()
    first: dict[str, NDArray[Any]] = {}
    with torch.no_grad(), without_caches(network):
        for batch in validation.batches:
            arguments = validation.inputs(batch)
            expected = call(network, arguments)
            names = list(arguments) if isinstance(arguments, Mapping) else inputs
            feed = {n: x.cpu().numpy() for n, x in zip(names, tensors(arguments), strict=True)}
            first = first or feed
            got = [torch.from_numpy(np.asarray(array)) for array in runner.run(outputs, feed)]
            wanted = dict(zip(outputs, named_outputs(expected).values(), strict=True))
            tally.add(*_seen(arguments, wanted, dict(zip(outputs, got, strict=True))), batch)
            if validation.loss is not None:
                found = with_outputs(expected, got)
                tally.add_losses(*(float(validation.loss(output, batch)) for output in (found, expected)))
        margins = Noise(MARGIN, LOSS_TOLERANCE)
        if packed is not None and (unsettled := tally.unsettled()):
            margins = margins.widened(rounding_noise(packed, unsettled, validation))
    del runner  # one session in memory at a time
    give_back_memory()
    return tally.result(margins, check_native(path, first) if tally.samples else None)


def compare_networks(ours: nn.Module, network: nn.Module, validation: Validation) -> Verification:
    """`compare` of two networks: `ours` is what a file holds. Raises UsageError if there are no samples."""
    tally = _Tally()
    with torch.no_grad(), without_caches(network), without_caches(ours):
        for batch in validation.batches:
            arguments = validation.inputs(batch)
            expected, found = call(network, arguments), call(ours, arguments)
            tally.add(*_seen(arguments, named_outputs(expected), named_outputs(found)), batch)
            if validation.loss is not None:
                tally.add_losses(*(float(validation.loss(output, batch)) for output in (found, expected)))
    return tally.result(Noise(MARGIN, LOSS_TOLERANCE), None)


def _seen(
    arguments: Inputs, *outputs: Mapping[str, Tensor]
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The outputs without the positions that the mask hides from an encoder or a decoder.

    What stands there means nothing, and differs between runtimes where a query sees no key at all.
    """
    mask = arguments.get("attention_mask") if isinstance(arguments, Mapping) else None
    if mask is None or mask.dim() != 2 or bool(mask.all()):
        return outputs[0], outputs[1]
    hidden = mask == 0
    first, second = (
        {
            n: x.masked_fill(hidden[..., None], 0) if x.shape[:2] == mask.shape and x.dim() == 3 else x
            for n, x in found.items()
        }
        for found in outputs
    )
    return first, second


def check_gate(found: Verification, gate: Gate, path: Path) -> None:
    """Raise GateError where the differences exceed what the gate allows; NaN never passes."""
    if gate == "float":
        _require(
            found.max_rel <= FLOAT_TOLERANCE, path, f"outputs differ by {found.max_rel:.2e} of the largest"
        )
    elif gate == "int8":
        misses = f"{found.top1_misses} predictions differ beyond a margin of {found.margin:.2g}"
        _require(found.top1_misses == 0, path, misses)
        apart = f"the losses differ by {found.loss_difference:.2e}"
        allowed = min(found.loss_margin, max(_approximate(found), LOSS_TOLERANCE))
        _require(found.loss_difference <= allowed, path, apart)
    else:
        allowed = _approximate(found)
        losses = f"the loss is {found.loss:.6f}, the network's {found.network_loss:.6f}"
        _require(found.loss_difference <= allowed, path, losses)


def _approximate(found: Verification) -> float:
    """How far losses may be apart at most; a stand-in loss is relative already, and zero for the network."""
    return APPROXIMATE_TOLERANCE * (found.network_loss or 1.0)


@dataclass(frozen=True, slots=True)
class Noise:
    """How far a network's outputs and its loss move where the last bits of its layers' inputs do."""

    output: float
    loss: float

    def widened(self, measured: Noise) -> Noise:
        """These margins, or twice what was measured where that is more; a squared error grows fourfold."""
        return Noise(max(self.output, 2 * measured.output), max(self.loss, 4 * measured.loss))


def rounding_noise(packed: nn.Module, batches: Sequence[Inputs], validation: Validation) -> Noise:
    """The largest change when every packed layer's input changes in its last two bits.

    Of the first output, and of a batch's loss; without a loss, the relative squared error of the outputs.
    """
    generator = torch.Generator().manual_seed(0)

    def disturb(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        signs = torch.randint(0, 2, inputs[0].shape, generator=generator) * 2 - 1
        return (inputs[0] * (1 + _LAST_BITS * signs),)

    output = loss = 0.0
    products = PackedLinear | PackedConv1d | PackedConv2d
    layers = [m for m in tile_layers(packed).modules() if isinstance(m, products)]
    for batch in batches:
        arguments = validation.inputs(batch)
        calm = call(packed, arguments)
        handles = [layer.register_forward_pre_hook(disturb) for layer in layers]
        try:
            moved = call(packed, arguments)
        finally:
            for handle in handles:
                handle.remove()
        output = max(output, float((_first(moved) - _first(calm)).abs().max()))
        if validation.loss is None:
            apart = _squared_error(calm, moved)
        else:
            apart = abs(float(validation.loss(moved, batch)) - float(validation.loss(calm, batch)))
        loss = max(loss, apart)
    return Noise(output, loss)


def _squared_error(expected: Any, found: Any) -> float:
    """Of all floating-point outputs, relative."""
    ours, theirs = (compared(named_outputs(output)) for output in (expected, found))
    error = sum(float((x.double() - theirs[name].double()).square().sum()) for name, x in ours.items())
    return error / (sum(float(x.double().square().sum()) for x in ours.values()) or 1.0)


def _require(passed: bool, path: Path, what: str) -> None:
    if not passed:
        raise GateError(f"{path.name} was not written: verified against the network, {what}")


def _first(output: Any) -> Tensor:
    return next(iter(compared(named_outputs(output)).values())).double()


class _Tally:
    """What is summed up over the batches."""

    def __init__(self) -> None:
        self.samples = self.count = self.positions = 0
        self.margins: list[float] = []  # of the predictions that differ
        self.batches: list[Inputs] = []
        self.disagreeing: list[Inputs] = []  # where some differ beyond MARGIN
        self.worst: dict[str, float] = defaultdict(float)  # absolute difference, by output
        self.largest: dict[str, float] = defaultdict(float)
        self.loss = self.network_loss = 0.0
        self.squared_error = self.squared_output = 0.0
        self.has_loss = False

    def add(self, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], batch: Inputs) -> None:
        wanted = compared(wanted)
        for name, x in wanted.items():
            self._differences(name, x.double(), found[name].double())
        first = next(iter(wanted))
        margins = self._differing_predictions(_rows(wanted[first]), _rows(found[first]))
        if any(margin > MARGIN for margin in margins):
            self.disagreeing.append(batch)
        self.batches.append(batch)
        self.count = len(next(tensors(batch)))
        self.samples += self.count

    def add_losses(self, loss: float, network_loss: float) -> None:
        """Mean losses of the batch that was added last."""
        self.has_loss = True
        self.loss += self.count * loss
        self.network_loss += self.count * network_loss

    def unsettled(self) -> list[Inputs]:
        """The batches on which how far the network moves by itself has to be known."""
        loss, network_loss = self._losses()
        return self.batches if abs(loss - network_loss) > LOSS_TOLERANCE else self.disagreeing

    def _losses(self) -> tuple[float, float]:
        """Mean losses of the file and of the network; without a loss the outputs' squared error stands in."""
        if self.has_loss:
            return self.loss / self.samples, self.network_loss / self.samples
        return self.squared_error / (self.squared_output or 1.0), 0.0

    def _differences(self, name: str, x: Tensor, y: Tensor) -> None:
        difference = torch.where(x == y, 0.0, (x - y).abs())  # equal infinities do not differ
        if difference.numel():
            worst = torch.stack([torch.tensor(self.worst[name]).double(), difference.max()])
            self.worst[name] = float(worst.max())  # torch's max keeps a NaN
        finite = x[x.isfinite()]
        self.largest[name] = max(self.largest[name], float(finite.abs().max()) if finite.numel() else 0.0)
        self.squared_error += float(difference.square().sum())
        self.squared_output += float(finite.square().sum())

    def _differing_predictions(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> list[float]:
        """The network's margin between its two largest outputs, wherever the file's largest is another."""
        self.positions += len(x)
        differing = x[x.argmax(axis=1) != y.argmax(axis=1)]
        if not differing.size:
            return []
        second, first = np.partition(differing, -2, axis=1)[:, -2:].T
        margins: list[float] = (first - second).tolist()
        self.margins += margins
        return margins

    def result(self, margins: Noise, native: Agreement | None) -> Verification:
        if not self.samples:
            raise UsageError("there are no samples to verify the exported model with")
        loss, network_loss = self._losses()
        relative = [_relative(worst, self.largest[name]) for name, worst in self.worst.items()]
        return Verification(
            samples=self.samples,
            max_abs=float(np.max([0.0, *self.worst.values()])),  # NumPy's max keeps a NaN
            max_rel=float(np.max([0.0, *relative])),
            top1_agreement=1 - len(self.margins) / self.positions if self.positions else 1.0,
            top1_misses=sum(m > margins.output for m in self.margins),
            margin=margins.output,
            loss=loss,
            network_loss=network_loss,
            loss_margin=margins.loss,
            native=native,
            differences=dict(self.worst),
        )


def _relative(difference: float, largest: float) -> float:
    if largest:
        return difference / largest
    return math.inf if difference else 0.0


def _rows(output: Tensor) -> NDArray[np.float64]:
    """The output as rows of logits."""
    array: NDArray[np.float64] = output.double().numpy()
    return array.reshape(-1, array.shape[-1] if array.ndim else 1)
