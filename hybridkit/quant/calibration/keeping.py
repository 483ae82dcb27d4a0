"""Calibrated blocks in a folder, one file each, so that a killed calibration goes on at its block."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load, save
from torch import nn

from hybridkit.errors import FileError
from hybridkit.packing.atomic import atomic_file, remove
from hybridkit.quant.frozen import freeze_layer_
from hybridkit.quant.layers import qat_layers
from hybridkit.quant.protocol import QuantizedTensor

_CODES, _SCALE = ".weight", ".quantizer_parameters.scale"


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
            group = layer.quantized_weight().group_size
            codes, scale = state[name + _CODES], state[name + _SCALE]
            matrix = (codes.t() if layer.transposed else codes).flatten(1)
            scales = scale.view(len(matrix), -1) if group else scale
            freeze_layer_(layer, QuantizedTensor(matrix, scales, group))
        with torch.no_grad():
            block.load_state_dict(state)
        return True

    def end(self) -> None:
        """Remove the folder."""
        remove(self.folder)

    def _file(self, place: int) -> Path:
        return self.folder / f"block-{place:04}.safetensors"
