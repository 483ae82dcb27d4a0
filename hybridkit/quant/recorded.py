"""How the weights in a folder were quantised as they trained: `hybridkit.json` beside somebody's checkpoint.

A checkpoint of another project's loop holds latent weights in plain safetensors; any library can load them.
This small file says what they are latent weights of, so that they can be packed as they trained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from torch import nn

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.atomic import atomic_file
from hybridkit.quant.attachments import NAMES, attach
from hybridkit.quant.config import FP32, QuantConfig, QuantizerSpec
from hybridkit.quant.frozen_codes import FrozenCodes
from hybridkit.quant.layers import qat_layers, set_ramp
from hybridkit.quant.plan import EMBEDDINGS, plan_layers
from hybridkit.quant.prepare import prepare_qat_, prepared

RECORD: Final = "hybridkit.json"
_FORMAT: Final = "hybridkit-quantization"
_VERSION: Final = 1
_M = TypeVar("_M", bound=nn.Module)


@dataclass(frozen=True)
class Recorded:
    """How a network is quantised: as what, the quantizer of each fake-quantised layer, and the ramp.

    attached: the shapes of norms and adapters beside these layers, by name in the state dictionary.
    """

    quantization: QuantConfig
    layers: Mapping[str, str]
    ramp: float = 1.0
    attached: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, network: nn.Module) -> Recorded | None:
        """That of a network which `prepare_qat_` prepared; None for any other.

        Raises UsageError where there are codes in place of latent weights.
        """
        done, layers = prepared(network), qat_layers(network)
        if done is None or not layers:
            return None
        if any(isinstance(layer.quantizer, FrozenCodes) for layer in layers.values()):
            raise UsageError("frozen codes are no latent weights: pack this network with hybridkit.convert")
        names = {name: layer.quantizer_name for name, layer in layers.items()}
        attached = {
            f"{name}.{own}" if name else own: tuple(tensor.shape)
            for name, layer in layers.items()
            for own, tensor in layer.state_dict().items()
            if own in NAMES
        }
        return cls(done.config, names, min(layer.ramp for layer in layers.values()), attached)

    def to_json(self) -> dict[str, Any]:
        """The content of the file. Raises UsageError for a quantizer that is an object and has no name."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "quantization": self.quantization.to_json(),
            "layers": dict(self.layers),
            "ramp": self.ramp,
            "attached": {name: list(shape) for name, shape in self.attached.items()},
        }

    def apply_(self, network: _M) -> _M:
        """Quantise a plain `network` of the same layers in this way, in place, and return it.

        Learned steps start from its weights, norms and adapters from anything. Raises FileError where the
        layers are not those of the record.
        """
        try:
            prepare_qat_(network, replace(self._config_for(network), insert_norms=False))
        except UsageError as error:
            raise FileError(f"{RECORD} does not fit; is it the same network? ({error})") from None
        for name, layer in qat_layers(network).items():
            attach(layer, name, self.attached)
        found = Recorded.of(network)
        if found is None or (found.layers, found.attached) != (self.layers, self.attached):
            raise FileError(f"{RECORD} tells of other layers than this network's; is it the same network?")
        set_ramp(network, self.ramp)
        return network

    def _config_for(self, network: nn.Module) -> QuantConfig:
        """The configuration that says by name what example inputs had shown: which Linear is the last."""
        said: dict[str, QuantizerSpec] = {}
        for plan in plan_layers(network, self.quantization):
            recorded = self.layers.get(plan.name, FP32)
            if plan.quantizer_name != recorded and not plan.layer.obstacle:
                said[plan.name] = self._spec(recorded)
        return replace(self.quantization, layers={**self.quantization.layers, **said})

    def _spec(self, quantizer: str) -> QuantizerSpec:
        spared = self.quantization.embeddings
        if quantizer == FP32:
            return FP32
        if spared is not None and quantizer == _name(EMBEDDINGS[spared]):
            return EMBEDDINGS[spared]
        return self.quantization.weights


def _name(spec: QuantizerSpec) -> str | None:
    return spec.get("quantizer") if isinstance(spec, Mapping) else None


def write_record(network: nn.Module, folder: str | os.PathLike[str]) -> bool:
    """Write how `network` is quantised into `folder`, beside its weights; whether it is quantised at all.

    Raises UsageError as `of` and `to_json` do, and FileError.
    """
    found = Recorded.of(network)
    if found is None:
        return False
    document = found.to_json()
    with atomic_file(Path(folder, RECORD)) as file:
        file.write((json.dumps(document, indent=1) + "\n").encode())
    return True


def read_record(folder: str | os.PathLike[str]) -> Recorded | None:
    """What `write_record` wrote into `folder`, or None. Raises FileError, one line, for anything else."""
    path = Path(folder, RECORD)
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FileError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise FileError(f"{path} is truncated or damaged: it is not JSON") from None
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise FileError(f"{path} is not a record of hybridkit's")
    if document.get("version") != _VERSION:
        raise FileError(f"{path}: version {document.get('version')!r}; this hybridkit reads {_VERSION}")
    layers, ramp = document.get("layers"), document.get("ramp")
    if not isinstance(layers, dict) or not all(isinstance(name, str) for name in layers.values()):
        raise FileError(f"{path} is damaged: its layers are no table of quantizers")
    if not isinstance(ramp, int | float) or isinstance(ramp, bool) or not 0 <= ramp <= 1:
        raise FileError(f"{path} is damaged: a ramp goes from 0 to 1")
    attached = document.get("attached")
    if not isinstance(attached, dict) or not all(_is_shape(shape) for shape in attached.values()):
        raise FileError(f"{path} is damaged: it holds no table of shapes")
    shapes = {name: tuple(shape) for name, shape in attached.items()}
    try:
        return Recorded(QuantConfig.from_json(document.get("quantization")), layers, float(ramp), shapes)
    except FileError as error:
        raise FileError(f"{path}: {error}") from None


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 < size < 1 << 24 for size in value)
