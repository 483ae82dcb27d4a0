"""faiss for hybridkit: describes the clusterer, imports nothing heavy."""

from __future__ import annotations

from hybridkit import Strategy, hookimpl


@hookimpl
def hybridkit_strategies() -> list[Strategy]:
    """Return the clusterer."""
    return [
        Strategy(
            kind="clusterer",
            name="faiss-kmeans",
            summary="Lloyd's k-means on faiss, for large data",
            target="hybridkit_faiss.clusterer:FaissKMeans",
        )
    ]
