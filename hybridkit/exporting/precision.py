"""bfloat16 networks are exported in float32: ONNX Runtime has next to no bfloat16 kernels for the CPU."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from hybridkit.calls import Inputs
from hybridkit.exporting.protocol import ExportRequest, Validation
from hybridkit.trees import map_tensors, tensors


def without_bfloat16(module: nn.Module, request: ExportRequest) -> tuple[nn.Module, ExportRequest, str]:
    """The module and the request in float32 where they were bfloat16, which is exact, and what was cast.

    The caller's module stays as it is. The text is empty where there was nothing to cast.
    """
    held = [name for name, tensor in module.state_dict().items() if tensor.dtype == torch.bfloat16]
    inputs = [
        name
        for name, example in zip(request.input_names, tensors(request.example_inputs), strict=False)
        if example.dtype == torch.bfloat16
    ]
    if not held and not inputs:
        return module, request, ""
    parts = [f"{len(held)} tensors of the network"] if held else []
    parts += [f"the input {name!r}" for name in inputs]
    said = f"Cast from bfloat16 to float32, as ONNX Runtime computes on the CPU: {', '.join(parts)}"
    widened = copy.deepcopy(module)
    for tensor in (*widened.parameters(), *widened.buffers()):
        tensor.data = _widen(tensor.data)
    return widened, _widened(request), said


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _widened(request: ExportRequest) -> ExportRequest:
    validation = request.validation

    def inputs(batch: Inputs) -> Inputs:
        assert validation is not None
        widened: Inputs = map_tensors(_widen, validation.inputs(batch))
        return widened

    return dataclasses.replace(
        request,
        example_inputs=map_tensors(_widen, request.example_inputs),
        validation=None
        if validation is None
        else Validation(batches=validation.batches, inputs=inputs, loss=validation.loss),
    )
