"""Truncated, corrupted, foreign and hostile files: always one FileError, never another model."""

import base64
import hashlib
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.errors import FileError
from hybridkit.packing.digests import digests, hash_field, sign
from hybridkit.packing.model import PackedModel
from hybridkit.packing.table import DICTIONARY


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


VERSION_1 = Path(__file__).with_name("data") / "version-1.packed"  # the example, by the writer of version 1


@pytest.fixture(scope="module")
def good_1():
    return VERSION_1.read_bytes()


@pytest.fixture(scope="module")
def good_2(example_model, folder):
    example_model.save(folder / "good")
    return (folder / "good").read_bytes()


@pytest.fixture(scope="module", params=[1, 2])
def good(request):
    return request.getfixturevalue(f"good_{request.param}")


def test_files_of_version_1_load_for_ever(known_to_1, same):
    same(PackedModel.load(VERSION_1), known_to_1)
    same(PackedModel.load(VERSION_1.with_suffix(".packed.zst")), known_to_1)


@pytest.fixture(scope="module")
def good_zstd(example_model, folder):
    example_model.save(folder / "good.zst", "zstd")
    return (folder / "good.zst").read_bytes()


def load(folder, content):
    path = folder / "damaged.hk.safetensors"
    path.write_bytes(content)
    return PackedModel.load(path)


def assert_refused(folder, content, match=None):
    with pytest.raises(FileError, match=match) as caught:
        load(folder, content)
    assert "\n" not in str(caught.value)
    assert "damaged.hk.safetensors" in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_noticed(good, folder, data):
    position = data.draw(st.integers(0, len(good) - 1))
    damaged = bytearray(good)
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    assert_refused(folder, bytes(damaged))


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_truncated_or_extended_file_is_noticed(good, folder, data):
    cut = data.draw(st.integers(0, len(good) - 1))
    assert_refused(folder, good[:cut])
    assert_refused(folder, good + data.draw(st.binary(min_size=1, max_size=20)))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_overwritten_stretches_are_noticed(good, folder, data):
    start = data.draw(st.integers(0, len(good) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=40))
    damaged = good[:start] + junk + good[start + len(junk) :]
    if damaged != good:
        assert_refused(folder, damaged)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_compression_never_gives_another_model(example_model, same, good_zstd, folder, data):
    damaged = bytearray(good_zstd)
    position = data.draw(st.integers(0, len(damaged) - 1))
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    try:
        model = load(folder, bytes(damaged[:cut]))
    except FileError:
        return
    same(model, example_model)  # a bit that carries nothing


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused(folder, content):
    assert_refused(folder, content)


def test_files_of_another_kind(folder, tmp_path):
    with pytest.raises(FileError, match="No such file"):
        PackedModel.load(tmp_path / "missing")
    with pytest.raises(FileError, match="directory"):
        PackedModel.load(tmp_path)
    assert_refused(folder, b"", "truncated")
    assert_refused(folder, b"PK\x03\x04 some zip archive", "not a safetensors file")
    plain = safetensors.numpy.save({"w": np.ones(3, np.float32)})
    assert_refused(folder, plain, "a plain safetensors file; make a packed one")


def test_header_lengths_beyond_the_file_or_all_bounds(good, folder):
    assert_refused(folder, struct.pack("<Q", 1 << 62) + good[8:], "not a safetensors file")
    assert_refused(folder, struct.pack("<Q", 99_999_999) + good[8:], "truncated")


def edited(good, edit):
    """A file of version 1 with its header changed by `edit(header, metadata, data)` and all hashes right."""
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    data = good[8 + length :]
    metadata = header["__metadata__"]
    for table in ("layers", "tied", "metadata", "hashes"):
        metadata[table] = json.loads(metadata[table])
    data = edit(header, metadata, data) or data
    for table in ("layers", "tied", "metadata", "hashes"):
        if table in metadata and not isinstance(metadata[table], str):
            metadata[table] = json.dumps(metadata[table])
    metadata["sha256"] = "0" * 64
    return signed(json.dumps(header, separators=(",", ":")).encode()) + data


def signed(text):
    raw = struct.pack("<Q", len(text)) + text
    digest = hashlib.sha256(raw).hexdigest().encode()
    return raw.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + digest)


def test_an_edit_with_right_hashes_is_a_valid_file(good_1, folder, known_to_1, same):
    same(load(folder, edited(good_1, lambda header, metadata, data: None)), known_to_1)


def set_row(**fields):
    def edit(header, metadata, data):
        metadata["layers"][3] |= fields

    return edit


def set_entry(name, **fields):
    def edit(header, metadata, data):
        header[name] |= fields

    return edit


def drop_metadata(name):
    def edit(header, metadata, data):
        del metadata[name]

    return edit


def set_metadata(**fields):
    def edit(header, metadata, data):
        metadata |= fields

    return edit


def bad_code(header, metadata, data):
    begin, end = header["fc.weight.codes"]["data_offsets"]
    content = b"\xff" + data[begin + 1 : end]
    metadata["hashes"]["fc.weight.codes"] = hashlib.sha256(content).hexdigest()
    return data[:begin] + content + data[end:]


def infinite_scale(header, metadata, data):
    begin, end = header["fc.weight.scale"]["data_offsets"]
    content = struct.pack("<f", float("inf")) + data[begin + 4 : end]
    metadata["hashes"]["fc.weight.scale"] = hashlib.sha256(content).hexdigest()
    return data[:begin] + content + data[end:]


def duplicate_layer(header, metadata, data):
    metadata["layers"].append(metadata["layers"][0])


def forget_hash(header, metadata, data):
    del metadata["hashes"]["fc.bias"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (set_metadata(version="3"), "format version '3', this hybridkit reads 1 and 2; upgrade"),
        (set_metadata(version="9" * 1000), "format version '9"),
        (drop_metadata("version"), "no field 'version'"),
        (drop_metadata("layers"), "no field 'layers'"),
        (drop_metadata("metadata"), "no field 'metadata'"),
        (set_metadata(layers="[" * 5000), "table of layers is malformed"),
        (set_metadata(metadata="[" * 5000), "metadata is not valid JSON"),
        (set_metadata(metadata='{"a": NaN}'), "metadata is not valid JSON"),
        (set_metadata(metadata="3"), "metadata is not a JSON object"),
        (set_metadata(hashes='{"a": 3}'), "table of hashes is malformed"),
        (set_metadata(tied='{"a": "b"}'), "'a' is tied to 'b'"),
        (set_metadata(extra=3), "metadata of its header are not strings"),
        (set_row(kind="lstm"), "table of layers is malformed"),
        (set_row(codec="three-bit"), "no codec is called"),
        (set_row(surprise=1), "table of layers is malformed"),
        (set_row(shape=[3, 70]), r"fc.weight.codes is uint8 \[3, 2\], not uint8 \[3, 18\]"),
        (set_row(shape=[3, -7]), "not the shape"),
        (set_row(shape=["3", 7]), "table of layers is malformed"),
        (set_row(group_size=4), r"fc.weight.scale is float32 \[3\], not float32 \[3, 2\]"),
        (set_row(bits=True), "table of layers is malformed"),
        (set_row(zeros=2), "zeros, its table says 2"),
        (set_row(name="other"), "'other.weight.codes' is missing"),
        (set_entry("fc.weight.scale", dtype="I32"), "not float32"),
        (set_entry("fc.weight.scale", dtype="F8_E4M3"), "a type that packed models do not use"),
        (set_entry("fc.weight.scale", dtype=[]), "a type that packed models do not use"),
        (set_entry("fc.weight.scale", shape=[4]), "offsets that do not fit its shape"),
        (set_entry("fc.weight.scale", shape=[True, 3]), "malformed shape"),
        (set_entry("fc.weight.scale", shape=[-3, -1]), "malformed shape"),
        (set_entry("fc.weight.scale", data_offsets=[0, 12]), "overlaps another or leaves a gap"),
        (set_entry("fc.weight.scale", data_offsets=[10**6, 10**6 + 12]), "overlaps another or leaves a gap"),
        (set_entry("fc.weight.scale", data_offsets=[0]), "malformed shape or offsets"),
        (set_entry("fc.weight.scale", extra=0), "is malformed"),
        (set_entry("nothing", shape=[0, 1 << 61, 1 << 61]), "beyond all bounds"),
        (set_entry("nothing", shape=[0] * 100), "beyond all bounds"),
        (bad_code, "the byte 0xff"),
        (infinite_scale, "not finite"),
        (duplicate_layer, "'embed.weight.codes' is missing"),
        (forget_hash, "table of hashes does not fit"),
    ],
)
def test_consistent_but_impossible_files(good_1, folder, edit, message):
    assert_refused(folder, edited(good_1, edit), message)


def edited_2(good, edit):
    """A file of version 2 after `edit(header, table, data)`, with all hashes right."""
    length = int.from_bytes(good[:8], "little")
    header, data = json.loads(good[8 : 8 + length]), good[8 + length :]
    unfold = zlib.decompressobj(15, DICTIONARY)
    table = json.loads(unfold.decompress(base64.b85decode(header["__metadata__"]["table"])))
    found = edit(header, table, data)
    data = found if isinstance(found, bytes) else data
    metadata = header["__metadata__"]
    if "table" in metadata and not isinstance(found, str):
        fold = zlib.compressobj(zdict=DICTIONARY)
        text = table if isinstance(table, bytes) else json.dumps(table).encode()
        metadata["table"] = base64.b85encode(fold.compress(text) + fold.flush()).decode()
    metadata["sha256"] = value = hash_field(digests([data]))
    text = json.dumps(header, separators=(",", ":")).encode()
    return sign(struct.pack("<Q", len(text)) + text, value) + data


def row_2(**fields):
    def edit(header, table, data):
        table["layers"][3] |= fields

    return edit


def table_2(**fields):
    def edit(header, table, data):
        table |= fields

    return edit


def raw_table(text):
    def edit(header, table, data):
        header["__metadata__"]["table"] = text
        return "as it is"

    return edit


def bad_code_2(header, table, data):
    return data.replace(bytes(CODES), b"\xff" + bytes(CODES)[1:])


def infinite_scale_2(header, table, data):
    return data.replace(SCALE, struct.pack("<f", float("nan")) + SCALE[4:])


def drop_table(header, table, data):
    del header["__metadata__"]["table"]


def another_entry(header, table, data):
    header[".small"]["dtype"] = "I8"


@pytest.fixture(scope="module", autouse=True)
def content_of_fc(example_model):
    global CODES, SCALE
    CODES, SCALE = (array.tobytes() for array in example_model.layers["fc"].arrays())


def test_an_edit_of_version_2_is_a_valid_file(good_2, folder, example_model, same):
    same(load(folder, edited_2(good_2, lambda header, table, data: None)), example_model)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (drop_table, "no field 'table'"),
        (raw_table("!"), "table is corrupted"),
        (raw_table("é"), "table is corrupted"),
        (raw_table(""), "table is corrupted"),
        (raw_table(base64.b85encode(zlib.compress(b"{}")).decode()), "table|fit"),
        (table_2(tied={"a": "b"}), "'a' is tied to 'b'"),
        (table_2(tied=3), "table is malformed"),
        (table_2(surprise=3), "table is malformed"),
        (table_2(metadata=[]), "table is malformed"),
        (table_2(tensors={"a": ["F32"]}), "table is malformed"),
        (table_2(tensors={"a": ["F8", []]}), "a type that packed models do not use"),
        (table_2(tensors={"a": ["F32", [-1]]}), "malformed shape"),
        (table_2(tensors={"a": ["F32", [1 << 62]]}), "beyond all bounds"),
        (table_2(tensors={}), "header does not fit its table"),
        (row_2(kind="lstm"), "table is malformed"),
        (row_2(codec="three-bit"), "no codec is called"),
        (row_2(surprise=1), "table is malformed"),
        (row_2(shape=[3, 70]), "header does not fit its table"),
        (row_2(shape=[3, -7]), "not the shape"),
        (row_2(shape=["3", 7]), "table is malformed"),
        (row_2(shape=[1 << 62, 1 << 62]), "fit|bounds"),
        (row_2(group_size=4), "header does not fit its table"),
        (row_2(bits=True), "table is malformed"),
        (row_2(scale="F64"), "table is malformed"),
        (row_2(scale="F16"), "header does not fit its table"),
        (row_2(name="conv"), "header does not fit its table"),
        (another_entry, "header does not fit its table"),
        (bad_code_2, "the byte 0xff"),
        (infinite_scale_2, "not finite"),
        (lambda header, table, data: data[:-1], "truncated"),
    ],
)
def test_consistent_but_impossible_files_of_version_2(good_2, folder, edit, message):
    assert_refused(folder, edited_2(good_2, edit), message)


def test_a_table_that_unfolds_without_end_is_refused(good_2, folder, peak_memory, monkeypatch):
    monkeypatch.setattr("hybridkit.packing.table.MAX_HEADER", 1 << 20)
    fold = zlib.compressobj(9, zdict=DICTIONARY)
    bomb = base64.b85encode(fold.compress(b" " * (64 << 20)) + fold.flush()).decode()
    with peak_memory() as peak:
        assert_refused(folder, edited_2(good_2, raw_table(bomb)), "longer than any")
    assert peak() < 8 << 20


def test_content_is_checked_before_it_is_handed_out(folder, tmp_path):
    """Blocks are hashed when they are first asked for: a wrong one is met by what lies in it alone."""
    tensors = {name: np.full(3 << 18, i, np.float32) for i, name in enumerate("abc")}  # three blocks each
    PackedModel({}, tensors).save(tmp_path / "good")
    content = bytearray((tmp_path / "good").read_bytes())
    content[-1] ^= 1
    (tmp_path / "bad").write_bytes(content)
    model = PackedModel.open(tmp_path / "bad")
    assert np.array_equal(model.tensors["a"], tensors["a"])
    assert np.array_equal(model.tensors["b"], tensors["b"])
    with pytest.raises(FileError, match="'c' does not match its SHA-256"):
        model.tensors["c"]
    with pytest.raises(FileError, match="bad is not a usable packed model: tensor 'c'"):
        model.verify()
    with pytest.raises(FileError, match="'c' does not match"):
        PackedModel.load(tmp_path / "bad")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a":1,"a":1}', "not valid JSON"),
        (b'{"a":' + b"[" * 100_000, "not valid JSON"),
        (b'{"\xff":1}', "not valid JSON"),
        (b"[]", "not a safetensors file"),
        (b"{}", "plain safetensors"),
        (b'{"__metadata__":[]}', "not strings"),
        (b'{"a":{"dtype":"U8","shape":[99999999],"data_offsets":[0,99999999]}}', "plain safetensors"),
    ],
)
def test_headers_that_are_no_headers(folder, text, message):
    assert_refused(folder, struct.pack("<Q", len(text)) + text, message)


def test_a_declared_size_beyond_the_file_allocates_nothing(folder):
    entry = {"dtype": "U8", "shape": [1 << 50], "data_offsets": [0, 1 << 50]}
    metadata = {"format": "hybridkit.packed", "version": "1", "sha256": "0" * 64}
    text = json.dumps({"__metadata__": metadata, "a": entry}, separators=(",", ":")).encode()
    assert_refused(folder, signed(text), "truncated")
