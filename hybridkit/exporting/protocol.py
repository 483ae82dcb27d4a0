"""The exporter protocol: what an exporter is given and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hybridkit.calls import Inputs
    from hybridkit.packing.model import PackedModel
    from hybridkit.pretrained.assets import Assets

Agreement = Literal["equal", "close"]


def _itself(batch: Any) -> Any:
    return batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """What an exported file is compared with its network on.

    batches: tuples of tensors, or mappings name -> tensor, samples along the first dimension.
    inputs: the network's arguments for a batch, by position or by name; by default the batch itself.
    loss: mean loss of the output for a batch, 0-d. None: the squared error against the network's output,
    relative to that output's square, stands in for it.
    """

    batches: Sequence[Inputs]
    inputs: Callable[[Any], Inputs] = _itself
    loss: Callable[[Any, Any], Tensor] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """How a network is to be exported.

    example_inputs: one tensor per input of the network, in order, or by the name of its argument.
    input_names, dynamic_axes: name and free dimensions (axis -> name) of each input.
    opset: of the file's stock operators.
    validation: None checks the file's form only.
    metadata: recorded in the file, as text or JSON.
    assets: configuration and tokenizer of a pretrained network, for formats that hold them.
    pool: how hidden states become one vector per text (pooling.py); None leaves them.
    half: whether what is not packed is fp16 (half.py).
    """

    example_inputs: Inputs
    input_names: Sequence[str]
    dynamic_axes: Sequence[Mapping[int, str]]
    opset: int
    validation: Validation | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    assets: Assets | None = None
    pool: str | None = None
    half: bool = False


@dataclass(frozen=True, slots=True)
class Verification:
    """An exported file against its network on `samples` samples.

    Floating-point outputs are compared, or all where there are none.

    max_abs: worst absolute difference; max_rel: worst one relative to its output's largest absolute value.
    differences: worst absolute difference of each output, by name.
    top1_agreement: share of positions whose largest value of the first output is the same one;
    `top1_misses` counts those that differ although the network's two largest are more than `margin` apart.
    loss, network_loss: mean loss of the file and of the network, which may differ by `loss_margin`.
    native: how the native operators' outputs on the first batch compare with the portable bodies': equal bit
    for bit, or close (to float32 rounding); None where there is no native library or nothing to compare.
    """

    samples: int
    max_abs: float
    max_rel: float
    top1_agreement: float
    top1_misses: int
    margin: float
    loss: float
    network_loss: float
    loss_margin: float = 1e-4
    native: Agreement | None = None
    differences: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss_difference(self) -> float:
        """How far apart the losses are."""
        return abs(self.loss - self.network_loss)


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written.

    opset: 0 where the format has none.
    file_bytes: everything that belongs to the model, external data included.
    fp32_bytes: the same network exported with plain float32 weights, from their shapes.
    bits_per_weight: of the quantised layers, scales included, as packed; None where there are none.
    verification: None where it was not asked for.
    cast: a sentence about what was cast to another type for the file; empty where nothing was.
    """

    path: Path
    target: str
    opset: int
    file_bytes: int
    fp32_bytes: int
    bits_per_weight: float | None
    verification: Verification | None
    cast: str = ""

    @property
    def ratio(self) -> float:
        """How many times smaller than the fp32 file."""
        return self.fp32_bytes / self.file_bytes


class Exporter(Protocol):
    """Writes a network as a file that another runtime loads, and verifies the file before it appears.

    `suffixes`: endings of file names that choose this exporter where none is named. One that writes a folder
    has the empty one, `folder` = True, and puts the assets into it.
    """

    suffixes: tuple[str, ...]

    def export(
        self, module: nn.Module, packed: PackedModel | None, path: Path, request: ExportRequest
    ) -> ExportReport:
        """Write `module`, with the weights of `packed` where there are any, to `path`; all or nothing.

        Raises UsageError for a request that does not fit, GateError where the file differs from the network.
        """
        ...
