"""What a calibration has done, in a folder, so that one that was killed goes on where it was.

A file for each block that is finished, and one for the tuning of all blocks together, while it runs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import safetensors
import torch
from safetensors.torch import load, save
from torch import nn

from hybridkit.errors import FileError
from hybridkit.packing.atomic import atomic_file, remove
from hybridkit.quant.frozen import freeze_layer_
from hybridkit.quant.layers import qat_layers

LOOKED_AT: Final = 1_000  # numbers of a tensor
EVERY: Final = 8  # steps on all blocks together
_CODES, _SCALE = ".weight", ".quantizer_parameters.scale"


def fingerprint(network: nn.Module) -> str:
    """What tells a network's tensors from others: names, shapes, and about a thousand numbers of each."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        values = tensor.detach().flatten()
        some = values[:: len(values) // LOOKED_AT + 1].double().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode() + some.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Kept:
    """`folder` holds the blocks of one calibration; what is there of another one (`key`) is removed."""

    folder: Path
    key: str

    def begin(self) -> None:
        """Make the folder, empty unless it is this calibration's."""
        mark = self.folder / "key"
        try:
            if mark.is_file() and mark.read_text("utf-8") == self.key:
                return
            if self.folder.exists():
                remove(self.folder)
            self.folder.mkdir()
        except OSError as error:
            raise FileError(f"cannot write {self.folder}: {error.strerror or error}") from None
        with atomic_file(mark) as file:
            file.write(self.key.encode())

    def save(self, place: int, block: nn.Module) -> None:
        """Keep a block whose codes are frozen."""
        state = {name: tensor.contiguous() for name, tensor in block.state_dict().items()}
        with atomic_file(self._file(place)) as file:
            file.write(save(state))

    def load_(self, place: int, block: nn.Module) -> bool:
        """Freeze the codes of a block as they were kept, in place; False where they were not."""
        state = _read(self._file(place))
        if state is None:
            return False
        for name, layer in qat_layers(block).items():
            if name + _SCALE not in state:  # it does not run, and kept its latent weight
                continue
            codes = state[name + _CODES]
            matrix = (codes.t() if layer.transposed else codes).flatten(1)
            # what they were before tuning does not matter, only their form: the state has them all
            freeze_layer_(layer, replace(layer.quantized_weight(), codes=matrix))
        with torch.no_grad():
            block.load_state_dict(state)
        return True

    def descent(self, steps: int) -> KeptDescent:
        """Where that of so many steps on all blocks together is kept."""
        return KeptDescent(self.folder / f"together-{steps}.safetensors")

    def end(self) -> None:
        """Remove the folder."""
        remove(self.folder)

    def _file(self, place: int) -> Path:
        return self.folder / f"block-{place:04}.safetensors"


@dataclass(frozen=True, slots=True)
class KeptDescent:
    """Where an optimizer stands: `file` holds its parameters, its state of each, and the steps done."""

    file: Path

    def save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Keep what it is after so many steps; every `EVERY`th is."""
        if step % EVERY:
            return
        tensors = {"step": torch.tensor(step)}
        for place, parameter in enumerate(_parameters(optimizer)):
            tensors[f"{place}"] = parameter.detach().contiguous()
            tensors |= {f"{place}.{name}": value for name, value in optimizer.state[parameter].items()}
        with atomic_file(self.file) as file:
            file.write(save(tensors))

    def load_(self, optimizer: torch.optim.Optimizer) -> int:
        """Set it and its parameters to what was kept, in place; how many steps it had done, 0 of no file."""
        tensors = _read(self.file)
        if tensors is None:
            return 0
        with torch.no_grad():
            for place, parameter in enumerate(_parameters(optimizer)):
                parameter.copy_(tensors[f"{place}"])
                state = {name: value for name, value in tensors.items() if name.startswith(f"{place}.")}
                optimizer.state[parameter] = {
                    name.split(".")[1]: value.to(parameter.device) if value.dim() else value
                    for name, value in state.items()
                }
        return int(tensors["step"])


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """A file's tensors, None without one. Raises FileError where it is damaged."""
    try:
        return load(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, safetensors.SafetensorError) as error:
        raise FileError(f"{path} is damaged ({error}); remove {path.parent}") from None
