"""Checkpoints of other projects' loops whose quantisation is on record: packed as they trained."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hybridkit.errors import FileError
from hybridkit.sources.protocol import check_named

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hybridkit.quant.recorded import Recorded


def recorded_in(folder: Path, trusted: Container[str]) -> Recorded | None:
    """What `write_record` left in `folder`, or None. UsageError where it names code that is not `trusted`."""
    from hybridkit.quant.recorded import read_record

    found = read_record(folder)
    if found is not None:
        for target in found.quantization.targets:
            check_named({"quantizer": target}, trusted, "the checkpoint's")
    return found


def as_recorded(
    network: nn.Module,
    folder: Path,
    open_weights: Callable[[], Mapping[str, Tensor]],
    trusted: Container[str],
) -> nn.Module:
    """`network`, which has the latent weights of `folder`, fake-quantised in place as it trained.

    open_weights: gives the tensors in the folder, among them what quantizers, norms and adapters learned. A
    folder without a record leaves the network as it is. Raises FileError where one of these is missing.
    """
    record = recorded_in(folder, trusted)
    if record is None:
        return network
    record.apply_(network)
    own: dict[str, Tensor] = network.state_dict(keep_vars=True)
    learned = {
        name: tensor
        for name, tensor in own.items()
        if "quantizer_parameters" in name.split(".") or name in record.attached
    }
    weights = open_weights() if learned else {}
    held = {id(tensor): weights[name] for name, tensor in learned.items() if name in weights}
    for name, tensor in learned.items():
        if id(tensor) not in held or held[id(tensor)].shape != tensor.shape:
            raise FileError(f"{folder}: the weights lack {name}, which was learned beside them")
        tensor.data.copy_(held[id(tensor)])
    return network
