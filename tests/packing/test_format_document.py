"""docs/packed-format.md shows a file byte for byte; this writes the same file."""

from dataclasses import fields
from pathlib import Path

import numpy as np

from hybridkit.packing.codecs import CODECS, bits_of, codec
from hybridkit.packing.model import PackedLayer, PackedModel
from hybridkit.packing.table import DICTIONARY, FORMAT, GATHERED, VERSION, Table, _Row

DOCUMENT = Path(__file__).parents[2] / "docs" / "packed-format.md"


def example() -> PackedModel:
    """The model of the document's worked example."""
    codes = np.array([[-1, 0, 1, 1, 0], [1, 1, 0, -1, -1]], np.int8)
    layer = PackedLayer(
        name="fc",
        kind="linear",
        codec="two-bit",
        shape=(2, 5),
        bits=bits_of((-1, 0, 1)),
        activations="int8",
        quantizer="ternary-absmean",
        codes=codec("two-bit").pack(codes),
        scale=np.array([0.5, 0.25], np.float32),
    )
    inputs = [{"name": "x", "shape": [1, 5], "dtype": "float32"}]
    return PackedModel({"fc": layer}, {"fc.bias": np.array([1, -2], np.float32)}, {}, {"inputs": inputs})


def hex_dump(content: bytes) -> list[str]:
    """Offset, 16 bytes, and the characters that print."""
    lines = []
    for start in range(0, len(content), 16):
        row = content[start : start + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        lines.append(f"{start:04x}  {row.hex(' '):<47}  |{text}|")
    return lines


def block(kind: str) -> list[str]:
    """The lines of the document's fenced block of this kind."""
    lines = DOCUMENT.read_text().splitlines()
    start = lines.index(f"```{kind}") + 1
    return lines[start : lines.index("```", start)]


def test_the_worked_example(tmp_path):
    path = tmp_path / "example.hk.safetensors"
    example().save(path)
    assert hex_dump(path.read_bytes()) == block("hexdump")


def test_the_dump_in_the_document_is_a_model(tmp_path):
    content = b"".join(bytes.fromhex(line[6:53]) for line in block("hexdump"))
    (tmp_path / "model").write_bytes(content)
    layer = PackedModel.load(tmp_path / "model").layers["fc"]
    assert layer.dequantize().tolist() == [[-0.5, 0, 0.5, 0.5, 0], [0.25, 0.25, 0, -0.25, -0.25]]


def test_the_document_names_everything():
    text = DOCUMENT.read_text()
    for name in (
        *CODECS,
        FORMAT,
        f"`version` | `{VERSION}`",
        "sha256",
        GATHERED,
        *(f"`{part.name}`" for part in fields(Table)),
    ):
        assert name in text
    for field in fields(_Row):
        assert f"| `{field.name}` |" in text
    assert "".join(block("text")).encode() == DICTIONARY


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        example().save(f"{folder}/example")
        print("\n".join(hex_dump(Path(f"{folder}/example").read_bytes())))
