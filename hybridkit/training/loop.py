"""A run from its first step to its packed file, with log and checkpoints, stopped and resumed at will."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridkit.errors import FileError, InterruptedRun, UsageError
from hybridkit.sinks.fanout import Sinks
from hybridkit.sinks.protocol import RunInfo
from hybridkit.training import codes
from hybridkit.training.checkpoint import drop_after, keep_recent, latest_step, save_checkpoint, steps
from hybridkit.training.config import TrainConfig, with_sinks
from hybridkit.training.distributed import World, as_launched, launched, processes
from hybridkit.training.environment import differences, environment
from hybridkit.training.events import EpochDone, Evaluated, Event, Listener, Saved, Started, StepDone, Warned
from hybridkit.training.history import What, add_note
from hybridkit.training.metrics import MetricsLog, cut_back, read_records
from hybridkit.training.network import example_batch
from hybridkit.training.packed import PackedResult, pack_run, packed_difference
from hybridkit.training.runs import Run, runs_root, sweep_runs, with_end
from hybridkit.training.samples import written
from hybridkit.training.signals import interruptible, stop_requests
from hybridkit.training.trainer import DivergedError, Trainer, evaluation_weights
from hybridkit.training.watch import watch_over

DIFFERENCE_SAMPLES = 64  # of a validation batch, at most: the packed network is compared on them


@dataclass(frozen=True, slots=True)
class HybridSummary:
    """What the hybrid optimisation did, over all steps of the run."""

    total_steps: int
    final_loss: float
    avg_lr_multiplier: float
    constraint_activation_rate: float
    trust_radius: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished run came to. `summary` is there for hybrid runs, `packed` for quantised ones."""

    run: Run
    config: TrainConfig
    steps: int
    final_loss: float
    best_step: int
    validation: dict[str, float]
    test: dict[str, float]
    summary: HybridSummary | None
    packed: PackedResult | None


def train(
    config: TrainConfig,
    *,
    run_dir: Path | str | None = None,
    on_event: Listener | None = None,
) -> TrainResult:
    """Train from the beginning in a new folder under `run_dir` (see `runs_root`).

    Where torchrun or `accelerate launch` has started several processes of this, they train together, and
    each takes `batch_size` samples of a batch. One of them writes and calls `on_event`.

    Raises InterruptedRun after SIGINT, SIGTERM or SIGHUP (the state is saved), DivergedError where the loss
    is not finite, UsageError and FileError for what does not fit together.
    """
    if config.shard and not launched():
        raise UsageError(
            "--shard is for several processes: torchrun --nproc-per-node N -m hybridkit train ..."
        )
    config = as_launched(config)
    with processes(config.device) as world:
        config = dataclasses.replace(config, processes=world.size)
        with interruptible("stopped before the first step; nothing was written"):
            sinks = _sinks(config, world)
            trainer = Trainer.seeded(config)

        def made() -> Run:
            about = environment(config.device, world.size)
            sweep_runs(runs_root(run_dir))
            data = trainer.task.provenance()
            run = Run.create(runs_root(run_dir), config, {"environment": about, "data": data})
            run.keep_assets(trainer.model)
            if (own := trainer.own_teacher()) is not None:
                run.keep_teacher(own)
            return run

        return _Session(world.shared(made), trainer, sinks, on_event).finish()


def resume(
    run: Run,
    *,
    step: int | None = None,
    epochs: int | None = None,
    max_steps: int | None = None,
    threads: int | None = None,
    sink: Iterable[str] | None = None,
    trusted: Container[str] = (),
    on_event: Listener | None = None,
) -> TrainResult:
    """Go on from the checkpoint of `step`, or from the latest; what came after it is forgotten.

    On the same torch, instruction set and thread count the result is that of a run that was never stopped,
    bit for bit; a difference is reported as a warning. `epochs` or `max_steps` move the end, `sink` replaces
    the metric sinks. `trusted`: see `Run.config`. Raises as `train` does.
    """
    recorded = run.recorded()
    config = with_sinks(with_end(recorded, epochs, max_steps), sink)
    run.check(config, trusted)
    if threads is not None:
        config = dataclasses.replace(config, threads=threads)
    with processes(config.device) as world:
        checkpoint = run.with_teacher(run.checkpoint(step))
        with interruptible("stopped before the first step; nothing was changed"):
            sinks = _sinks(config, world)
            try:
                trainer = Trainer.seeded(config, restored=checkpoint, own=run.own(config))
            except FileError as error:
                raise FileError(f"{run.path}, step {checkpoint.step}: {error}") from None
        _check_data(run, trainer)

        def cut() -> int:
            run.sweep()
            logged = cut_back(run.metrics_path, checkpoint.step)
            drop_after(run.checkpoints, checkpoint.step)
            if config != recorded:
                run.amend(config)
            return logged

        session = _Session(run, trainer, sinks, on_event, world.shared(cut))
        changed = differences(run.about().get("environment", {}), environment(config.device, world.size))
        if changed:
            session.tell(
                Warned(f"not the machine the run began on ({', '.join(changed)}); bits may differ from here")
            )
        return session.finish()


def _sinks(config: TrainConfig, world: World) -> Sinks:
    """The metric sinks of the process that writes; the others have none."""
    return Sinks(config.sink if world.main else (), config.strategy_options("metric_sink"))


class _Session:
    """One process's share of a run. Among several all do the same, and the main one writes and tells."""

    def __init__(
        self, run: Run, trainer: Trainer, sinks: Sinks, on_event: Listener | None, logged: int = 0
    ) -> None:
        self.run, self.trainer, self.config = run, trainer, trainer.config
        self.world = trainer.world
        self.listener: Listener = (self.world.main and on_event) or _ignore
        self.log = MetricsLog(run.metrics_path if self.world.main else Path(os.devnull))
        self.sinks = sinks
        self.logged = logged  # the last step that earlier processes logged
        self.watch = watch_over(trainer.optimizer)
        # pieces of a layer have no codes
        self.layers = {} if trainer.engine.sharded else codes.observable_layers(trainer.model)
        self.by_layer: dict[str, Any] = {}  # what the latest step did to each quantised layer
        self.validation: dict[str, float] = {}  # the latest

    def tell(self, event: Event) -> None:
        """Tell the listener; what it should not miss is also kept in the run's history."""
        if isinstance(event, Warned):
            self._note("warning", event.message)
        self.listener(event)

    def finish(self) -> TrainResult:
        try:
            self._begin()
            result = self._train()
        except BaseException as error:
            stopped = isinstance(error, InterruptedRun | KeyboardInterrupt)
            self._note("interrupted" if stopped else "failed", str(error) or type(error).__name__)
            raise
        else:
            self._note("finished")
            return result
        finally:
            # Here, where nothing else holds them: from within the garbage collector they end after a timeout.
            self.trainer.feed.close()
            self.log.close()
            self.sinks.close(ended=self.trainer.done)

    def _begin(self) -> None:
        step = self.trainer.progress.step
        self.tell(Started(self.run.path, step, self.trainer.total_steps))
        forgotten = f"what was logged up to step {self.logged} is forgotten" if self.logged > step else ""
        self._note("resumed" if step else "started", forgotten)
        info = RunInfo(
            name=self.run.path.resolve().name,
            folder=self.run.sinks,
            step=step,
            logged=self.logged,
            config=self.config.to_json(),
            environment=self.run.about().get("environment", {}),
        )
        self.sinks.open(info, lambda: read_records(self.run.metrics_path), lambda why: self.tell(Warned(why)))

    def _train(self) -> TrainResult:
        trainer = self.trainer
        with stop_requests(once=self.world.size > 1) as stop_requested:
            while not trainer.done:
                self._step()
                improved = self._evaluate_if_due()
                self._report_epoch_if_ended()
                stop = self.world.any(stop_requested())
                if stop or improved or self._checkpoint_due():
                    self._save()
                if stop:
                    raise InterruptedRun(
                        f"stopped after step {trainer.progress.step}; saved, go on with "
                        f"hybridkit train --resume {self.run.path}"
                    )
        with interruptible(
            f"stopped before the packed model was measured; every step is saved, finish with "
            f"hybridkit train --resume {self.run.path}"
        ):
            return self._result()

    def _note(self, what: What, text: str = "") -> None:
        if self.world.main:
            add_note(self.run.history_path, self.trainer.progress.step, what, text)

    def _write(self, event: str, values: Mapping[str, Any]) -> None:
        self.sinks.write(self.log.write(event, self.trainer.progress.step, values))

    def _step(self) -> None:
        step = self.trainer.progress.step + 1
        before = self._codes_before(step)
        try:
            values = self.trainer.step()
        except DivergedError as error:
            raise self._with_last_good(error) from None
        if before is not None:
            shares, self.by_layer = codes.look(self.layers, before)
            values |= shares
        self._write("step", values)
        self.tell(StepDone(step, values))
        if values.get("went_back"):
            rose = f"the loss on samples held back had risen to {values['probe_loss']:.4g}"
            self._note("went back", f"{rose}; the weights are their best again, steps are shorter")
        warning = self.watch.look(values["lr_multiplier"], step) if self.watch else None
        if warning:
            self.tell(Warned(warning))

    def _codes_before(self, step: int) -> codes.Codes | None:
        """The codes, where they are looked at around this step."""
        wanted = self.layers and codes.due(step, self._evaluation_due(step))
        return codes.codes(self.layers) if wanted else None

    def _evaluation_due(self, step: int) -> bool:
        every = self.config.eval_every or self.trainer.steps_per_epoch
        return step % every == 0 or step >= self.trainer.total_steps

    def _sample(self) -> dict[str, str]:
        """Text that the network writes, where the task has it do so."""
        network = self.trainer.whole_network()

        def text() -> str | None:
            try:
                return written(self.trainer.task, network)
            except Exception as error:  # a stranger's code; a run is worth more than a sample
                self.tell(Warned(f"the task's sample failed: {type(error).__name__}: {error}"))
                return None

        with evaluation_weights(self.trainer.optimizer):
            found = self.world.shared(text)
        return {} if found is None else {"sample": found}

    def _evaluate_if_due(self) -> bool:
        trainer = self.trainer
        if not self._evaluation_due(trainer.progress.step):
            return False
        self.validation = trainer.evaluate("validation")
        metrics = {f"validation_{name}": value for name, value in self.validation.items()}
        if trainer.is_quantized:
            sample = example_batch(trainer.task, min(self.config.batch_size, DIFFERENCE_SAMPLES))
            with evaluation_weights(trainer.optimizer):
                task, network, device = trainer.task, trainer.whole_network(), self.config.device
                metrics |= self.world.shared(lambda: packed_difference(task, network, sample, device))
        self._write("evaluation", {**metrics, **self.by_layer, **self._sample()})
        self.tell(Evaluated(trainer.progress.step, metrics))
        if self.config.qat and not trainer.is_quantized:
            return False  # on the ramp: not the network that will be packed
        return trainer.progress.improve(metrics["validation_loss"])

    def _report_epoch_if_ended(self) -> None:
        trainer = self.trainer
        if not trainer.epoch_ended:
            return
        progress = trainer.progress
        radius = progress.trust_radius if self.config.hybrid else None
        done = EpochDone(trainer.epoch, progress.mean_epoch_loss, progress.learning_rate, radius)
        values = {"loss": done.loss, "learning_rate": done.lr, "trust_radius": done.trust_radius}
        self._write("epoch", {"epoch": done.epoch, **values})
        self.tell(done)

    def _checkpoint_due(self) -> bool:
        step = self.trainer.progress.step
        ended = self.trainer.epoch_ended or self.trainer.block_ended
        return ended or step % self.config.checkpoint_every == 0

    def _save(self) -> None:
        try:
            checkpoint = self.trainer.checkpoint()
        except DivergedError as error:
            raise self._with_last_good(error) from None
        if not self.world.main:
            return
        self.log.sync()
        path = save_checkpoint(self.run.checkpoints, checkpoint)
        keep_recent(self.run.checkpoints, self.config.keep_checkpoints, {self.trainer.progress.best_step})
        self.tell(Saved(checkpoint.step, path))

    def _with_last_good(self, error: DivergedError) -> DivergedError:
        good = "no checkpoint was written yet"
        if steps(self.run.checkpoints):
            good = f"the last good checkpoint is step {latest_step(self.run.checkpoints)} of {self.run.path}"
        return DivergedError(f"{error}; {good}; a smaller --lr may help")

    def _result(self) -> TrainResult:
        trainer, config, progress = self.trainer, self.config, self.trainer.progress
        packed = None
        if config.qat or config.ternary:
            commit = self.run.about().get("environment", {}).get("git_commit")
            with evaluation_weights(trainer.optimizer):
                task, network, path = trainer.task, trainer.whole_network(), self.run.packed_path
                packed = self.world.shared(
                    lambda: pack_run(config, task, network, path, commit, trainer.meters)
                )
        test = packed.test.network if packed else trainer.evaluate("test")
        final: dict[str, Any] = {f"test_{name}": value for name, value in test.items()}
        if packed:
            final |= {f"packed_test_{name}": value for name, value in packed.test.packed.items()}
            final |= {"packed_error": packed.test.error, "bits_per_weight": packed.sizes.bits_per_weight}
        self._write("final", final)
        return TrainResult(
            run=self.run,
            config=config,
            steps=progress.step,
            final_loss=progress.last_loss,
            best_step=progress.best_step,
            validation=self.validation or trainer.evaluate("validation"),
            test=test,
            summary=_summary(trainer) if config.hybrid else None,
            packed=packed,
        )


def _check_data(run: Run, trainer: Trainer) -> None:
    """Raise FileError where the task's data are not those that the run began with."""
    recorded = run.about().get("data", {}).get("sha256")
    if recorded != trainer.task.provenance().get("sha256"):
        raise FileError(
            f"{run.path}: the data have changed since the run began; resume it with the same data"
        )


def _summary(trainer: Trainer) -> HybridSummary:
    progress = trainer.progress
    count = max(progress.step, 1)
    return HybridSummary(
        total_steps=progress.step,
        final_loss=progress.last_loss,
        avg_lr_multiplier=progress.multiplier_sum / count,
        constraint_activation_rate=progress.active_steps / count,
        trust_radius=progress.trust_radius or 0.0,
    )


def _ignore(event: Event) -> None:
    pass
