"""The same network as every peer stores it: what `bench inference` measures beside the file itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hybridkit.bench.twin import MICROSOFT, load, write_twin
from hybridkit.errors import HybridkitError
from hybridkit.exporting.quiet import quiet

if TYPE_CHECKING:
    import onnxruntime

PORTABLE: Final = "portable bodies"
TWIN: Final = "fp32 twin"
INT8: Final = "int8 (dynamic)"
NBITS2: Final = "MatMulNBits 2-bit"
NBITS4: Final = "MatMulNBits 4-bit"
NAMES: Final = (PORTABLE, TWIN, INT8, NBITS2, NBITS4)  # beside the file itself
BLOCK: Final = 128  # of MatMulNBits
ACCURACY_LEVEL: Final = 4  # int8 activations: its fast path


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run the network. native: with our operators registered."""

    name: str
    path: Path
    native: bool = False

    def session(self, threads: int) -> onnxruntime.InferenceSession:
        """On the CPU. Raises FileError if this ONNX Runtime cannot run it."""
        from hybridkit.runtime.session import session

        return session(self.path, threads=threads, native=self.native, log_severity_level=3)


def write_variants(path: Path, folder: Path) -> tuple[int, list[Variant], list[str]]:
    """The packed layers of the model at `path`, its variants in `folder`, and notes on those left out.

    The model itself comes first. Raises FileError if it is no ONNX model, HybridkitError if its fp32 twin
    cannot be made.
    """
    from hybridkit.runtime.library import library_path

    native = library_path() is not None
    twin = folder / "twin.onnx"
    layers = write_twin(path, twin)
    variants = [Variant(path.name, path, native=native)]
    if layers:
        variants += [Variant(PORTABLE, path)] if native else []
        variants.append(Variant(TWIN, twin))
    plain = twin if layers else path
    makers: dict[str, Callable[[Path], None]] = {
        INT8: lambda out: _dynamic(plain, out),
        NBITS2: lambda out: _packed_blocks(path, out) if layers else _blocks(plain, out, 2),
        NBITS4: lambda out: _blocks(plain, out, 4),
    }
    notes = []
    for number, (name, make) in enumerate(makers.items()):
        variant = Variant(name, folder / f"variant-{number}.onnx")
        try:
            make(variant.path)
            variant.session(1)
        except Exception as error:  # the quantisers of ONNX Runtime raise whatever comes
            notes.append(f"{name} is left out: {' '.join(str(error).split()) or type(error).__name__}")
        else:
            variants.append(variant)
    return layers, variants, notes


def _dynamic(path: Path, out: Path) -> None:
    """ONNX Runtime's dynamic quantisation with its defaults."""
    from onnxruntime.quantization import quantize_dynamic

    with quiet("root"):
        quantize_dynamic(path, out)


def _blocks(path: Path, out: Path, bits: int) -> None:
    """ONNX Runtime's own quantiser. Raises HybridkitError if there is nothing to quantise."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = onnx.load(str(path))
    with quiet("root"):
        quantizer = MatMulNBitsQuantizer(model, bits=bits, block_size=BLOCK, accuracy_level=ACCURACY_LEVEL)
        quantizer.process()
    if not any(node.op_type == "MatMulNBits" for node in quantizer.model.model.graph.node):
        raise HybridkitError("there is no MatMul with a constant weight")
    quantizer.model.save_model_to_file(str(out), use_external_data_format=False)


def _packed_blocks(path: Path, out: Path) -> None:
    """Packed products as MatMulNBits with the same codes, as the export target `matmulnbits` writes them."""
    from hybridkit.exporting import files
    from hybridkit.exporting.layout import make_row_major
    from hybridkit.exporting.matmulnbits import MatMulNBitsExporter

    model = load(path)
    make_row_major(model)
    MatMulNBitsExporter().lower(model)
    if not any(node.op_type == "MatMulNBits" for node in model.graph.all_nodes()):
        raise HybridkitError("the file has no packed matrix products")
    model.graph.opset_imports[MICROSOFT] = 1
    files.save(model, out)
