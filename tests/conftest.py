"""What every test runs in: workers share the processor, and what is the same for all is made once."""

import copy
import functools
import gc
import os

import pytest

# Before torch is imported: processes that each take all cores stand in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish():
    """Every export collects garbage; among what the tests' modules imported there is none to look for."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _small_last_cache(monkeypatch):
    """Runs with cold caches read a megabyte before each, not the hundreds that some machines report."""
    from hybridkit.bench import latency

    monkeypatch.setattr(latency, "last_cache_bytes", lambda: 1 << 20)


@pytest.fixture(autouse=True, scope="session")
def _one_table_of_operators():
    """Every export makes torch's table of all operators anew: half a second, and always the same."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    made = functools.cache(ONNXRegistry.from_torchlib)

    def copied(**version):
        registry = copy.copy(made(**version))
        known = registry.functions.items()
        registry.functions = {name: list(each) for name, each in known}  # an export adds its own
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(copied))
        yield
