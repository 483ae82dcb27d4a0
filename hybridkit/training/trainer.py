"""The steps of a run: network, optimizer, sampler and counters, in memory. Files are the loop's business.

trainer = Trainer.seeded(config)
while not trainer.done:
    trainer.step()
trainer.evaluate("test")
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from hybridkit.calls import Inputs
from hybridkit.clustering.clusterers import fit_labels, make_clusterer
from hybridkit.clustering.samplers import make_sampler
from hybridkit.errors import FileError, HybridkitError, NotFiniteError, UsageError
from hybridkit.optim.base import build_base_optimizer
from hybridkit.optim.factory import hybrid_optimizer
from hybridkit.optim.groups import Apart
from hybridkit.optim.hybrid import HybridOptimizer
from hybridkit.optim.roles import Roles, parameter_roles
from hybridkit.pretrained import is_pretrained
from hybridkit.quant.attachments import adapter_names
from hybridkit.quant.layers import latent_weights, scale_parameters, set_ramp
from hybridkit.sources.protocol import Code, Source, open_source
from hybridkit.tasks.data import Batch, Data, first, is_stream, on, size
from hybridkit.tasks.protocol import Meter, Task, collate_of
from hybridkit.tasks.resolve import make_model
from hybridkit.training.checkpoint import Checkpoint
from hybridkit.training.config import TrainConfig, named_targets
from hybridkit.training.distillation.agreement import Agreement
from hybridkit.training.distillation.progressive import Progressive
from hybridkit.training.distillation.teacher import cast_, check_teacher, drop_nothing_
from hybridkit.training.distillation.teaching import Teaching
from hybridkit.training.distillation.terms import DEFAULT, SELF, UNLABELLED, parse_layer_map, parse_terms
from hybridkit.training.distributed import world
from hybridkit.training.engine import Engine
from hybridkit.training.evaluation import batches, evaluate
from hybridkit.training.feed import Fed, Feed, Sampled, Streamed, StreamedAhead, origin
from hybridkit.training.network import (
    Allocation,
    check_teacher_given,
    configured_task,
    example_batch,
    fresh_network,
    rebuilt,
    restore_network,
    run_state,
    seed_everything,
)
from hybridkit.training.objective import Objective
from hybridkit.training.probe import hold_back, own_statistics
from hybridkit.training.progress import Progress
from hybridkit.training.schema import RandomStates, RunState, rehearse
from hybridkit.training.weights import load_weights
from hybridkit.training.workload import workload

Part = Literal["train", "validation", "test"]


class DivergedError(HybridkitError):
    """The loss, or a weight, is not finite."""


class Trainer:
    """A run in memory, from its first step or from a checkpoint.

    It draws from the global random generators, initial weights too; `seeded` puts them where a run of this
    configuration starts, and a checkpoint where it was taken. It imports the code that `config` names:
    whoever takes one from a file has asked for that code before (`Run.config`).
    """

    @classmethod
    def seeded(
        cls, config: TrainConfig, *, restored: Checkpoint | None = None, own: TrainConfig | None = None
    ) -> Trainer:
        """A trainer in a process made ready for it: global generators seeded, torch's threads set."""
        check_device(config.device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        seed_everything(config.seed)
        trainer = cls(config, restored=restored, own=own)
        if restored is None:
            random.seed(config.seed)  # again: modules imported on the way may have drawn from it (rich does)
            if not trainer.world.main:
                seed_everything(config.seed + trainer.world.rank)  # equal weights, other dropout
        return trainer

    def __init__(
        self, config: TrainConfig, *, restored: Checkpoint | None = None, own: TrainConfig | None = None
    ) -> None:
        """`own`: `config` as a restored run has it, see `Run.own`; its task and model are made of that."""
        self.config, self.own, self.world = config, own or config, world()
        self.task: Task = configured_task(self.own)
        check_teacher_given(config, self.task)
        state = run_state(restored) if restored else None
        self.start: nn.Module | None = None  # the network before it was quantised, if that is the teacher
        self.model, self.allocation = self._network(restored, state)
        started = time.perf_counter()
        self.labels = self._restored_labels(state) if state else self.world.shared(self._cluster_data)
        self.setup_seconds = time.perf_counter() - started  # what clustering the data cost, once
        self.feed = self._feed()
        self.total_steps = config.total_steps(self.steps_per_epoch)
        self.parameter_clusters = self._restored_clusters(state) if state else None
        self.optimizer = self._optimizer()
        if restored and state:
            rehearse(self.optimizer, state.optimizer)
            load_weights(self.model, restored.model, "the checkpoint")  # the rehearsal has moved them
        # what parameters are for does not show in pieces of them
        roles = parameter_roles(self.model, self._example_inputs()) if config.shard else None
        self.engine = Engine(config, self.task, self.model, self.world)
        if restored or self.engine.sharded:
            self.optimizer = self._optimizer(roles)
        self.probe: Batch | None = None  # samples that the controller judges by
        if isinstance(self.optimizer, HybridOptimizer) and not self.engine.sharded:
            self.probe = hold_back(self.feed, self.optimizer.announced, config, self.total_steps)
        self.objective = self._objective()
        self.progress = Progress()
        if state:
            self._restore(state)

    @property
    def done(self) -> bool:
        """Whether every step has been taken."""
        return self.progress.step >= self.total_steps

    @property
    def is_quantized(self) -> bool:
        """Whether the last step's weights were what will be packed; not so while the ramp lasts."""
        return self.config.qat and self._ramp(self.progress.step) == 1

    @property
    def steps_per_epoch(self) -> int:
        """How many steps show every sample once."""
        return -(-self.feed.steps_per_epoch // self.config.accumulate)

    @property
    def epoch(self) -> int:
        """The epoch (from 1) that the last step belonged to."""
        return max(self.progress.step - 1, 0) // self.steps_per_epoch + 1

    @property
    def epoch_ended(self) -> bool:
        """Whether the last step closed an epoch, or the run."""
        return self.progress.step % self.steps_per_epoch == 0 or self.done

    @property
    def block_ended(self) -> bool:
        """Whether the last step closed the stage of a block (--progressive)."""
        blocks, step = self.objective.progressive, self.progress.step
        return blocks is not None and step > 0 and blocks.block(step) != blocks.block(step - 1)

    def step(self) -> dict[str, Any]:
        """Take one optimisation step and return what is worth logging.

        Raises DivergedError, before anything is changed, where the loss is not finite.
        """
        started = time.perf_counter()
        fed = [next(self.feed) for _ in range(self._batches_due())]
        self.model.train()
        ramp = self._ramp(self.progress.step + 1)
        if self.config.ramp:
            set_ramp(self.model, ramp)
        if ramp == 1:  # a compiled network would be compiled again for every other value
            self.engine.compile_once()
        self.optimizer.zero_grad()
        stage = self.objective.stage(self.model, self.progress.step)
        evaluate = self._evaluation_of(fed, stage)
        value = self.engine.gradients(fed, self.objective, stage)
        cluster_id, histogram = origin(fed)
        where = f"at step {self.progress.step + 1} (data cluster {cluster_id})"
        if not math.isfinite(value):
            raise DivergedError(f"the loss is {value} {where}")
        if isinstance(self.optimizer, HybridOptimizer):
            self.optimizer.observe(value, cluster_id, histogram)
        try:
            probe = self._probe_loss if self.probe is not None and stage is None else None
            measured = self.engine.update(self.optimizer, evaluate, probe)
        except NotFiniteError:
            raise DivergedError(f"the gradient is not finite {where}") from None
        values = {
            **self._last_step(),
            **measured,
            **self.objective.report(),
            "loss": value,
            "cluster_id": cluster_id,
        }
        values |= self._workload(fed)
        self.progress.count(values, first_of_epoch=self.progress.step % self.steps_per_epoch == 0)
        return {"epoch": self.epoch, **values, "seconds": time.perf_counter() - started}

    def _evaluation_of(self, fed: Sequence[Fed], stage: Any) -> Callable[[], float] | None:
        """What gives the loss of these batches again, with the same dropout, where the optimizer may ask."""
        optimizer = self.optimizer
        wanted = isinstance(optimizer, HybridOptimizer) and optimizer.announced.uses_reduction_ratio
        return self.engine.loss_again(fed, self.objective.again, stage) if wanted else None

    def _probe_loss(self) -> float:
        size, device = self.config.batch_size, self.config.device
        with own_statistics(self.model, self.task, batches(self.task, self.probe, size, device)):
            return evaluate(self.model, self.task, self.probe, batch_size=size, device=device)["loss"]

    def _workload(self, fed: Sequence[Fed]) -> dict[str, int]:
        """Samples and tokens of the step's batches, in all processes."""
        found = [workload(self.task, one.batch) for one in fed]
        weights = [min(one.own, 1) for one in fed]  # 0: it stands in for a sample that there is not
        counts = [sum(w * one[name] for w, one in zip(weights, found, strict=True)) for name in found[0]]
        sums = self.world.sums(counts)
        return {name: int(total) for name, total in zip(found[0], sums, strict=True)}

    def _batches_due(self) -> int:
        """How many batches the next step takes: the last one of an epoch takes what is left."""
        taken = self.progress.step % self.steps_per_epoch * self.config.accumulate
        return min(self.config.accumulate, self.feed.steps_per_epoch - taken)

    def evaluate(self, part: Part = "validation") -> dict[str, float]:
        """Loss and metrics on one part of the data, in evaluation mode, and what `meters` say."""
        data: Data = getattr(self.task.splits(), part)
        size, device = self.config.batch_size, self.config.device
        with evaluation_weights(self.optimizer):
            return evaluate(self.model, self.task, data, batch_size=size, device=device, meters=self.meters())

    def meters(self) -> Sequence[Meter]:
        """What measures a network of this run beside the task: how close it is to the teacher."""
        teaching = self.objective.teaching
        return () if teaching is None else (Agreement(teaching),)

    def whole_network(self) -> nn.Module:
        """The network as one process has it, to measure and pack; of several processes all have to ask.

        A sharded one is built anew in the main process, and in the others it is what it was.
        """
        if not self.engine.sharded:
            return self.model
        checkpoint = self.checkpoint()
        return restore_network(self.own, checkpoint)[1] if self.world.main else self.model

    def checkpoint(self) -> Checkpoint:
        """Everything needed to go on. Raises DivergedError where a weight is not finite.

        Of several processes all have to ask; the state is that of the whole run, whatever their number.
        """
        weights, optimizer = self.model.state_dict(), self.optimizer.state_dict()
        if self.engine.sharded:
            from hybridkit.training.sharding import whole

            weights, optimizer = whole(weights), whole(optimizer)
        for name, tensor in weights.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise DivergedError(
                    f"{name} holds values that are not finite after step {self.progress.step}"
                )
        state = {
            "allocation": self.allocation,
            "ramp": self._ramp(self.progress.step),
            "labels": self.labels,
            "parameter_clusters": self.parameter_clusters,
            "sampler": self.feed.state_dict(),
            "optimizer": optimizer,
            "progress": self.progress.state_dict(),
            "distillation": self.objective.state_dict(),
            "random": RandomStates.now(self.config.device),
        }
        if self.world.size > 1:
            state["others"] = self.world.gathered(state["random"])
            state["random"] = state["others"].pop(0)
        if scale := self.engine.state_dict():
            state["loss_scale"] = scale
        return Checkpoint(self.progress.step, weights, state, self.own_teacher())

    def own_teacher(self) -> dict[str, torch.Tensor] | None:
        """The weights of the network that the run began with, where that is the teacher."""
        return self.start.state_dict() if self.start is not None else None

    def _ramp(self, step: int) -> float:
        """How far from full precision (0) to quantised (1) the weights are in a step, counted from 1."""
        length = self.config.ramp * self.total_steps
        return min(step / length, 1.0) if length else 1.0

    def _network(self, restored: Checkpoint | None, state: RunState | None) -> tuple[nn.Module, Allocation]:
        if restored is None or state is None:
            given = self.config.init_from
            weights = self._open(given).weights() if given else None
            model, allocation, self.start = fresh_network(self.config, self.task, weights)
            return model, allocation
        fresh = make_model(self.task, self.own.model)
        if self.config.teacher == SELF:
            self.start = self._restored_start(restored)
        model = rebuilt(self.config, self.task, fresh, restored.model, state)
        return model.to(self.config.device), state.allocation

    def _restored_start(self, restored: Checkpoint) -> nn.Module:
        """The network that the run began with, from the weights that it kept."""
        if restored.teacher is None:
            raise FileError("the run learns from its own start, and its teacher.safetensors is missing")
        start = cast_(make_model(self.task, self.own.model), self.config.teacher_dtype)
        load_weights(start, restored.teacher, "the run's teacher.safetensors")
        return start

    def _open(self, text: str) -> Source:
        """What --init-from or --teacher means; weights alone are those of a network like the run's."""
        named = named_targets(self.config).values()
        make = partial(make_model, self.task, self.own.model)
        return open_source(text, Code(also=named, otherwise=make, remote=self.config.trust_remote_code))

    def _feed(self) -> Feed:
        """Batches by cluster where the data can be indexed, else as they come."""
        config, data, collate = self.config, self.task.splits().train, collate_of(self.task)
        size, part = config.batch_size * config.processes, {"part": self.world.rank, "parts": self.world.size}
        if is_stream(data):
            most = config.max_steps and config.max_steps * config.accumulate
            stream = Streamed(data, size, most, collate, **part)
            return StreamedAhead(stream, config.seed) if config.workers else stream
        lengths = getattr(data, "lengths", None)
        sampler = make_sampler(config.sampler, self.labels, size, config.seed, lengths)
        return Sampled(data, sampler, collate, workers=config.workers, **part)

    def _restored_labels(self, state: RunState) -> Any:
        data = self.task.splits().train
        samples = 0 if is_stream(data) else size(data)
        if len(state.labels) != samples:
            raise FileError(f"the saved state has {len(state.labels)} cluster labels for {samples} samples")
        return state.labels

    def _restored_clusters(self, state: RunState) -> list[int] | None:
        """The cluster of each trainable parameter; None where nothing in the run asks for them."""
        count = sum(p.requires_grad for p in self.model.parameters())
        clusters, wanted = state.parameter_clusters, self.config.uses_hybrid_optimizer
        if (clusters is not None) != wanted or any(c >= count for c in clusters or ()):
            raise FileError("the saved state has other parameter clusters than this run")
        if clusters is not None and len(clusters) != count:
            raise FileError(f"the saved state has {len(clusters)} parameter clusters for {count} parameters")
        return clusters

    def _cluster_data(self) -> Any:
        """The cluster of each sample, int64 [samples]; of a stream, which has no index, nothing."""
        data = self.task.splits().train
        if is_stream(data):
            if self.config.clusterer not in (None, "none"):
                raise UsageError("the training data are a stream, whose samples cannot be clustered; drop it")
            return np.zeros(0, np.int64)
        if self.config.clusterer is None:
            return np.zeros(size(data) or 0, np.int64)
        clusterer = make_clusterer(
            self.config.clusterer, self.config.data_clusters, self.config.strategy_options("clusterer")
        )
        return fit_labels(clusterer, self.task.cluster_features(data), self.config.seed)

    def _example_inputs(self) -> Inputs:
        return self.task.inputs(on(example_batch(self.task), self.config.device))

    def _optimizer(self, roles: Roles | None = None) -> torch.optim.Optimizer:
        config, recorded = self.config, self.parameter_clusters
        settings: dict[str, Any] = {
            "lr": config.lr,
            "weight_decay": config.weight_decay,
            "momentum": config.momentum,
            "example_inputs": self._example_inputs() if roles is None else None,
            "apart": apart(config, self.model),
            # an adapter begins at zero, where a relative step in the spectral norm would stay
            "roles": {**(roles or {}), **dict.fromkeys(adapter_names(self.model), "vector")},
        }
        if not config.uses_hybrid_optimizer:
            options = config.strategy_options("optimizer")
            return _training(build_base_optimizer(config.optimizer, self.model, options=options, **settings))
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = hybrid_optimizer(
            self.model,
            self.total_steps,
            optimizer=config.optimizer,
            lr_controller=config.lr_controller,
            constraint=config.constraint,
            options=config.options,
            parameter_clusters=config.param_clusters
            if recorded is None
            else dict(zip(trainable, recorded, strict=True)),
            initial_trust_radius=config.initial_trust_radius,
            seed=config.seed,
            **settings,
        )
        self.parameter_clusters = [optimizer.cluster_of[p] for p in trainable]
        _training(optimizer.base)
        return optimizer

    def _objective(self) -> Objective:
        config, student = self.config, self.model
        if config.teacher is None:
            return Objective(self.task)
        teacher = cast_(self._teacher(config.teacher), config.teacher_dtype).to(config.device)
        if unlabelled := getattr(self.task, "needs_teacher", False):
            drop_nothing_(student)
        terms = parse_terms(config.distil or (UNLABELLED if unlabelled else DEFAULT))
        if config.compile and set(terms) != {"logits"}:
            raise UsageError("--compile sees no layer while it runs; of --distil it takes logits alone")
        if config.progressive and self.world.size > 1:
            raise UsageError("--progressive is for one process")
        layers = parse_layer_map(config.layer_map) if config.layer_map else ()
        teaching = Teaching(self.task, teacher, student, terms, config.temperature, layers)
        sample = first(self.task.splits().train, 1, collate_of(self.task))
        check_teacher(teaching, student, on(sample, config.device))
        blocks = Progressive(teaching, student, self.total_steps, layers) if config.progressive else None
        return Objective(self.task, teaching, config.alpha, blocks)

    def _teacher(self, text: str) -> nn.Module:
        """The network that --teacher means, with the task's head where a pretrained one is named."""
        if text == SELF:
            assert self.start is not None
            return self.start
        own = getattr(self.task, "from_pretrained", None)
        if own is not None and is_pretrained(text):
            found: nn.Module = own(text)
            return found
        return self._open(text).network

    def _last_step(self) -> dict[str, Any]:
        if isinstance(self.optimizer, HybridOptimizer) and (last := self.optimizer.last_step):
            return dict(last)
        return {"learning_rate": float(self.optimizer.param_groups[0]["lr"])}

    def _restore(self, state: RunState) -> None:
        self.feed.load_state_dict(state.sampler)
        epochs, steps = divmod(state.progress.step, self.steps_per_epoch)
        if self.feed.drawn != epochs * self.feed.steps_per_epoch + steps * self.config.accumulate:
            raise FileError(
                f"the saved state has drawn {self.feed.drawn} batches for {state.progress.step} steps"
            )
        optimizer = state.optimizer
        if self.engine.sharded:
            from hybridkit.training.sharding import sharded

            optimizer = sharded(self.optimizer, optimizer)
        self.optimizer.load_state_dict(optimizer)
        self.engine.load_state_dict(state.loss_scale)
        self.progress = state.progress
        self.objective.load_state_dict(state.distillation)
        self._restore_random(state)

    def _restore_random(self, state: RunState) -> None:
        """Each process goes on from its own generators' states, a new one from states of its own."""
        saved = [state.random, *state.others]
        if self.world.rank < len(saved):
            saved[self.world.rank].restore()
        else:
            seed_everything((self.config.seed + self.world.rank + 1000 * state.progress.step) % 2**63)


def apart(config: TrainConfig, model: nn.Module) -> list[Apart]:
    """The parameters that --no-latent-decay and --scale-lr treat otherwise."""
    found = []
    if config.no_latent_decay:
        found.append(Apart(latent_weights(model), decayed=False))
    if config.scale_lr is not None:
        found.append(Apart(scale_parameters(model), lr_factor=config.scale_lr))
    return found


def has_modes(optimizer: Any) -> bool:
    """Whether an optimizer trains other weights than it ends with, as schedule-free ones do."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def _training(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer, with the weights that it trains in place."""
    if has_modes(optimizer):
        optimizer.train()
    made: torch.optim.Optimizer = optimizer
    return made


@contextmanager
def evaluation_weights(optimizer: Any) -> Iterator[None]:
    """The weights that the optimizer ends with, in place of those that it trains, where they differ."""
    base = getattr(optimizer, "base", optimizer)
    if not has_modes(base):
        yield
        return
    base.eval()
    try:
        yield
    finally:
        base.train()


def check_device(device: str) -> None:
    """Raise UsageError unless torch can put a tensor on `device`."""
    try:
        torch.zeros((), device=device).item()
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"--device {device}: {str(error).splitlines()[0]}") from None
