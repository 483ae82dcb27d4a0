"""Comparing an exported file with the network it was made from, on stock ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from hybridkit.errors import GateError, HybridkitError
from hybridkit.exporting.protocol import Batch, Validation, Verification
from hybridkit.runtime.session import session

Gate = Literal["float", "int8", "approximate"]

FLOAT_TOLERANCE: Final = 1e-4  # of the largest output, where activations are floats
MARGIN: Final = 1e-3  # between the two largest outputs: below it either may win
LOSS_TOLERANCE: Final = 1e-4  # where activations are int8
APPROXIMATE_TOLERANCE: Final = 0.01  # of the loss, where the file's arithmetic is another one by design


def check_form(path: Path) -> None:
    """onnx's full check and strict shape inference. Raises HybridkitError where the file fails them."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
        without_weights = onnx.load(str(path), load_external_data=False)
        onnx.shape_inference.infer_shapes(without_weights, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = " ".join(str(error).split())
        raise HybridkitError(f"the exported model is not valid ONNX: {reason}") from error


def compare(path: Path, network: nn.Module, validation: Validation) -> Verification:
    """Run both on all batches. Raises FileError if the file does not load, HybridkitError without batches."""
    runner = session(path, log_severity_level=3)
    names = [value.name for value in runner.get_inputs()]
    tally = _Tally()
    network = network.cpu().eval()
    with torch.no_grad():
        for batch in validation.batches:
            arguments = validation.inputs(batch)
            expected = network(*arguments)
            feed = {name: x.cpu().numpy() for name, x in zip(names, arguments, strict=True)}
            got = [torch.from_numpy(np.asarray(array)) for array in runner.run(None, feed)]
            tally.add(expected, _like(expected, got), batch, validation)
    return tally.result()


def check_gate(found: Verification, gate: Gate, path: Path) -> None:
    """Raise GateError where the differences exceed what the gate allows; NaN never passes."""
    if gate == "float":
        _require(
            found.max_rel <= FLOAT_TOLERANCE, path, f"outputs differ by {found.max_rel:.2e} of the largest"
        )
    elif gate == "int8":
        _require(
            found.top1_misses == 0,
            path,
            f"{found.top1_misses} predictions differ beyond a margin of {MARGIN}",
        )
        _require(
            found.loss_difference <= LOSS_TOLERANCE, path, f"the losses differ by {found.loss_difference:.2e}"
        )
    else:
        # a stand-in loss is relative already, and zero for the network itself
        allowed = APPROXIMATE_TOLERANCE * (found.network_loss or 1.0)
        _require(
            found.loss_difference <= allowed,
            path,
            f"the loss is {found.loss:.6f}, the network's {found.network_loss:.6f}",
        )


def _require(passed: bool, path: Path, what: str) -> None:
    if not passed:
        raise GateError(f"{path.name} was not written: verified against the network, {what}")


def _like(expected: Any, arrays: Sequence[Tensor]) -> Any:
    """`arrays` in the structure of the network's output."""
    leaves, structure = pytree.tree_flatten(expected)
    found = iter(arrays)
    return pytree.tree_unflatten([next(found) if isinstance(x, Tensor) else x for x in leaves], structure)


class _Tally:
    """What is summed up over the batches."""

    def __init__(self) -> None:
        self.samples = self.positions = self.agreeing = self.misses = 0
        self.max_abs = self.largest = 0.0
        self.loss = self.network_loss = 0.0
        self.squared_error = self.squared_output = 0.0
        self.has_loss = False

    def add(self, expected: Any, got: Any, batch: Batch, validation: Validation) -> None:
        wanted = [x for x in pytree.tree_leaves(expected) if isinstance(x, Tensor)]
        found = [x for x in pytree.tree_leaves(got) if isinstance(x, Tensor)]
        for x, y in zip(wanted, found, strict=True):
            self._differences(x.double(), y.double())
        self._predictions(_rows(wanted[0]), _rows(found[0]))
        count = len(batch[0])
        self.samples += count
        if validation.loss is not None:
            self.has_loss = True
            self.network_loss += count * float(validation.loss(expected, batch))
            self.loss += count * float(validation.loss(got, batch))

    def _differences(self, x: Tensor, y: Tensor) -> None:
        difference = (x - y).abs()
        if difference.numel():
            # fmax and max would drop a NaN or not depending on the order
            self.max_abs = float(torch.tensor([self.max_abs, float(difference.max())]).max())
            self.largest = max(self.largest, float(x.abs().max()))
        self.squared_error += float(difference.square().sum())
        self.squared_output += float(x.square().sum())

    def _predictions(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        same = x.argmax(axis=1) == y.argmax(axis=1)
        if x.shape[1] > 1:
            second, first = np.partition(x, -2, axis=1)[:, -2:].T
            self.misses += int((~same & (first - second > MARGIN)).sum())
        self.agreeing += int(same.sum())
        self.positions += len(x)

    def result(self) -> Verification:
        if not self.samples:
            raise HybridkitError("there are no samples to verify the exported model with")
        if self.has_loss:
            loss, network_loss = self.loss / self.samples, self.network_loss / self.samples
        else:
            loss, network_loss = self.squared_error / (self.squared_output or 1.0), 0.0
        return Verification(
            samples=self.samples,
            max_abs=self.max_abs,
            max_rel=self.max_abs / self.largest if self.largest else (math.inf if self.max_abs else 0.0),
            top1_agreement=self.agreeing / self.positions if self.positions else 1.0,
            top1_misses=self.misses,
            loss=loss,
            network_loss=network_loss,
        )


def _rows(output: Tensor) -> NDArray[np.float64]:
    """The output as rows of logits."""
    array: NDArray[np.float64] = output.double().numpy()
    return array.reshape(-1, array.shape[-1] if array.ndim else 1)
