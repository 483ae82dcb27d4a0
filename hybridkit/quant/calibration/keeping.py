"""Calibrated blocks in a folder, one file each, so that a killed calibration goes on at its block."""

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
        try:
            state = load(self._file(place).read_bytes())
        except FileNotFoundError:
            return False
        except (OSError, safetensors.SafetensorError) as error:
            raise FileError(f"{self._file(place)} is damaged ({error}); remove {self.folder}") from None
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

    def end(self) -> None:
        """Remove the folder."""
        remove(self.folder)

    def _file(self, place: int) -> Path:
        return self.folder / f"block-{place:04}.safetensors"
