"""The weights of a Hugging Face folder: which files they are in, and each tensor by the network's own name.

transformers gives tensors other names than their files where a family changed, and takes or leaves the prefix
of the body. Where that is all it does, a tensor can stay in its file until it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hybridkit.errors import FileError
from hybridkit.quant.checkpoint import TensorFiles, open_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

NO_WEIGHTS: Final = "hybridkit-assets.json"  # a folder with this file holds none by design: see assets.py
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_OTHERS: Final = ("*.h5", "*.msgpack", "*.ot")


def open_checkpoint(folder: Path, text: str) -> TensorFiles:
    """The tensors in the weights of `folder`, which the user called `text`, by their names there.

    Raises FileError in one line where there are none, or a file is missing, damaged or of a kind that is not
    read: a pickle may run code when it is opened.
    """
    for name in (SINGLE, INDEX):
        if (folder / name).is_file():
            return open_tensors(folder / name)
    others = [path.name for kind in (*_PICKLES, *_OTHERS) for path in sorted(folder.glob(kind))]
    if others:
        raise FileError(
            f"{text}: its weights are in {others[0]} alone, which is not read (a pickle may run code); where "
            "you trust it, save it once as safetensors with transformers' save_pretrained"
        )
    raise FileError(f"{text}: there are no weights here, neither {SINGLE} nor {INDEX}")


class Renamed(Mapping[str, "Tensor"]):
    """Tensors of `files` by other names: `names` maps each to the one in the files."""

    def __init__(self, files: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
        self._files, self._names = files, names

    def __getitem__(self, name: str) -> Tensor:
        return self._files[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def by_own_names(network: nn.Module, files: Mapping[str, Tensor]) -> Renamed | None:
    """The tensors of `files` by the names that `network`, a model of transformers, has for them.

    What the network has no place for is left out, as transformers leaves it. None where transformers does
    more than rename: fuses or splits tensors as it loads them, converts their type, or finds one missing.
    """
    if (names := _stored_names(network, files)) is None:
        return None
    own = network.state_dict(keep_vars=True)
    stored_twice = len({id(own[name]) for name in names}) < len(names)  # tied, if they are equal
    lacking = {id(tensor) for tensor in own.values()} - {id(own[name]) for name in names}
    return None if stored_twice or lacking else Renamed(files, names)


def misshapen(network: nn.Module, files: Mapping[str, Tensor]) -> list[str]:
    """The tensors of `network` that have another shape in `files`, as far as they are only renamed."""
    own, names = network.state_dict(keep_vars=True), _stored_names(network, files) or {}
    return [name for name, stored in names.items() if files[stored].shape != own[name].shape]


def _stored_names(network: nn.Module, files: Mapping[str, Tensor]) -> dict[str, str] | None:
    """Own name -> name in `files`; None where transformers converts one of these tensors."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    except ImportError:  # another release keeps them elsewhere
        return None
    model: Any = network
    own = model.state_dict(keep_vars=True)
    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    if len(renamings) + len(converters) < len(steps) or getattr(model.config, "quantization_config", None):
        return None
    names: dict[str, str] = {}
    for stored in files:
        name, converted = rename_source_key(stored, renamings, converters, model.base_model_prefix, own)
        if name not in own and stored in own:
            name, converted = stored, None
        if converted is not None and name in own:
            return None
        if name in own:
            names.setdefault(name, stored)
    return names
