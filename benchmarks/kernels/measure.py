"""One process of the kernel bench: measures what its plan says and prints a line of JSON for each finding.

run.py starts several of them, because memory lies differently in each.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ggml
import kernel
import layers
import limits
from timed import Net, OrtRun, Timed, compare, ort_session

from hybridkit.runtime.native import Native, load

COLD_BYTES = 256 << 20  # of distinct weights in turn; and at least 4 times the last cache
GGML, ALONE, ALONE_HUGE = "ggml TQ2_0", "kernel alone", "kernel alone, huge pages"
MODES = {p.name: p.mode for p in layers.PEERS if p.mode} | dict.fromkeys((ALONE, ALONE_HUGE), "int8")


@dataclass(frozen=True)
class Plan:
    """Shapes (N, K), rows M, threads; which shapes are measured cold, too; rounds and seconds of one."""

    shapes: Sequence[tuple[int, int]]
    cold: Sequence[tuple[int, int]]
    rows: Sequence[int]
    threads: Sequence[int]
    rounds: int
    budget: float


@dataclass(frozen=True)
class Sample:
    """Seconds of one product, without `call`, which is what the host's own call takes for each product.

    kernel, tasks: which kernel of ours ran, and into how many parallel tasks it was cut.
    """

    peer: str
    n: int
    k: int
    m: int
    threads: int
    cold: bool
    seconds: float
    call: float
    kernel: str = ""
    tasks: int = 0


def measure(plan: Plan) -> Iterator[dict[str, Any]]:
    """Samples, and things to know about the process: its limits and what is on its machine."""
    native = load()
    if native is None:
        raise SystemExit("the native library is missing: build it, or name it in HYBRIDKIT_LIBRARY")
    isa = "avx2" if native.isa == "scalar" else native.isa
    peer = ggml.load(isa)
    yield {
        "isa": native.isa,
        "isas": native.isas,
        "ggml": None if peer is None else f"of {ggml.PACKAGE} {ggml.VERSION}, built for {isa}",
        "caches": asdict(limits.this_machines_caches()),
        "pages": "4 KiB",
        "limits": [asdict(limits.measure(isa, threads)) for threads in plan.threads],
    }
    for shape in plan.shapes:
        for threads in plan.threads:
            bench = _Shape(native, peer, shape, threads, plan)
            yield from map(asdict, bench.warm())
            if shape in plan.cold:
                yield {"pages": bench.pages()}
                yield from map(asdict, bench.cold())


class _Shape:
    """All peers at one shape and number of threads."""

    def __init__(self, native: Native, peer: Any, shape: tuple[int, int], threads: int, plan: Plan) -> None:
        self.native, (self.n, self.k), self.threads, self.plan = native, shape, threads, plan
        self.ggml = peer if self.k % ggml.BLOCK == 0 else None

    def warm(self) -> Iterator[Sample]:
        """The same layer again and again."""
        with ExitStack() as stack:
            sessions = {peer.name: self._session(peer, 1) for peer in layers.PEERS}
            empty = ort_session(layers.nothing(1), self.threads)
            alone, weights = self._alone(stack, 1), self._weights(stack, 1)
            for m in self.plan.rows:
                with ExitStack() as graphs:
                    timed: dict[str, Timed] = {
                        name: Net(OrtRun(session, m), OrtRun(empty, m)) for name, session in sessions.items()
                    }
                    timed[ALONE] = alone.products(m, self.threads)
                    self._add_ggml(graphs, weights, m, timed)
                    yield from self._samples(timed, m, cold=False)

    def cold(self) -> Iterator[Sample]:
        """One row, and layer after layer from memory."""
        with ExitStack() as stack:
            timed: dict[str, Timed] = {}
            for peer in layers.PEERS:
                copies = self._copies(peer.weight_bytes(self.n, self.k))
                empty = ort_session(layers.nothing(copies), self.threads)
                timed[peer.name] = Net(OrtRun(self._session(peer, copies), 1), OrtRun(empty, 1))
            copies = self._copies(kernel.code_bytes("ternary", self.n, self.k))
            for name, huge in ((ALONE, False), (ALONE_HUGE, True)):
                timed[name] = self._alone(stack, copies, huge).products(1, self.threads)
            self._add_ggml(stack, self._weights(stack, copies), 1, timed)
            yield from self._samples(timed, 1, cold=True)

    def pages(self) -> str:
        """On which pages ONNX Runtime has the codes of our layers."""
        copies = self._copies(kernel.code_bytes("ternary", self.n, self.k)) // 4
        before = _huge_bytes()
        session = self._session(layers.OURS, copies)
        risen = _huge_bytes() - before
        del session
        return "2 MiB" if 2 * risen > copies * self.n * self.k // 4 else "4 KiB"

    def _session(self, peer: layers.Peer, copies: int) -> Any:
        model = layers.model(peer, self.n, self.k, copies)
        return ort_session(model, self.threads, native=peer.mode is not None)

    def _alone(self, stack: ExitStack, copies: int, huge: bool = True) -> kernel.Layer:
        kind = {"codec": "ternary", "mode": "int8", "copies": copies, "huge": huge}
        return stack.enter_context(closing(kernel.Layer(self.native, self.n, self.k, **kind)))

    def _weights(self, stack: ExitStack, copies: int) -> ggml.Weights | None:
        if self.ggml is None:
            return None
        return stack.enter_context(closing(ggml.Weights(self.ggml, self.n, self.k, copies)))

    def _add_ggml(
        self, stack: ExitStack, weights: ggml.Weights | None, m: int, timed: dict[str, Timed]
    ) -> None:
        if weights is None:
            return
        products = stack.enter_context(closing(weights.products(m, self.threads)))
        nothing = stack.enter_context(closing(ggml.nothing(self.ggml, weights.copies, self.threads)))
        timed[GGML] = Net(products, nothing)

    def _copies(self, size: int) -> int:
        return -(-max(COLD_BYTES, 4 * limits.this_machines_caches().l3) // size)

    def _samples(self, timed: Mapping[str, Timed], m: int, *, cold: bool) -> Iterator[Sample]:
        found = compare(timed, rounds=self.plan.rounds, budget=self.plan.budget)
        sizes = self.n, self.k, m
        for name, one in timed.items():
            call = one.call if isinstance(one, Net) else 0.0
            ours: tuple[Any, ...] = ()
            if name in MODES:
                kind: Any = ("ternary", MODES[name])
                ours = self.native.kernel(*kind, *sizes), self.native.tasks(*kind, *sizes)
            net, call = found[name] / one.products, call / one.products
            yield Sample(name, *sizes, self.threads, cold, net, call, *ours)


def _huge_bytes() -> int:
    """In use by this process on huge pages; 0 where the system does not say."""
    with contextlib.suppress(AttributeError):  # freed memory may lie on huge pages, too; glibc alone keeps it
        ctypes.CDLL(None).malloc_trim(0)
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("AnonHugePages:"))


def main() -> None:
    """The plan is the one argument, as JSON."""
    given = json.loads(sys.argv[1])
    given |= {name: [tuple(shape) for shape in given[name]] for name in ("shapes", "cold")}
    for finding in measure(Plan(**given)):
        print(json.dumps(finding), flush=True)


if __name__ == "__main__":
    main()
