"""What every exporter promises."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hybridkit.errors import HybridkitError
from hybridkit.exporting.protocol import Exporter, ExportReport, ExportRequest, Validation
from hybridkit.packing.activations import Activations
from hybridkit.packing.model import PackedModel
from hybridkit.quant.convert import convert
from hybridkit.quant.prepare import prepare_qat

_WIDTH = 64


class ExporterContract(ABC):
    """`make` returns an exporter.

    `packs` False: it writes the packed weights at full size. `quantizer` and `activations` are those that the
    network it is tried on gets. One that takes networks of some kind only has a `network` and a `batch`.
    """

    packs = True
    quantizer = "ternary-absmean"
    activations: Activations = "int8"

    @abstractmethod
    def make(self) -> Exporter:
        """An exporter."""

    def network(self) -> nn.Module:
        """The network that it is tried on, in full precision."""
        wide = 4 * _WIDTH
        layers = [nn.Linear(_WIDTH, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, 8)]
        return nn.Sequential(*layers)

    def batch(self, samples: int, generator: torch.Generator) -> Tensor:
        """What the network takes."""
        return torch.randn(samples, _WIDTH, generator=generator)

    def test_names_its_suffixes(self) -> None:
        suffixes = self.make().suffixes
        assert suffixes
        assert all(suffix.startswith(".") and len(suffix) > 1 for suffix in suffixes)

    def test_writes_a_verified_file(self, tmp_path: Path) -> None:
        network, packed = self._network()
        before = copy.deepcopy(network.state_dict())
        report = self._export(network, packed, tmp_path)
        assert report.path.is_file()
        written = sum(file.stat().st_size for file in tmp_path.iterdir())
        assert report.file_bytes == written, "file_bytes counts everything that belongs to the model"
        assert report.ratio == report.fp32_bytes / written
        assert (report.ratio > 2) == self.packs, f"{written} bytes where fp32 takes {report.fp32_bytes}"
        check = report.verification
        assert check is not None
        assert check.samples == 24
        assert 0 <= check.max_abs < 0.1
        assert check.loss_difference < 0.05 * check.network_loss + 1e-4
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())

    def test_writes_a_plain_network(self, tmp_path: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            report = self._export(self.network(), None, tmp_path)
        assert report.bits_per_weight is None
        assert report.verification is not None
        assert report.verification.max_abs < 1e-4

    def test_a_failure_leaves_the_folder_as_it_was(self, tmp_path: Path) -> None:
        target = self._target(tmp_path)
        target.write_bytes(b"the file of an earlier run")
        with pytest.raises(HybridkitError):
            self._export(_Broken(), None, tmp_path)
        assert list(tmp_path.iterdir()) == [target]
        assert target.read_bytes() == b"the file of an earlier run"

    def test_a_missing_folder_is_an_error_of_one_line(self, tmp_path: Path) -> None:
        network, packed = self._network()
        with pytest.raises(HybridkitError) as caught:
            self._export(network, packed, tmp_path / "nowhere")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "nowhere").exists()

    def _network(self) -> tuple[nn.Module, PackedModel]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = self.network()
            prepare_qat(network, quantizer=self.quantizer, activations=self.activations)
        return network.eval(), convert(network)

    def _export(self, module: nn.Module, packed: PackedModel | None, folder: Path) -> ExportReport:
        generator = torch.Generator().manual_seed(1)
        batches = [(self.batch(size, generator),) for size in (16, 8)]
        request = ExportRequest(
            example_inputs=[batches[0][0][:2]],
            input_names=["x"],
            dynamic_axes=[{0: "batch"}],
            opset=18,
            validation=Validation(batches=batches),
            metadata={"made by": "the contract test"},
        )
        return self.make().export(module, packed, self._target(folder), request)

    def _target(self, folder: Path) -> Path:
        return folder / f"model{self.make().suffixes[0]}"


class _Broken(nn.Module):
    """A network that no exporter can write."""

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("this network cannot run")
