"""Comparing an exported file with the network it was made from, on stock ONNX Runtime's portable bodies.

Where the native library is there, its operators are compared with the bodies too (see agreement.py).

Two runtimes agree bit for bit on what our operators compute, but not on the last bit of what lies between
them (normalisation, softmax). Where such a bit moves an activation across a rounding boundary of int8, the
output moves visibly. So, where predictions differ, how far the network's own outputs move is measured by
disturbing the last bits of its layers' inputs; twice that is the margin within which either prediction may
win, if it is more than MARGIN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hybridkit.errors import GateError, UsageError
from hybridkit.exporting.agreement import check_native
from hybridkit.exporting.protocol import Agreement, Batch, Validation, Verification
from hybridkit.runtime.modules import PackedConv1d, PackedConv2d, PackedLinear
from hybridkit.runtime.session import session

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
    runner = session(path, native=False, log_severity_level=3)  # what runs where nothing else is installed
    names = [value.name for value in runner.get_inputs()]
    tally = _Tally()
    native: Agreement | None = None
    with torch.no_grad():
        for batch in validation.batches:
            arguments = validation.inputs(batch)
            expected = network(*arguments)
            feed = {name: x.cpu().numpy() for name, x in zip(names, arguments, strict=True)}
            if not tally.samples:
                native = check_native(path, feed)
            got = [torch.from_numpy(np.asarray(array)) for array in runner.run(None, feed)]
            tally.add(expected, _like(expected, got), batch, validation)
        margin = MARGIN
        if packed is not None and tally.disagreeing:
            margin = max(margin, 2 * rounding_noise(packed, tally.disagreeing, validation))
    return tally.result(margin, native)


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
        _require(found.loss_difference <= LOSS_TOLERANCE, path, apart)
    else:
        # a stand-in loss is relative already, and zero for the network itself
        allowed = APPROXIMATE_TOLERANCE * (found.network_loss or 1.0)
        losses = f"the loss is {found.loss:.6f}, the network's {found.network_loss:.6f}"
        _require(found.loss_difference <= allowed, path, losses)


def rounding_noise(packed: nn.Module, batches: Sequence[Batch], validation: Validation) -> float:
    """The largest change of the first output when every packed layer's input changes in its last two bits."""
    generator = torch.Generator().manual_seed(0)

    def disturb(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        signs = torch.randint(0, 2, inputs[0].shape, generator=generator) * 2 - 1
        return (inputs[0] * (1 + _LAST_BITS * signs),)

    most = 0.0
    layers = [m for m in packed.modules() if isinstance(m, PackedLinear | PackedConv1d | PackedConv2d)]
    for batch in batches:
        arguments = validation.inputs(batch)
        calm = _tensors(packed(*arguments))[0].double()
        handles = [layer.register_forward_pre_hook(disturb) for layer in layers]
        try:
            moved = _tensors(packed(*arguments))[0].double()
        finally:
            for handle in handles:
                handle.remove()
        most = max(most, float((moved - calm).abs().max()))
    return most


def _require(passed: bool, path: Path, what: str) -> None:
    if not passed:
        raise GateError(f"{path.name} was not written: verified against the network, {what}")


def _tensors(output: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(output) if isinstance(x, Tensor)]


def _like(expected: Any, arrays: Sequence[Tensor]) -> Any:
    """`arrays` in the structure of the network's output."""
    leaves, structure = pytree.tree_flatten(expected)
    found = iter(arrays)
    return pytree.tree_unflatten([next(found) if isinstance(x, Tensor) else x for x in leaves], structure)


class _Tally:
    """What is summed up over the batches."""

    def __init__(self) -> None:
        self.samples = self.positions = 0
        self.margins: list[float] = []  # of the predictions that differ
        self.disagreeing: list[Batch] = []  # where some differ beyond MARGIN
        self.max_abs = self.largest = 0.0
        self.loss = self.network_loss = 0.0
        self.squared_error = self.squared_output = 0.0
        self.has_loss = False

    def add(self, expected: Any, got: Any, batch: Batch, validation: Validation) -> None:
        wanted, found = _tensors(expected), _tensors(got)
        for x, y in zip(wanted, found, strict=True):
            self._differences(x.double(), y.double())
        margins = self._differing_predictions(_rows(wanted[0]), _rows(found[0]))
        if any(margin > MARGIN for margin in margins):
            self.disagreeing.append(batch)
        count = len(batch[0])
        self.samples += count
        if validation.loss is not None:
            self.has_loss = True
            self.network_loss += count * float(validation.loss(expected, batch))
            self.loss += count * float(validation.loss(got, batch))

    def _differences(self, x: Tensor, y: Tensor) -> None:
        difference = torch.where(x == y, 0.0, (x - y).abs())  # equal infinities do not differ
        if difference.numel():
            worst = torch.stack([torch.tensor(self.max_abs).double(), difference.max()])
            self.max_abs = float(worst.max())  # torch's max keeps a NaN
        finite = x[x.isfinite()]
        if finite.numel():
            self.largest = max(self.largest, float(finite.abs().max()))
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

    def result(self, margin: float, native: Agreement | None) -> Verification:
        if not self.samples:
            raise UsageError("there are no samples to verify the exported model with")
        if self.has_loss:
            loss, network_loss = self.loss / self.samples, self.network_loss / self.samples
        else:
            loss, network_loss = self.squared_error / (self.squared_output or 1.0), 0.0
        return Verification(
            samples=self.samples,
            max_abs=self.max_abs,
            max_rel=self.max_abs / self.largest if self.largest else (math.inf if self.max_abs else 0.0),
            top1_agreement=1 - len(self.margins) / self.positions if self.positions else 1.0,
            top1_misses=sum(m > margin for m in self.margins),
            margin=margin,
            loss=loss,
            network_loss=network_loss,
            native=native,
        )


def _rows(output: Tensor) -> NDArray[np.float64]:
    """The output as rows of logits."""
    array: NDArray[np.float64] = output.double().numpy()
    return array.reshape(-1, array.shape[-1] if array.ndim else 1)
