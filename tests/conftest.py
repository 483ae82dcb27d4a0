"""What every test runs in: workers share the processor, and a server's last cache is not read for each."""

import os

import pytest

# Before torch is imported: processes that each take all cores stand in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _small_last_cache(monkeypatch):
    """Runs with cold caches read a megabyte before each, not the hundreds that some machines report."""
    from hybridkit.bench import latency

    monkeypatch.setattr(latency, "last_cache_bytes", lambda: 1 << 20)
