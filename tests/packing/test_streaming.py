"""Writing layer by layer: memory is bounded, and nothing half-written is ever seen."""

import numpy as np
import pytest

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.atomic import atomic_file
from hybridkit.packing.model import (
    LayerSource,
    LayerSpec,
    ModelSource,
    PackedLayer,
    PackedModel,
    TensorSource,
    TensorSpec,
    write_packed,
)

LAYERS, N, K = 12, 512, 2048


def spec(index):
    return LayerSpec(name=f"l{index}", kind="linear", codec="nbit8", shape=(N, K), bits=8, activations="int8")


def produce(index):
    codes = np.full((N, K), index, np.uint8)
    return PackedLayer(**vars(spec(index)), codes=codes, scale=np.ones(N, np.float32))


def streamed():
    layers = [LayerSource(spec(i), lambda i=i: produce(i)) for i in range(LAYERS)]
    tensor = TensorSource(TensorSpec.of(np.float32, (N, K)), lambda: np.zeros((N, K), np.float32))
    return ModelSource(layers, {"t": tensor}, {}, {"task": "streaming"})


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_memory_is_bounded_by_the_largest_layer(peak_memory, tmp_path, compress):
    path = tmp_path / "model"
    with peak_memory() as peak:
        write_packed(path, streamed(), compress=compress)
    largest = 4 * N * K  # the fp32 tensor
    assert peak() < 1.5 * largest + (4 << 20)
    model = PackedModel.load(path)
    assert [int(layer.codes[0, 0]) for layer in model.layers.values()] == list(range(LAYERS))
    assert model.metadata == {"task": "streaming"}


def test_streamed_equals_saved(tmp_path):
    write_packed(tmp_path / "streamed", streamed())
    layers = {f"l{i}": produce(i) for i in range(LAYERS)}
    PackedModel(layers, {"t": np.zeros((N, K), np.float32)}, {}, {"task": "streaming"}).save(
        tmp_path / "saved"
    )
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "saved").read_bytes()


def test_content_that_breaks_its_promise_leaves_no_file(tmp_path):
    (tmp_path / "model").write_bytes(b"old")
    wrong_layer = ModelSource([LayerSource(spec(0), lambda: produce(1))])
    with pytest.raises(UsageError, match="'l0' was packed differently"):
        write_packed(tmp_path / "model", wrong_layer)
    wrong_tensor = ModelSource(
        [], {"t": TensorSource(TensorSpec("F32", (2,)), lambda: np.ones(3, np.float32))}
    )
    with pytest.raises(UsageError, match=r"t became float32 \[3\], not float32 \[2\]"):
        write_packed(tmp_path / "model", wrong_tensor)

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_packed(tmp_path / "model", ModelSource([LayerSource(spec(0), interrupt)]))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model").read_bytes() == b"old"


def test_atomic_file_replaces_only_when_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileError, match=r"cannot write .*No such file"):
        PackedModel({}).save(tmp_path / "nowhere" / "model")
    with pytest.raises(FileError, match="cannot write"):
        PackedModel({}).save(tmp_path / "nowhere" / "model", "zstd")
    (tmp_path / "taken").mkdir()
    with pytest.raises(FileError, match="cannot write"):
        PackedModel({}).save(tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
