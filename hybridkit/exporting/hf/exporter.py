"""The exporter: a folder with weights, configuration and tokenizer, as a hub has them."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from hybridkit import __version__
from hybridkit.errors import FileError, UsageError
from hybridkit.exporting.protocol import ExportReport, ExportRequest
from hybridkit.options import option
from hybridkit.packing.atomic import folder_in_place, writing

if TYPE_CHECKING:
    from torch import nn

    from hybridkit.exporting.hf.state import State
    from hybridkit.exporting.protocol import Verification
    from hybridkit.packing.model import PackedModel

SHARD: Final = "5GB"  # a weight file at most
CONFIG: Final = "config.json"
OURS: Final = "hybridkit"  # the key of config.json that tells a folder of ours
_TYPES: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class HfExporter:
    """A folder that `from_pretrained` of transformers loads, with ternary weights packed or all as floats.

    Packed weights are those of transformers' `bitnet`: one scale for a weight, int8 activations. All others,
    embeddings and heads of 8 bits among them, and with `unpacked` every weight, are dequantised, and what
    they are multiplied with stays floats. All tensors are in memory at a time.
    """

    suffixes = ("",)
    folder = True

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Options:
        """Options of `hf`."""

        unpacked: bool = option(False, "dequantised weights, which any model of transformers takes")
        floats: Literal["F32", "F16", "BF16"] = option("BF16", "type of all that is not packed")

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or self.Options()

    def export(
        self, module: nn.Module, packed: PackedModel | None, path: Path, request: ExportRequest
    ) -> ExportReport:
        """Write the folder; see Exporter."""
        import torch
        from huggingface_hub import save_torch_state_dict

        from hybridkit.exporting.hf.state import state_of
        from hybridkit.pretrained.examples import inner_model
        from hybridkit.pretrained.quiet import quiet
        from hybridkit.runtime.modules import load_packed

        _check_place(path)
        whole = load_packed(module, packed) if packed is not None else module
        network = inner_model(whole)
        if network is None or request.assets is None:
            raise UsageError("the target hf takes a network of transformers, with its configuration")
        name = next(name for name, part in whole.named_modules() if part is network)
        floats = getattr(torch, _TYPES[self.options.floats])
        prefix = f"{name}." if name else ""
        state = state_of(network, packed, prefix, floats, unpacked=self.options.unpacked or packed is None)
        with folder_in_place(path) as new:
            with writing(path):
                request.assets.write_files(new)
                (new / CONFIG).write_text(json.dumps(self._config(new, state), indent=2) + "\n", "utf-8")
                with quiet():
                    save_torch_state_dict(state.tensors, new, max_shard_size=SHARD)
                for file in new.glob("*.safetensors"):  # written for their owner alone
                    file.chmod((new / CONFIG).stat().st_mode)
            found = None
            if request.validation is not None:
                validation = replace(request.validation, loss=None) if name else request.validation
                found = _verified(new, path, network, state, replace(request, validation=validation))
            files = sum(file.stat().st_size for file in new.glob("*.safetensors"))
        return ExportReport(
            path=path,
            target="hf",
            opset=0,
            file_bytes=files,
            fp32_bytes=4 * state.numbers,
            bits_per_weight=state.bits_per_weight,
            verification=found,
        )

    def _config(self, folder: Path, state: State) -> dict[str, Any]:
        """The configuration that is in the folder, with what holds for the weights now."""
        said: dict[str, Any] = json.loads((folder / CONFIG).read_bytes())
        said.pop("dtype", None)
        said["torch_dtype"] = _TYPES[self.options.floats]  # older releases know this name alone
        said[OURS] = __version__
        if state.scales:
            said["quantization_config"] = {
                "quant_method": "bitnet",
                "linear_class": state.linear_class,
                "quantization_mode": "offline",
                "modules_to_not_convert": state.plain,
            }
        return said


def _check_place(path: Path) -> None:
    """Raise FileError where something else is, or no folder to write into."""
    if path.exists():
        try:
            ours = OURS in json.loads((path / CONFIG).read_bytes())
        except (OSError, ValueError):
            ours = False
        if not ours:
            raise FileError(f"{path} is there and not of the target hf; name a new folder")
    if not path.parent.is_dir():
        raise FileError(f"cannot write {path}: there is no folder {path.parent}")


def _verified(
    folder: Path, named: Path, network: nn.Module, state: State, request: ExportRequest
) -> Verification:
    """What transformers makes of the folder against the network, both in float32."""
    import torch

    from hybridkit.exporting import verify
    from hybridkit.pretrained.quiet import quiet

    assert request.validation is not None
    ours: Any = network
    # whoever has no compiler for torch.compile can still export
    with quiet(), torch.compiler.set_stance("force_eager"):
        loaded, said = type(ours).from_pretrained(folder, local_files_only=True, output_loading_info=True)
        if lost := sorted({*said["missing_keys"], *said["unexpected_keys"]}):
            raise UsageError(f"transformers does not read {lost[0]} from what was written")
        # from_pretrained does not change the type of what is packed, and its `float` may refuse to
        loaded = torch.nn.Module.float(loaded).eval()
        found = verify.compare_networks(loaded, _as_stored(network, state), request.validation)
    verify.check_gate(found, "approximate", named)
    return found


def _as_stored(network: nn.Module, state: State) -> nn.Module:
    """The network with float activations in the layers that are no packed ones for transformers."""
    from hybridkit.exporting.hf.state import PACKED

    copied = copy.deepcopy(network)
    for name, module in copied.named_modules(remove_duplicate=False):
        if isinstance(module, PACKED) and name not in state.scales:
            module.activations = "float"
    return copied
