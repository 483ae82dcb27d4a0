"""What each component gives in a short trial, to the bit: `python tests/golden/components.py --write`.

Stored trials of the bench are known by the versions of their components (bench/convergence/identity.py), so
that whoever changes what a component computes must raise its `version`. Each trial here differs from a plain
one in its component alone. `--write` refuses numbers that changed under the same version.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trainings import SAME_KERNELS, digest, maker, torch_folder, write_down, written_down

GOLDEN = Path(__file__).with_name("components.json")
RIVALS = "hybridkit.bench.convergence.rivals"
LONG_TAILED = "hybridkit.bench.convergence.longtail:fashion_mnist_long_tailed"
TASKS = ("digits", "fashion-mnist", LONG_TAILED, "text")
QAT = {"qat": True, "ternary": True}
# kind and name of the component: flags of `train`, options of strategies
TRIALS: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any]]] = {
    ("trainer", "Trainer"): (QAT, {}),
    ("hybrid optimizer", "HybridOptimizer"): ({"hybrid": True, "optimizer": "adamw"}, {}),
    ("optimizer", "adamw"): ({}, {}),
    ("optimizer", "muon"): ({}, {}),
    ("optimizer", "sgd"): ({}, {}),
    ("optimizer", "steepest"): ({}, {}),
    ("optimizer", f"{RIVALS}:ScheduleFree"): ({}, {}),
    ("optimizer", f"{RIVALS}:Prodigy"): ({}, {}),
    ("optimizer", f"{RIVALS}:Clipped"): ({}, {"optimizer": {"mode": "adaptive", "limit": 0.1}}),
    ("lr_controller", "cosine"): ({}, {}),
    ("lr_controller", "wsd"): ({}, {}),
    ("lr_controller", "relative-step"): ({}, {}),
    ("lr_controller", "aux-nn"): ({}, {}),
    ("constraint", "l2"): ({"initial_trust_radius": 1e-3}, {}),
    ("constraint", "per-cluster"): ({"initial_trust_radius": 1e-3}, {}),
    ("clusterer", "kmeans"): ({}, {}),
    ("quantizer", "ternary-absmean"): (QAT, {}),
    ("quantizer", "ternary-learned"): (QAT, {}),
    ("quantizer", "binary"): ({"qat": True}, {}),
}
COMPONENTS = (*(("task", name) for name in TASKS), *TRIALS)


def label(component: tuple[str, str]) -> str:
    """How a component is called in the file."""
    kind, name = component
    return f"{kind} {name.rpartition(':')[2]}"


def found(components: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Version and digest of each, measured in an environment that fixes the kernels."""
    names = [label(component) for component in components]
    command = [sys.executable, __file__, "--measure", *names]
    root = Path(__file__).parents[2]
    environment = {**os.environ, **SAME_KERNELS, "HYBRIDKIT_NO_PLUGINS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    result: dict[str, dict[str, str]] = json.loads(done.stdout)
    return result


def measured(component: tuple[str, str]) -> dict[str, str]:
    """Version and digest of one, in this process."""
    bits: Callable[[str, str], str] = of_task if component[0] == "task" else of_trial
    return {"version": version(*component), "bits": bits(*component)}


def version(kind: str, name: str) -> str:
    """The version that a component carries."""
    from hybridkit.bench.convergence.identity import version_of

    return version_of(target(kind, name))


def target(kind: str, name: str) -> Any:
    """The class or function that carries a component's version."""
    from hybridkit.optim.hybrid import HybridOptimizer
    from hybridkit.registry import registry
    from hybridkit.training.trainer import Trainer

    if kind in ("trainer", "hybrid optimizer"):
        return {"trainer": Trainer, "hybrid optimizer": HybridOptimizer}[kind]
    return registry().load(kind, name)  # type: ignore[arg-type]


def of_task(kind: str, name: str) -> str:
    """Of some of a task's data, its networks' first weights, and loss and metrics of the first network."""
    import torch

    from hybridkit.tasks.resolve import make_model, make_task

    # a text that comes with the very version of torch the bits are for
    task = make_task(name, {"data_dir": str(torch_folder() / "_tensor_docs.py")} if name == "text" else {})
    splits = task.splits()
    parts: list[tuple[str, Any]] = []
    for part in ("train", "validation", "test"):
        data = getattr(splits, part)
        parts += [
            (f"{part} {len(data[0])}", tensor[:: max(len(tensor) // 200, 1)].numpy()) for tensor in data
        ]
    batch = tuple(tensor[:16] for tensor in splits.train)
    torch.manual_seed(0)
    model = make_model(task).eval()
    parts += [(n, tensor.detach().numpy()) for n, tensor in model.state_dict().items()]
    with torch.no_grad():
        output = model(*task.inputs(batch))
        parts += [("loss", task.loss(output, batch).numpy())]
        parts += [(n, float(value)) for n, value in sorted(task.metrics(output, batch).items())]
    return digest(parts)


def of_trial(kind: str, name: str) -> str:
    """Of the weights, losses and metrics of eight steps on digits."""
    from hybridkit.training.config import resolve
    from hybridkit.training.trainer import Trainer

    flags, options = TRIALS[kind, name]
    own = {} if kind in ("trainer", "hybrid optimizer") else {kind: name}
    trainer = Trainer.seeded(
        resolve(task="digits", max_steps=8, seed=5, threads=1, options=options, **own, **flags)
    )
    losses = []
    while not trainer.done:
        losses.append(trainer.step()["loss"])
    parts: list[tuple[str, Any]] = [("losses", losses)]
    parts += [(part, sorted(trainer.evaluate(part).items())) for part in ("validation", "test")]  # type: ignore[arg-type]
    parts += [(n, tensor.numpy()) for n, tensor in trainer.model.state_dict().items()]
    return digest([(n, [x for _, x in v] if n in ("validation", "test") else v) for n, v in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write down what comes out")
    parser.add_argument("--measure", nargs="+", help="measure these, in this process")
    arguments = parser.parse_args()
    if arguments.measure:
        chosen = [c for c in COMPONENTS if label(c) in arguments.measure]
        print(json.dumps({label(component): measured(component) for component in chosen}))
        return
    now = found(COMPONENTS)
    before = written_down(GOLDEN).get(maker(), {})
    for name, new in now.items():
        old = before.get(name)
        if old and old["version"] == new["version"] and old["bits"] != new["bits"]:
            sys.exit(f"{name} gives other numbers under version {new['version']}: raise its version first")
    print(json.dumps(now, indent=2))
    if arguments.write:
        write_down(GOLDEN, now)


if __name__ == "__main__":
    main()
