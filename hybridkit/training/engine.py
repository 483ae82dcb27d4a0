"""From the batches of a step to a change of the weights, on the engines that torch has.

Autocast, accumulation, clipping, activation checkpointing, compilation; DDP or FSDP2 where the run has
several processes. Without any of them: forward, backward, step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hybridkit.errors import NotFiniteError
from hybridkit.precision import autocast, check_precision, loss_scaler
from hybridkit.tasks.data import Batch, on
from hybridkit.tasks.protocol import Task, forward
from hybridkit.training.blocks import checkpoint_activations_
from hybridkit.training.compiling import compiled, compiling
from hybridkit.training.config import TrainConfig
from hybridkit.training.distributed import World
from hybridkit.training.feed import Fed


class Engine:
    """Trains `model`, which it changes in place for that: make the optimizer afterwards.

    Parameters and state dict keep their names. Raises UsageError for what does not go together, or not with
    this network or device.
    """

    def __init__(self, config: TrainConfig, task: Task, model: nn.Module, world: World) -> None:
        self.config, self.model, self.world = config, model, world
        self.sharded = config.shard and world.size > 1
        check_precision(config.precision, config.device, sharded=self.sharded)
        self.scaler = loss_scaler(config.precision, config.device)
        self._compiled = False
        if config.checkpoint_activations:
            checkpoint_activations_(model)
        self._forward = _Forward(task, model)
        self._network: nn.Module = self._forward
        if self.sharded:
            from hybridkit.training.sharding import check_shardable, shard_

            check_shardable(config)
            shard_(model, config.device, world.size)
        elif world.size > 1:
            # Encoders have parts that a loss does not reach, poolers for instance.
            self._network = DistributedDataParallel(self._forward, find_unused_parameters=True)

    def gradients(
        self,
        fed: Sequence[Fed],
        objective: Callable[[Any, Batch], Tensor],
        run: Callable[[Batch], Any] | None = None,
    ) -> float:
        """Add the gradients of the mean loss over the samples of `fed`, in all processes; give the loss.

        run: runs the network in place of the task's forward.
        """
        shares = _shares(fed)
        losses = []
        with compiling() if self.config.compile else nullcontext():
            for one, share in zip(fed, shares, strict=True):
                batch = on(one.batch, self.config.device)
                with self._reducing(one is fed[-1]):
                    with autocast(self.config.precision, self.config.device):
                        loss = objective((run or self._network)(batch), batch)
                    self._backward(loss, share)
                losses.append(loss.detach())
        return self._mean(losses, shares)

    def loss_again(
        self,
        fed: Sequence[Fed],
        objective: Callable[[Any, Batch], Tensor],
        run: Callable[[Batch], Any] | None = None,
    ) -> Callable[[], float] | None:
        """What gives the loss that `gradients` gives, of other weights: without gradients, with the dropout
        that it has from here on. The network's buffers and the generators stay as they are.

        None under FSDP2.
        """
        if self.sharded:
            return None
        device = torch.device(self.config.device)
        cuda = device.type == "cuda"
        before, there = torch.get_rng_state(), torch.cuda.get_rng_state(device) if cuda else None

        @torch.no_grad()
        def evaluate() -> float:
            buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
            losses = []
            with torch.random.fork_rng([device] if cuda else []):
                torch.set_rng_state(before)
                if there is not None:
                    torch.cuda.set_rng_state(there, device)
                for one in fed:
                    batch = on(one.batch, self.config.device)
                    with autocast(self.config.precision, self.config.device):
                        losses.append(objective((run or self._forward)(batch), batch))
            for buffer, values in buffers:
                buffer.copy_(values)
            return self._mean(losses, _shares(fed))

        return evaluate

    def _mean(self, losses: Sequence[Tensor], shares: Sequence[float]) -> float:
        """Over the samples in all processes."""
        return self.world.sums([sum(s * float(loss) for s, loss in zip(shares, losses, strict=True))])[0]

    def _backward(self, loss: Tensor, share: float) -> None:
        weight = share * self.world.size  # the processes' gradients are averaged
        if weight != 1:
            loss = loss * weight
        if self.scaler is not None:
            loss = self.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    @contextmanager
    def _reducing(self, now: bool) -> Iterator[None]:
        """Whether the backward in this context ends with the gradients of all processes."""
        if self.sharded:
            sharded: Any = self.model
            sharded.set_requires_gradient_sync(now)
        if now or not isinstance(self._network, DistributedDataParallel):
            yield
            return
        with self._network.no_sync():
            yield

    def update(
        self,
        optimizer: Optimizer,
        evaluate: Callable[[], float] | None = None,
        probe: Callable[[], float] | None = None,
    ) -> dict[str, float]:
        """Clip the gradients where that is asked for, and take the step; returns what there is to log.

        evaluate, probe: for a HybridOptimizer, which may want to know the step's loss again, or that of
        samples held back.

        Raises NotFiniteError, before anything is changed, where clipping or the optimizer sees a gradient
        that is not finite. With a loss scale such a step is left out.
        """
        values: dict[str, float] = {}
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        if self.config.clip_norm is not None:
            values["gradient_norm"] = norm = self._clip(optimizer, self.config.clip_norm)
            if self.scaler is None and not math.isfinite(norm):
                raise NotFiniteError(f"the gradient's norm is {norm}")
        asked = {"evaluate": evaluate, "probe": probe}
        more: dict[str, Any] = {name: loss for name, loss in asked.items() if loss is not None}
        if self.scaler is None:
            optimizer.step(**more)
            return values
        scale = self.scaler.get_scale()
        self.scaler.step(optimizer, **more)
        self.scaler.update()
        return {**values, "loss_scale": scale, "left_out": float(self.scaler.get_scale() < scale)}

    def _clip(self, optimizer: Optimizer, most: float) -> float:
        """Pascanu et al. 2013, arXiv 1211.5063; the norm before that."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm: Any = nn.utils.clip_grad_norm_(parameters, most)
        return float(norm.full_tensor() if self.sharded else norm)

    def compile_once(self) -> None:
        """Compile the network where that is asked for and has not been done."""
        if self.config.compile and not self._compiled:
            self._forward.forward = compiled(self._forward.forward)  # type: ignore[method-assign]
            self._compiled = True

    def state_dict(self) -> dict[str, Any]:
        """The loss scale; nothing without one."""
        return {} if self.scaler is None else dict(self.scaler.state_dict())

    def load_state_dict(self, state: Mapping[Any, float]) -> None:
        """Go on with it."""
        if self.scaler is not None and state:
            self.scaler.load_state_dict({**state})


def _shares(fed: Sequence[Fed]) -> list[float]:
    """Of this process's part of each batch in the samples of all."""
    samples = sum(one.samples for one in fed)
    return [one.own / samples for one in fed]


class _Forward(nn.Module):
    """A task's forward as a module, which DDP wants: whatever of the network the task calls."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task, self.model = task, model

    def forward(self, batch: Batch) -> Any:
        """The network's output on a batch."""
        return forward(self.task, self.model, batch)
