"""The ctypes binding: sizes are checked, C's messages arrive, and pools run what they are given."""

import ctypes
import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridkit.errors import FileError, UsageError
from hybridkit.packing.codecs import codec
from hybridkit.packing.tiles import tile
from hybridkit.runtime import native as binding
from hybridkit.runtime.native import Convolution, load

NATIVE = load()
CODECS = {"ternary": "two-bit", "binary": "one-bit"}
BITS = {"ternary": 2, "binary": 1}
needs_library = pytest.mark.skipif(NATIVE is None, reason="installed without the native library")
few = settings(max_examples=30, deadline=None)
kinds = st.sampled_from(["ternary", "binary"])


def layer(kind, N, K, seed=0):
    rng = np.random.default_rng(seed)
    found = codec(CODECS[kind])
    q = rng.choice(np.array(found.levels, np.int8), (N, K))
    return q, found.pack(q), rng.normal(size=N).astype(np.float32), rng.normal(size=N).astype(np.float32)


def test_no_library_is_none(monkeypatch):
    monkeypatch.setenv("HYBRIDKIT_LIBRARY", "none")
    assert load() is None


def test_a_file_that_is_no_library_gets_a_clear_error(monkeypatch, tmp_path):
    path = tmp_path / "libhybridkit.so"
    path.write_text("not a library")
    monkeypatch.setenv("HYBRIDKIT_LIBRARY", str(path))
    with pytest.raises(FileError, match=r"cannot load the native library .*HYBRIDKIT_LIBRARY=none"):
        load()


@pytest.mark.skipif(os.name != "posix", reason="finds the C library of POSIX systems")
def test_a_library_of_somebody_else_gets_a_clear_error(tmp_path):
    import _ctypes

    with pytest.raises(FileError, match=r"is not this version's native library"):
        binding.Native(_ctypes.__file__)


@needs_library
@pytest.mark.parametrize(("dense", "values"), [("sparse34", 256), ("base3", 243)])
@few
@given(
    st.sampled_from(NATIVE.isas if NATIVE else [""]),
    *(st.integers(1, n) for n in (5, 40, 200)),
    st.integers(0, 99),
)
def test_dense_codes_of_the_packing_codec(dense, values, isa, M, N, K, seed):
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, values, (N, codec(dense).row_bytes(K)), np.uint8)
    q = codec(dense).unpack(packed, K)
    x = rng.integers(-127, 128, (M, K)).astype(np.float32)
    x[:, 0] = 127  # so that the scale of activations is 1
    scale, bias = rng.normal(size=(2, N)).astype(np.float32)
    NATIVE.check(dense, 0, packed, N, K)
    with NATIVE.using_isa(isa):
        tiles = NATIVE.tile(dense, packed, K)
        y = NATIVE.matmul(x, tiles, scale, bias, codec=dense, activations="int8")
    np.testing.assert_array_equal(y, (x @ q.T.astype(np.float32)) * scale + bias)


@needs_library
class TestLibrary:
    def test_says_what_it_is(self):
        import hybridkit

        assert NATIVE.version == hybridkit.__version__
        assert NATIVE.isa in NATIVE.isas
        assert NATIVE.isas[-1] == "scalar"
        assert NATIVE.isa_warning is None or "HYBRIDKIT_ISA" in NATIVE.isa_warning

    def test_instruction_sets_switch_and_switch_back(self):
        before = NATIVE.isa
        for name in NATIVE.isas:
            with NATIVE.using_isa(name):
                assert NATIVE.isa == name
            assert NATIVE.isa == before
        with pytest.raises(UsageError, match="instruction set"):
            NATIVE.set_isa("abacus")
        assert NATIVE.isa == before

    def test_kernels_and_tasks(self):
        assert NATIVE.kernel("ternary", "int8", 256, 256, 1) == "stream"
        with NATIVE.using_isa(NATIVE.isas[0]):
            large = NATIVE.kernel("binary", "int8", 2560, 2560, 512)
            assert large == ("stream" if NATIVE.isa == "scalar" else "tile")
        assert NATIVE.kernel("nbit4", "int8", 256, 256, 1, 64) == "stream"
        assert NATIVE.kernel("nbit4", "float", 256, 256, 2, 64) == "tile"
        for name, size in (("nbit4", 0), ("nbit8", 24), ("ternary", 64)):
            with pytest.raises(UsageError, match="no product"):
                NATIVE.kernel(name, "int8", 256, 256, 1, size)
        assert NATIVE.tasks("ternary", "int8", 1, 1, 1) == 1
        assert NATIVE.tasks("ternary", "float", 2560, 2560, 128) > 1

    @few
    @given(kinds, st.integers(1, 50), st.integers(1, 100), st.integers(0, 99))
    def test_tiles_are_those_of_packing(self, kind, N, K, seed):
        _, codes, _, _ = layer(kind, N, K, seed)
        tiles = NATIVE.tile(kind, codes, K)
        assert np.array_equal(tiles, tile(codes, K, BITS[kind]))
        NATIVE.check(kind, 0, codes, N, K)
        NATIVE.check(kind, 1, tiles, N, K)

    @few
    @given(kinds, st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9))
    def test_tiles_of_convolutions_are_those_of_packing(self, kind, group, rows, channels, positions):
        N, K = group * rows, channels * positions
        _, codes, _, _ = layer(kind, N, K)
        tiles = NATIVE.conv_tile(kind, codes, K, group, positions)
        assert np.array_equal(tiles, tile(codes, K, BITS[kind], group=group, positions=positions))
        NATIVE.check_conv(kind, tiles, N, K, group)

    def test_wrong_codes_get_a_clear_error(self):
        _, codes, scale, bias = layer("ternary", 20, 30)
        tiles = NATIVE.tile("ternary", codes, 30)
        with pytest.raises(UsageError, match="another size"):
            NATIVE.check("ternary", 1, codes, 20, 30)
        with pytest.raises(UsageError, match="invalid ternary digit"):
            NATIVE.check("ternary", 0, codes | 3, 20, 30)
        with pytest.raises(UsageError, match="another size"):
            NATIVE.check_conv("ternary", tiles[:1], 20, 30, 1)
        with pytest.raises(UsageError, match="the ternary codes have 160 bytes, the layer's shape needs 256"):
            NATIVE.matmul(np.zeros((1, 30)), codes, scale, bias, codec="ternary", activations="int8")
        with pytest.raises(UsageError, match="must both be"):
            NATIVE.matmul(np.zeros((1, 30)), tiles, scale, bias[1:], codec="ternary", activations="int8")
        with pytest.raises(UsageError, match="no convolution of 3 groups"):
            NATIVE.conv_tile("ternary", codes, 30, 3, 1)
        with pytest.raises(UsageError, match="no convolution of 1 groups and 4 positions"):
            NATIVE.conv_tile("ternary", codes, 30, 1, 4)

    @few
    @given(kinds, st.integers(0, 5), st.integers(1, 40), st.integers(1, 70), st.integers(1, 3))
    def test_float_products(self, kind, M, N, K, threads):
        q, codes, scale, bias = layer(kind, N, K, M)
        x = np.random.default_rng(K).normal(size=(M, 1, K)).astype(np.float32)
        how = {"codec": kind, "activations": "float", "threads": threads}
        y = NATIVE.matmul(x, NATIVE.tile(kind, codes, K), scale, bias, **how)
        expected = (x.astype(float) @ q.T) * scale + bias
        bound = 1e-6 * (np.abs(x).sum(-1, keepdims=True) * np.abs(scale) + np.abs(bias) + 1)
        assert y.shape == (M, 1, N)
        assert (np.abs(y - expected) <= bound).all()

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_precision_is_computed_in_float32(self, dtype):
        _, codes, scale, bias = layer("ternary", 20, 30)
        tiles = NATIVE.tile("ternary", codes, 30)
        x = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float16)
        if dtype == "bfloat16":
            x = (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
            wide = (x.astype(np.uint32) << 16).view(np.float32)
        else:
            wide = x.astype(np.float32)
        how = {"codec": "ternary", "activations": "int8"}
        y = NATIVE.matmul(x, tiles, scale, bias, dtype=dtype, **how)
        full = NATIVE.matmul(wide, tiles, scale, bias, **how)
        if dtype == "bfloat16":
            y = (y.astype(np.uint32) << 16).view(np.float32)
            assert (np.abs(y - full) <= 2.0**-8 * np.abs(full)).all()
        else:
            assert np.array_equal(y, full.astype(np.float16))

    def test_convolutions_are_products_where_the_kernel_is_one_position(self):
        _, codes, scale, bias = layer("binary", 6, 5)
        x = np.random.default_rng(0).normal(size=(1, 5, 4)).astype(np.float32)
        geometry = Convolution.of(5, [4], [1], [1], [0, 0], [1], 1)
        how = {"codec": "binary", "activations": "float"}
        y = NATIVE.conv(x, NATIVE.conv_tile("binary", codes, 5, 1, 1), scale, bias, geometry, **how)
        rows = NATIVE.matmul(x[0].T, NATIVE.tile("binary", codes, 5), scale, bias, **how)
        assert np.allclose(y[0], rows.T, atol=1e-6)

    def test_wrong_geometries_get_a_clear_error(self):
        def shape(*arguments):
            return NATIVE.conv_shape(Convolution.of(*arguments), 4)

        assert shape(3, [8, 9], [3, 3], [2, 1], [1, 0, 1, 0], [1, 2], 1) == (4, 5)
        with pytest.raises(UsageError, match="larger than the padded input"):
            shape(3, [2], [3], [1], [0, 0], [1], 1)
        with pytest.raises(UsageError, match="not a multiple of group"):
            shape(3, [8], [3], [1], [0, 0], [1], 2)
        with pytest.raises(UsageError, match="as many numbers of each kind"):
            shape(3, [8, 8], [3], [1], [0, 0], [1], 1)
        with pytest.raises(UsageError, match="1 to 3 spatial axes"):
            shape(3, [], [], [], [], [], 1)


# what a 64-bit integer holds, what wraps around to a good number in one, and what no library counts with
HOSTILE = [-1, 2**31, 2**32 + 5, 2**63 - 1, 2**63, 2**64 + 5, 2**64 + 30, -(2**64) + 30, 30.0, "30", None]
hostile = st.sampled_from(HOSTILE)


@needs_library
class TestSizes:
    """Nothing is cut off to 64 bits, allocated or read before it is refused."""

    def layer(self):
        _, codes, scale, bias = layer("ternary", 20, 30)
        return codes, NATIVE.tile("ternary", codes, 30), scale, bias

    @few
    @given(hostile)
    def test_of_codes(self, size):
        codes, tiles, _, _ = self.layer()
        for call in (
            lambda: NATIVE.tile("ternary", codes, size),
            lambda: NATIVE.conv_tile("ternary", codes, size, 1, 1),
            lambda: NATIVE.conv_tile("ternary", codes, 30, size, 1),
            lambda: NATIVE.conv_tile("ternary", codes, 30, 1, size),
            lambda: NATIVE.check("ternary", 1, tiles, size, 30),
            lambda: NATIVE.check("ternary", 0, codes, 20, size),
            lambda: NATIVE.check_conv("ternary", tiles, size, 30, 1),
            lambda: NATIVE.check_conv("ternary", tiles, 20, size, 1),
            lambda: NATIVE.check_conv("ternary", tiles, 20, 30, size),
            lambda: NATIVE.kernel("ternary", "int8", size, 30, 1),
            lambda: NATIVE.kernel("ternary", "int8", 20, size, 1),
            lambda: NATIVE.tasks("ternary", "float", size, 30, 1),
            lambda: NATIVE.tasks("ternary", "float", 20, size, 1),
        ):
            with pytest.raises(UsageError):
                call()

    @few
    @given(st.sampled_from(["channels", "group", "size", "kernel", "stride", "dilation", "pad"]), hostile)
    def test_of_convolutions(self, field, value):
        def shape(channels=30, group=1, size=5, kernel=1, stride=1, dilation=1, pad=0):
            geometry = Convolution.of(channels, [size], [kernel], [stride], [pad, 0], [dilation], group)
            return NATIVE.conv_shape(geometry, 20)

        assert shape() == (5,)
        with pytest.raises(UsageError):
            shape(**{field: value})

    @pytest.mark.parametrize("value", [-1, 2**63, 1.5, "many"])
    def test_of_rows(self, value):
        with pytest.raises(UsageError, match="M must be"):
            NATIVE.tasks("ternary", "int8", 20, 30, value)
        assert NATIVE.tasks("ternary", "int8", 20, 30, 2**63 - 1) >= 1

    def test_of_no_matrix(self):
        for N, K in ((0, 30), (20, 0), (20, 2**22 + 1)):
            with pytest.raises(UsageError, match=f"no product of 1 rows with a matrix .{N}, {K}."):
                NATIVE.kernel("ternary", "int8", N, K, 1)

    def test_of_threads(self):
        assert NATIVE.parallel(2**32 + 1) == NATIVE.parallel(1024)

    def test_x_has_columns(self):
        _, tiles, scale, bias = self.layer()
        how = {"codec": "ternary", "activations": "int8"}
        with pytest.raises(UsageError, match=r"x must have the shape \[\.\.\., K\], got \[\]"):
            NATIVE.matmul(np.float32(1), tiles, scale, bias, **how)
        for columns in (0, 16, 33, 2**22, 2**22 + 1):  # with no rows, so that x is small
            with pytest.raises(UsageError, match="codes have 256 bytes"):
                NATIVE.matmul(np.zeros((0, columns)), tiles, scale, bias, **how)

    def test_a_group_of_none_and_a_geometry_of_another_input(self):
        _, tiles, scale, bias = self.layer()
        how = {"codec": "ternary", "activations": "int8"}
        geometry = Convolution.of(30, [5], [1], [1], [0, 0], [1], 0)
        with pytest.raises(UsageError, match="not a multiple of group"):
            NATIVE.conv(np.zeros((1, 30, 5)), tiles, scale, bias, geometry, **how)
        geometry = Convolution.of(30, [6], [1], [1], [0, 0], [1], 1)
        with pytest.raises(UsageError, match="geometry is of another input"):
            NATIVE.conv(np.zeros((1, 30, 5)), tiles, scale, bias, geometry, **how)
        geometry.axes = 7
        with pytest.raises(UsageError, match="1 to 3 spatial axes"):
            NATIVE.conv(np.zeros((1, 30, 5)), tiles, scale, bias, geometry, **how)

    def test_padding_beyond_measure(self):
        geometry = Convolution.of(30, [5], [1], [1], [2**30, 2**30], [1], 1)
        with pytest.raises(UsageError, match="the padding makes the input too large"):
            NATIVE.conv_shape(geometry, 20)

    @pytest.mark.parametrize("activations", ["int8", "float"])
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize(("batch", "size"), [(0, 4), (2, 0), (0, 0)])
    def test_empty_images(self, activations, dtype, batch, size):
        codes, _, scale, bias = self.layer()
        geometry = Convolution.of(10, [size], [3], [1], [2, 2], [1], 1)
        tiles, x = NATIVE.conv_tile("ternary", codes, 30, 1, 3), np.zeros((batch, 10, size), dtype)
        y = NATIVE.conv(
            x, tiles, scale, bias, geometry, codec="ternary", activations=activations, dtype=dtype
        )
        assert np.array_equal(y, np.broadcast_to(bias.astype(dtype)[:, None], (batch, 20, size + 2)))


TASK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t)


class Parallel(ctypes.Structure):
    _fields_ = (
        ("run", ctypes.CFUNCTYPE(None, ctypes.c_void_p, TASK, ctypes.c_void_p, ctypes.c_size_t)),
        ("pool", ctypes.c_void_p),
    )


def tasks_run(threads, count):
    """The numbers of the tasks that a pool ran, and how many threads ran them."""
    pool = Parallel.from_address(NATIVE.parallel(threads))
    seen, by = [], set()

    def task(_, index):
        seen.append(index)
        by.add(threading.get_ident())

    pool.run(pool.pool, TASK(task), None, count)
    return sorted(seen), len(by)


@needs_library
class TestPool:
    def test_one_thread_needs_none(self):
        assert NATIVE.parallel(1) is None
        assert NATIVE.parallel(0) is None

    @pytest.mark.parametrize("threads", [2, 3, 8])
    @pytest.mark.parametrize("count", [0, 1, 2, 100])
    def test_runs_every_task_once(self, threads, count):
        seen, by = tasks_run(threads, count)
        assert seen == list(range(count))
        assert by <= threads

    def test_serves_several_callers(self):
        found = []

        def caller():
            found.extend(tasks_run(2, 50)[0] == list(range(50)) for _ in range(10))

        callers = [threading.Thread(target=caller) for _ in range(4)]
        for thread in callers:
            thread.start()
        for thread in callers:
            thread.join()
        assert found == [True] * 40

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_a_forked_child_has_workers(self):
        tasks_run(2, 10)
        child = os.fork()
        if child == 0:
            os._exit(0 if tasks_run(2, 100)[0] == list(range(100)) else 1)
        assert os.waitpid(child, 0)[1] == 0
