"""HybridOptimizer: a controller and a trust region around any torch.optim.Optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from hybridkit.errors import NotFiniteError, UsageError
from hybridkit.optim import foreach
from hybridkit.optim.averaged import Averaged
from hybridkit.optim.constraints.none import Unconstrained
from hybridkit.optim.controllers.schedules import Constant
from hybridkit.optim.groups import (
    all_clusters,
    check_proposal,
    group_multipliers,
    parameters_of,
    relative_step,
    scaled,
    split_by_cluster,
)
from hybridkit.optim.observed import Observed
from hybridkit.optim.protocol import (
    Constraint,
    Judge,
    LRController,
    Outcome,
    Proposal,
    TrainingState,
    Verdict,
    announced,
)
from hybridkit.optim.radius import RadiusRule
from hybridkit.optim.readout import Readout
from hybridkit.optim.record import Metrics, StepRecord, describe
from hybridkit.optim.snapshot import Snapshot
from hybridkit.optim.statistics import Statistics

Evaluate = Callable[[], Tensor | float]


class HybridOptimizer(Optimizer):
    """One step: the controller decides, the base optimizer moves, the constraint projects the whole change.

        m_t, mu_t = controller(state_t)                     it has just been told what step t - 1 did
        delta_t   = base step with every lr scaled by m_t   weight decay included
        W_{t+1}   = W_t + P(delta_t, mu_t)                  P never enlarges; inactive: the base's bits

    The multiplier scales `group["lr"]` for the one base step and is taken back, so that torch's schedulers
    do not compound it. Parameter groups and state are the base optimizer's own. A step waits for the device
    once. With the default controller and constraint it is bit-identical to the base optimizer.

    Args:
        base: any `torch.optim.Optimizer` with dense gradients.
        controller: sets the multiplier and the radius; None: multiplier 1.
        constraint: projects the update; None: no trust region, the same as `Unconstrained`.
        initial_radius: radius of the first step.
        adapt_radius: whether the radius follows the size of the updates (see `RadiusRule`).
        max_steps: length of the run, for controllers that want to know it; 0: unknown.
        parameter_clusters: the cluster of each parameter, from `cluster_parameters`. Controllers that propose
            a multiplier per cluster need it (the base's groups are split accordingly), and constraints
            with a ball per cluster.
        measure_updates: report `update_magnitude` even where there is no constraint. Like a constraint, this
            needs memory for two copies of the parameters.

    Raises:
        UsageError: for a base optimizer without learning rate, or clusters that miss a parameter.
    """

    def __init__(
        self,
        base: Optimizer,
        *,
        controller: LRController | None = None,
        constraint: Constraint | None = None,
        initial_radius: float = 0.01,
        adapt_radius: bool = True,
        max_steps: int = 0,
        parameter_clusters: Mapping[Tensor, int] | None = None,
        measure_updates: bool = False,
    ) -> None:
        self.base = base
        self.controller: LRController = controller or Constant()
        self.constraint: Constraint = constraint or Unconstrained()
        self.max_steps = max_steps
        self.step_number = 0
        self.statistics = Statistics()
        # What Optimizer does for an instance that did not come from its __init__, which would build
        # parameter groups and state of its own.
        super().__setstate__({"defaults": dict(base.defaults)})
        if any("lr" not in group for group in base.param_groups):
            raise UsageError(f"{type(base).__name__} has a parameter group without 'lr'; nothing to control")
        self.announced = announced(self.controller)
        self._clustered = parameter_clusters is not None
        self.cluster_of = all_clusters(base, parameter_clusters)
        self._splits = self._clustered and self.announced.per_cluster
        if self._splits:
            base.param_groups[:] = [
                part for g in base.param_groups for part in split_by_cluster(g, self.cluster_of)
            ]
        self._constrained = not isinstance(self.constraint, Unconstrained)
        needed = self.announced.uses_update_alignment or self.announced.uses_reduction_ratio
        self._measures = self._constrained or measure_updates or needed
        balls = 1 + max(self.cluster_of.values(), default=0) if announced(self.constraint).per_cluster else 1
        self.radius = RadiusRule(initial_radius, balls=balls, adapt=adapt_radius)
        self._observed = Observed()
        self._last: StepRecord | None = None
        self._pending: Tensor | None = None  # what the last step did, still on the device
        self._reduced: Tensor | None = None  # the loss after it, and by what it should have fallen, likewise
        self._collect()

    # --- an ordinary torch.optim.Optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The base optimizer's parameter groups."""
        return self.base.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The base optimizer's state per parameter."""
        return self.base.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; its parameters join parameter cluster 0."""
        self.base.add_param_group(param_group)
        self.cluster_of |= dict.fromkeys(self.base.param_groups[-1]["params"], 0)
        self._collect()

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's `state_dict` with everything else under `hybrid`.

        An optimizer that is resumed from it takes the same steps, bit for bit. It is to be taken between
        steps: losses observed since the last one are not part of it.
        """
        self._settle()
        hybrid: dict[str, Any] = {
            "step_number": self.step_number,
            "radius": self.radius.state_dict(),
            "statistics": self.statistics.state_dict(),
            "controller": self.controller.state_dict(),
            "clusters": [self.cluster_of[p] for p in self._parameters],
            "last": self._last.state_dict() if self._last else {},
        }
        if self.announced.uses_update_alignment and self._snapshot is not None:
            hybrid["last_update"] = [u.clone() for u in self._snapshot.updates]
        if self.announced.probe_until:
            hybrid["averaged"] = self._averaged.state_dict()
        return {**self.base.state_dict(), "hybrid": hybrid}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, in an optimizer made with the same arguments.

        Raises UsageError if the state is not a HybridOptimizer's or of other parameters.
        """
        if "hybrid" not in state_dict:
            raise UsageError("this state is not a HybridOptimizer's; load it into the base optimizer")
        hybrid = state_dict["hybrid"]
        if list(hybrid["clusters"]) != [self.cluster_of[p] for p in self._parameters]:
            raise UsageError("the saved state has other parameters or parameter clusters than this optimizer")
        self.base.load_state_dict({k: v for k, v in state_dict.items() if k != "hybrid"})
        self.step_number = int(hybrid["step_number"])
        self.radius.load_state_dict(hybrid["radius"])
        self.statistics.load_state_dict(hybrid["statistics"])
        self.controller.load_state_dict(hybrid["controller"])
        self._last = StepRecord.restored(hybrid["last"]) if hybrid["last"] else None
        self._pending = self._reduced = None
        self._observed = Observed()
        if self._snapshot is not None and "last_update" in hybrid:
            torch._foreach_copy_(self._snapshot.updates, list(hybrid["last_update"]))
        if self.announced.probe_until:
            self._averaged.load_state_dict(hybrid["averaged"])

    # --- one step

    def observe(self, loss: Tensor | float, cluster_id: int = -1, histogram: Sequence[float] = ()) -> None:
        """Tell the loss of the coming step; nothing is synchronised.

        Several calls before one step (gradient accumulation, a step that gradient scaling skipped) are
        averaged, and a closure's loss is then left out. `cluster_id` is the batch's data cluster (-1: mixed),
        `histogram` its share per cluster.
        """
        self._observed.add(loss, cluster_id, histogram)

    @overload
    def step(
        self, closure: None = None, *, evaluate: Evaluate | None = None, probe: Evaluate | None = None
    ) -> None: ...
    @overload
    def step(
        self,
        closure: Callable[[], float],
        *,
        evaluate: Evaluate | None = None,
        probe: Evaluate | None = None,
    ) -> float: ...
    def step(
        self,
        closure: Callable[[], float] | None = None,
        *,
        evaluate: Evaluate | None = None,
        probe: Evaluate | None = None,
    ) -> float | None:
        """Take one step; returns the closure's loss, which is observed where no loss has been yet.

        evaluate: the loss of the step's own batch again, as it was observed (the same mode and dropout),
        without gradients. It is called after steps whose controller wants to know what they did to it.
        probe: the loss of samples that nothing has been learned from, in evaluation mode. It is called,
        with the mean of the weights in place, where the controller judges by it; the weights may go back.

        Raises NotFiniteError, before anything is changed, if the loss or a gradient is not finite.
        """
        loss, again = None, None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if loss is not None and not self._observed.count:  # None: torch's trainers have such closures
                self.observe(loss)
            again = _replay(loss, closure)
        with torch.no_grad():
            if any(p.grad is not None for p in self._parameters):
                self._step(again, evaluate, probe)
        return loss

    @property
    def last_step(self) -> Metrics:
        """The metrics of the last step by name, empty before the first.

        `loss`, `learning_rate`, `lr_multiplier`, `trust_radius`, `constraint_active`, `gradient_magnitude`,
        `loss_trend`, `gradient_variance`, `update_alignment` and, where updates are measured,
        `update_magnitude` (as applied, l2) and `unconstrained_norm` (before, in the constraint's norm), and
        `reduction_ratio` (`Outcome`), or `probe_loss` and `went_back`, where the controller wanted it.
        Reading it waits for the device where the step has not been followed by another one yet.
        """
        self._settle()
        return dict(self._last.metrics) if self._last else {}

    def _step(self, closure: Any, evaluate: Evaluate | None, probe: Evaluate | None) -> None:
        state = self._look()
        proposal = self.controller.propose(state)
        check_proposal(self.controller, proposal, self._members.shape[1] if self._splits else 0)
        multipliers = group_multipliers(self.param_groups, proposal, self.cluster_of)
        metrics = describe(state, proposal, multipliers, float(self.param_groups[0]["lr"]))
        if self._snapshot is not None:
            self._snapshot.take()
        with scaled(self.param_groups, multipliers):
            self.base.step(closure)
        if self._snapshot is not None:
            scale = 1.0 if proposal.trust_radius is None else proposal.trust_radius / self.radius.total
            self._pending = self._project(self._snapshot, [r * scale for r in self.radius.radii])
            if proposal.wants_ratio and evaluate is not None:
                self._reduced = self._reduction(self._snapshot, evaluate)
        if self.announced.probe_until:
            metrics |= self._judge(proposal, probe)
        self._last = StepRecord(state, proposal, metrics)
        self._observed = Observed()
        self.step_number += 1

    def _look(self) -> TrainingState:
        """Read everything in one synchronisation, tell what the step before did, describe this one."""
        readout = Readout()
        readout.add(
            "gradients", foreach.cluster_norms(foreach.gradient_norms(self._parameters), self._members)
        )
        if isinstance(self._observed.total, Tensor):
            readout.add("loss", self._observed.total)
        if self.announced.uses_update_alignment and self._last and self._snapshot:
            readout.add("product", foreach.gradient_dot(self._parameters, self._snapshot.updates))
        if self._pending is not None:
            readout.add("pending", self._pending)
        if self._reduced is not None:
            readout.add("reduced", self._reduced)
        read = readout.read()
        per_cluster = read["gradients"]
        gradient = math.hypot(*per_cluster)
        loss = self._observed.mean(read["loss"][0] if "loss" in read else float(self._observed.total))
        self._check_finite(loss, gradient)
        self._settle(read.get("pending"), read.get("reduced"))
        self._tell(loss)
        self.statistics.update(self.statistics.loss if math.isnan(loss) else loss, gradient)
        return TrainingState(
            current_loss=loss,
            gradient_magnitude=gradient,
            cluster_id=self._observed.cluster_id,
            loss_trend=self.statistics.loss_trend,
            gradient_variance=self.statistics.gradient_variance,
            step_number=self.step_number,
            max_steps=self.max_steps,
            trust_radius=self.radius.total,
            update_alignment=self._alignment(read.get("product", [0.0])[0], gradient),
            cluster_histogram=self._observed.histogram,
            parameter_gradients=tuple(per_cluster) if self._clustered else (),
            relative_step=relative_step(self.param_groups),
        )

    def _alignment(self, product: float, gradient: float) -> float:
        size = gradient * self._last.metrics.get("update_magnitude", 0.0) if self._last else 0.0
        return -product / size if size > 0 and product else 0.0

    def _check_finite(self, loss: float, gradient: float) -> None:
        if math.isfinite(gradient) and (self._observed.count == 0 or math.isfinite(loss)):
            return
        self._observed = Observed()
        raise NotFiniteError(
            f"step {self.step_number}: the loss is {loss} and the gradient's norm {gradient}; nothing was "
            "updated; lower the learning rate or look at the data of this batch"
        )

    def _tell(self, loss: float) -> None:
        """Give the controller what its last decision did, where both losses are known."""
        if self._last is None or math.isnan(loss) or math.isnan(self._last.state.current_loss):
            return
        metrics = self._last.metrics
        outcome = Outcome(
            loss_before=self._last.state.current_loss,
            loss_after=loss,
            proposal=self._last.proposal,
            update_magnitude=metrics.get("update_magnitude", math.nan),
            constraint_active=bool(metrics["constraint_active"]),
            reduction_ratio=metrics.get("reduction_ratio", math.nan),
        )
        self.controller.feedback(self._last.state, outcome)

    def _project(self, snapshot: Snapshot, radii: list[float]) -> Tensor:
        """Constrain the change since the snapshot. Returns fp32 [balls + 2]: norms, applied norm, active."""
        updates = snapshot.measure()
        if not self._constrained:
            norm = foreach.norm(updates)
            return torch.stack([norm, norm, self._zero])
        many = len(radii) > 1
        radius = foreach.vector(radii, updates[0].device) if many else radii[0]
        report = self.constraint.apply(updates, snapshot.before, radius)
        snapshot.write_back(report.active)
        applied = foreach.norm(updates)
        return torch.cat([report.norm.reshape(-1), torch.stack([applied, report.active.any().float()])])

    def _judge(self, proposal: Proposal, probe: Evaluate | None) -> Metrics:
        """Keep the mean of the weights, and act on what the controller makes of it; what there is to log."""
        averaged = self._averaged
        if probe is None or not proposal.averaged_over:
            averaged.drop()
            return {}
        averaged.follow(proposal.averaged_over)
        if not proposal.wants_probe:
            return {}
        with averaged.in_place():
            loss = float(probe())
        verdict = cast(Judge, self.controller).judge(loss)
        if verdict is Verdict.BEST:
            averaged.keep()
        went_back = verdict is Verdict.WORSE and averaged.go_back()
        return {"probe_loss": loss, "went_back": went_back}

    def _reduction(self, snapshot: Snapshot, evaluate: Evaluate) -> Tensor:
        """The loss after the step, and by what the gradient says that it falls, fp32 [2]."""
        after = torch.as_tensor(evaluate(), dtype=torch.float32, device=self._zero.device)
        promised = -foreach.gradient_dot(self._parameters, snapshot.updates)
        return torch.stack([after.reshape(()), promised.reshape(()).float()])

    def _settle(self, values: list[float] | None = None, reduced: list[float] | None = None) -> None:
        """Complete the last step's record, from what has been read already."""
        if self._pending is None or self._last is None:
            return
        *norms, applied, active = values or self._pending.tolist()
        self._pending = None
        if self._reduced is not None:
            after, promised = reduced or self._reduced.tolist()
            self._reduced = None
            ratio = (self._last.state.current_loss - after) / promised if promised > 0 else math.nan
            self._last.metrics["reduction_ratio"] = ratio
        self._last.metrics |= {
            "update_magnitude": applied,
            "unconstrained_norm": math.hypot(*norms),
            "constraint_active": bool(active),
        }
        self.radius.update(norms)

    # --- parameters and clusters

    def _collect(self) -> None:
        """List the parameters and make the buffers, whenever the groups have changed."""
        self._parameters: list[Tensor] = parameters_of(self.base)
        labels = [self.cluster_of[p] for p in self._parameters]
        device = self._parameters[0].device
        self._members = foreach.membership(labels, 1 + max(labels), device)
        self._zero = torch.zeros((), device=device)
        self._snapshot = Snapshot(self._parameters) if self._measures else None
        self._averaged = Averaged(self._parameters)
        self.constraint.bind(self._parameters, labels)


def _replay(loss: float, closure: Callable[[], float]) -> Callable[[], float]:
    """A closure whose first call is the evaluation that has been made already (LBFGS wants several)."""
    known = [loss]
    return lambda: known.pop() if known else closure()
