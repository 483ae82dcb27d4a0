"""The kinds of sources that come with hybridkit. torch is imported when a part is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridkit.errors import FileError, UsageError
from hybridkit.sources.protocol import Source, check_named
from hybridkit.sources.recorded import recorded_in

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hybridkit.packing.model import PackedModel
    from hybridkit.pretrained.assets import Assets
    from hybridkit.pretrained.examples import Examples
    from hybridkit.quant.recorded import Recorded
    from hybridkit.tasks.protocol import Task
    from hybridkit.training.runs import Run


class OnnxFile(Source):
    """A file NAME.onnx. `hybridkit quantize` takes it; there is no network in it that trains."""

    def matches(self, text: str) -> bool:
        return _is_named(text, ".onnx")

    @property
    def onnx(self) -> Path:
        return Path(self.text)

    @cached_property
    def network(self) -> nn.Module:
        raise UsageError(f"{self.text} is an ONNX file; only hybridkit quantize takes it")


class PackedFile(Source):
    """A packed model: NAME.hk.safetensors or its .index.json.

    The network runs the packed layers; the weights are dequantised. Task and model are what the file says,
    if these are registered names, or what --task and --model say. Of a pretrained network it is what the
    assets beside the file describe.
    """

    def matches(self, text: str) -> bool:
        return _is_named(text, ".hk.safetensors", ".hk.safetensors.index.json")

    def weights(self) -> Mapping[str, Tensor]:
        import ml_dtypes
        import numpy as np
        import torch

        layers, arrays = self.packed.layers, dict(self.packed.tensors)
        arrays |= {
            f"{name}.weight" if name else "weight": layer.dequantize() for name, layer in layers.items()
        }
        arrays |= {alias: arrays[name] for alias, name in self.packed.tied.items()}
        for name, array in arrays.items():
            if array.dtype == ml_dtypes.bfloat16:  # which torch does not take from NumPy
                arrays[name] = array.astype(np.float32)
        return {name: torch.from_numpy(np.require(a, requirements="W")) for name, a in arrays.items()}

    @cached_property
    def network(self) -> nn.Module:
        import torch

        from hybridkit.runtime.modules import load_packed

        make = self._pretrained or _maker(self, self._said("model"))
        if make is None:
            raise UsageError(
                "the packed file does not say its task: name the network with --model package.module:factory"
            )
        with torch.random.fork_rng(devices=[]):  # nobody sees what these weights replace
            return load_packed(make(), self.packed)

    @cached_property
    def assets(self) -> Assets | None:
        from hybridkit.pretrained import is_pretrained, open_pretrained
        from hybridkit.pretrained.assets import assets_in, assets_of, beside

        said, path = self.metadata.get("assets"), Path(self.text)
        if not isinstance(said, Mapping):
            return None
        if self.code.model and is_pretrained(self.code.model):  # in place of what was lost
            found = open_pretrained(self.code.model, trust_remote_code=self.code.remote)
            return assets_of(found, self.network)
        in_run = path.with_name("assets")
        folder = in_run if not beside(path).is_dir() and in_run.is_dir() else beside(path)
        return assets_in(folder, str(said.get("sha256")))

    @cached_property
    def examples(self) -> Examples | None:
        from hybridkit.pretrained.examples import examples_of

        return examples_of(self.network) if self.assets else None

    @property
    def _pretrained(self) -> Callable[[], nn.Module] | None:
        """What makes the network that the assets describe: the task that the file names, if it names one."""
        if self.code.model or self.assets is None:
            return None
        from hybridkit.pretrained import open_pretrained
        from hybridkit.tasks.resolve import make_model

        place = str(self.assets.folder)
        if (task := self._said("task")) is None:
            return open_pretrained(place, trust_remote_code=self.code.remote).network
        return partial(make_model, self._made(task), place)

    def streamed(self) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
        raise UsageError(f"{self.text} is packed already; hybridkit export --from takes it")

    @cached_property
    def packed(self) -> PackedModel:
        from hybridkit.packing.model import PackedModel

        return PackedModel.load(self.text)

    @cached_property
    def task(self) -> Task | None:
        # its data are elsewhere, where the file is one of a pretrained network
        name = self.code.task if self.metadata.get("assets") else self._said("task")
        return self._made(name) if name else None

    def _made(self, task: str) -> Task:
        from hybridkit.training.config import TrainConfig
        from hybridkit.training.network import configured_task

        config: dict[str, Any] = {"task": task, "trust_remote_code": self.code.remote}
        if self.metadata.get("assets") and not self.code.model and self.assets:
            config["model"] = str(self.assets.folder)
        return configured_task(TrainConfig.from_json(config))

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        return self.packed.metadata

    def _said(self, flag: str) -> str | None:
        """What the command line says, else what the file says, if that may be imported."""
        from hybridkit.training.config import TrainConfig, named_targets

        given: str | None = getattr(self.code, flag)
        said = self.metadata.get(flag)
        if given or not isinstance(said, str):
            return given
        check_named(named_targets(TrainConfig.from_json({flag: said})), self.code, "the packed file's")
        return said


class WeightsFile(Source):
    """Weights alone: a .safetensors file, or the .index.json of several; nothing in them is unpickled.

    Their network is --model package.module:attribute, or one of --task; a hybridkit.json beside them says
    how it was quantised as it trained.
    """

    def matches(self, text: str) -> bool:
        # any other file too: what reads it says that it is no safetensors file
        return os.path.isfile(text) or _is_named(text, ".safetensors", ".safetensors.index.json")

    def weights(self) -> Mapping[str, Tensor]:
        from hybridkit.quant.checkpoint import open_tensors

        return open_tensors(self.text)

    @cached_property
    def network(self) -> nn.Module:
        import torch

        from hybridkit.training.weights import load_weights

        with torch.random.fork_rng(devices=[]):  # nobody sees what these weights replace
            network = self._make()
        if self._record is not None:
            network = self._record.apply_(network)
        load_weights(network, self.weights(), self.text)
        return network.eval()

    def streamed(self) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
        import torch

        from hybridkit.training.weights import check_weights

        if self._record is not None:
            return self.network, None
        make = self._make
        try:
            with torch.device("meta"):
                network = make().eval()
        except (NotImplementedError, RuntimeError):  # it looks at its weights as it makes them
            return self.network, None
        if any(tensor.is_meta for tensor in network.state_dict().values()):
            return network, check_weights(network, self.weights(), self.text)
        return self.network, None

    @cached_property
    def _record(self) -> Recorded | None:
        return recorded_in(Path(self.text).parent, self.code)

    @cached_property
    def _make(self) -> Callable[[], nn.Module]:
        make = _maker(self, self.code.model)
        if make is None:
            raise UsageError(
                f"{self.text} holds weights only: say the network with --model package.module:factory"
            )
        return make


class RunFolder(Source):
    """A run: its folder, its name, one of its checkpoints, or a folder of runs, which means the newest."""

    def matches(self, text: str) -> bool:
        from hybridkit.training.runs import find_run

        try:
            find_run(text)
        except (FileError, OSError, ValueError):  # no run, or no path at all
            return False
        return True

    @cached_property
    def _found(self) -> tuple[Run, int | None]:
        from hybridkit.training.runs import find_run

        return find_run(self.text)

    def weights(self) -> Mapping[str, Tensor]:
        run, step = self._found
        return run.checkpoint(step).model

    @cached_property
    def network(self) -> nn.Module:
        return self._restored[1]

    @cached_property
    def packed(self) -> PackedModel | None:
        from hybridkit.training.packed import quantize_afterwards

        config = self._found[0].recorded()
        if config.ternary and not config.qat:
            return quantize_afterwards(config, self.network)
        return super().packed

    @cached_property
    def task(self) -> Task:
        return self._restored[0]

    @cached_property
    def assets(self) -> Assets | None:
        from hybridkit.pretrained.assets import assets_in

        run, _ = self._found
        return assets_in(run.assets) if run.assets.is_dir() else None

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        from hybridkit.training.metrics import numbers, read_records
        from hybridkit.training.packed import about

        run, _ = self._found
        commit = run.about().get("environment", {}).get("git_commit")
        measured = [record for record in read_records(run.metrics_path) if record["event"] != "step"]
        return {
            **about(run.recorded(), self.task, commit),
            "run": run.path.name,
            "metrics": numbers(measured[-1]) if measured else {},
        }

    @cached_property
    def _restored(self) -> tuple[Task, nn.Module]:
        run, step = self._found
        return run.load_model(step, trusted=self.code)


class Module(Source):
    """A network of the user's own: package.module:attribute, a module or what makes one."""

    def matches(self, text: str) -> bool:
        return ":" in text and not os.path.exists(text)

    @cached_property
    def network(self) -> nn.Module:
        from hybridkit.tasks.resolve import import_model

        return import_model(self.text).eval()

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        return {**super().metadata, "model": self.text}


def _maker(source: Source, model: str | None) -> Callable[[], nn.Module] | None:
    """What makes the fresh network of a file. What it needs is imported before: off the meta device, say."""
    from hybridkit.pretrained import is_pretrained, open_pretrained
    from hybridkit.registry import import_target
    from hybridkit.tasks.resolve import import_model, make_model

    if model and is_pretrained(model):
        if model != source.code.model:
            raise UsageError(f"{source.text} is of {model}, and its assets are lost; say --model {model}")
        return open_pretrained(model, trust_remote_code=source.code.remote).fresh
    if model and ":" in model:
        import_target(model)
        return partial(import_model, model)
    if source.task is not None:
        return partial(make_model, source.task, model)
    return source.code.otherwise


def _is_named(text: str, *suffixes: str) -> bool:
    return text.endswith(suffixes) and not os.path.isdir(text)
