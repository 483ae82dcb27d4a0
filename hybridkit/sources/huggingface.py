"""The source kind for pretrained networks: a Hugging Face folder, a hub name, a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from hybridkit.errors import FileError
from hybridkit.pretrained import Pretrained, is_pretrained, open_pretrained
from hybridkit.sources.protocol import Source
from hybridkit.sources.recorded import as_recorded, recorded_in

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hybridkit.pretrained.assets import Assets
    from hybridkit.pretrained.examples import Examples


class PretrainedNetwork(Source):
    """A pretrained network: `hf:FOLDER`, `hf:OWNER/NAME`, a folder with a config.json, or NAME.gguf.

    The network is the one that the configuration names; a hybridkit.json beside it says how it was quantised
    as it trained in another project's loop. Its own code runs under --trust-remote-code alone.
    """

    def matches(self, text: str) -> bool:
        return is_pretrained(text)

    def weights(self) -> Mapping[str, Tensor]:
        network, weights = self.streamed()
        if weights is None:
            return super().weights()
        own = network.state_dict(keep_vars=True)
        names = {id(own[name]): name for name in weights}
        return {name: weights[names[id(tensor)]] for name, tensor in own.items()}

    @cached_property
    def network(self) -> nn.Module:
        import torch

        from hybridkit.pretrained.weights import open_checkpoint

        found = self._found
        with torch.random.fork_rng(devices=[]):
            network = found.network()
        return as_recorded(
            network, found.folder, partial(open_checkpoint, found.folder, self.text), self.code
        )

    def streamed(self) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
        if recorded_in(self._found.folder, self.code):
            return self.network, None
        return self._streamed

    @cached_property
    def examples(self) -> Examples | None:
        return self._found.examples(self._shape)

    @cached_property
    def assets(self) -> Assets:
        from hybridkit.pretrained.assets import assets_of

        return assets_of(self._found, self._shape)

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        return (
            {**super().metadata, "inputs": self.examples.described()} if self.examples else super().metadata
        )

    @cached_property
    def _found(self) -> Pretrained:
        found = open_pretrained(self.text, trust_remote_code=self.code.remote)
        if not found.has_weights:
            raise FileError(f"{self.text} holds what belongs to a network beside its weights, and no weights")
        return found

    @cached_property
    def _streamed(self) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
        import torch

        with torch.random.fork_rng(devices=[]):
            return self._found.streamed()

    @property
    def _shape(self) -> nn.Module:
        """The network, with or without content."""
        return vars(self).get("network") or self.streamed()[0]
