"""One rank's training state and the two things it does: a step, and an evaluation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from backends.megatron.construct import ddp_config
from backends.megatron.feed import Dataset, feed
from backends.megatron.gradients import make_finalizer
from backends.megatron.groups import Groups
from backends.megatron.model import build_config, build_model, recompute_fields
from backends.megatron.optimizer import build_optimizer, build_scheduler, count_updated, current_lr
from backends.megatron.pacing import is_paced, pace_model, pace_optimizer
from backends.megatron.progress import Extent
from backends.megatron.weights import Reader, Scheme, Shard, draw_weights, find_shards, read_weights
from flagvega.comm.pipe import Pipe
from flagvega.layout.plan import Plan
from flagvega.layout.ranks import Place
from flagvega.platform import Device


@dataclass(frozen=True)
class StepResult:
    """What a step says on every rank."""

    loss: float
    grad_norm: float | None
    tokens: int
    iter_time_s: float
    busy: tuple[float, ...]
    """Share of the step's time that each stage did not wait for its neighbours."""
    peak_bytes: tuple[int, ...]
    """Most bytes that the first rank of each stage has held so far."""
    is_updated: bool
    stop_code: int
    """Exit code that some rank was asked to leave with, or 0."""


class Trainer:
    """Model, optimizer and transport of a rank."""

    def __init__(self, arguments: Mapping[str, Any], plan: Plan, me: Place, groups: Groups, device: Device,
                 torch_device: torch.device, extent: Extent, read: Reader | None = None) -> None:  # fmt: skip
        """``read`` gives initial weights by global name; without it they are drawn from the seed."""
        self.arguments, self.plan, self.me, self.groups = arguments, plan, me, groups
        self.device, self.torch_device = device, torch_device
        self.config = build_config(arguments, plan, me, torch_device)
        self.chunks = build_model(arguments, self.config, plan, me, groups.collection, torch_device)
        self.shards = self._fill_weights(read)
        self.models = [self._wrap(chunk, i) for i, chunk in enumerate(self.chunks)]
        pace_model(device, self.chunks, self.config, arguments, me)
        self.optimizer = build_optimizer(arguments, plan, self.models, groups, device)
        self.scheduler = build_scheduler(arguments, self.optimizer, extent)
        self._join_schedule()
        self.num_updates = 0
        self.num_own_parameters = count_updated(self.optimizer)
        self.pipe = None
        if plan.schedule != "interleaved" and len(plan.stages) > 1:
            sequence = arguments["seq_length"]
            tp_group = groups.collection.tp
            self.pipe = Pipe(plan, me, self.config, sequence, device, torch_device, tp_group, groups.boundaries)

    def _fill_weights(self, read: Reader | None) -> list[Shard]:
        shards = [
            shard for chunk in self.chunks for shard in find_shards(chunk, self.me, self.arguments["num_experts"])
        ]
        if read is not None:
            read_weights(shards, read)
        else:
            norm = self.arguments["norm_init_weight"]
            scheme = Scheme(self.arguments["seed"], self.config.init_method_std, self.plan.num_layers, norm)
            draw_weights(shards, scheme)
        return shards

    def _wrap(self, chunk: Any, index: int) -> Any:
        from megatron.core.distributed import DistributedDataParallel
        from megatron.core.transformer.module import Float16Module

        model = Float16Module(self.config, chunk) if self.config.params_dtype != torch.float32 else chunk
        return DistributedDataParallel(
            self.config,
            ddp_config(self.arguments, use_distributed_optimizer=self.plan.distributed_optimizer),
            model,
            disable_bucketing=index > 0,
            pg_collection=self.groups.collection,
        )

    def _join_schedule(self) -> None:
        """Tell the schedule, through its config, how gradients are synchronised and finished."""
        config = self.config
        config.finalize_model_grads_func = make_finalizer(self.plan, self.me, self.groups)
        config.grad_scale_func = self.optimizer.scale_loss
        first = self.models[0].ddp_config
        if first.overlap_grad_reduce:
            no_syncs = [model.no_sync for model in self.models]
            config.no_sync_func = no_syncs if len(no_syncs) > 1 else no_syncs[0]
        if first.use_distributed_optimizer and first.overlap_param_gather:
            syncs = [model.start_param_sync for model in self.models]
            config.param_sync_func = syncs if len(syncs) > 1 else syncs[0]

    @property
    def has_ends(self) -> bool:
        """Whether this rank's stage needs samples: it embeds, or it computes the loss."""
        return any(chunk.pre_process or chunk.post_process for chunk in self.chunks)

    def step(self, dataset: Dataset | None, first_sample: int, batch_size: int, stop_code: int = 0) -> StepResult:
        """Train on samples ``[first_sample, first_sample + batch_size)``; collective over the world."""
        begin = time.perf_counter()
        waited = self.pipe.wait_s if self.pipe else 0.0
        for model in self.models:
            model.zero_grad_buffer()
        self.optimizer.zero_grad()
        reports = self._run_schedule(dataset, first_sample, batch_size // self.plan.batch.samples, forward_only=False)
        is_updated, grad_norm, _ = self.optimizer.step()
        pace_optimizer(self.device, self.num_own_parameters)
        if is_updated:
            self.num_updates += 1
            self.scheduler.step(increment=batch_size)
        waited = (self.pipe.wait_s if self.pipe else 0.0) - waited
        loss, tokens, code, waits_s, peak_bytes = self._share(reports, stop_code, waited)
        # Here all ranks have met: the slowest one's optimizer is part of the step.
        iter_time_s = time.perf_counter() - begin
        busy = tuple(1.0 - wait_s / iter_time_s for wait_s in waits_s)
        return StepResult(loss, grad_norm, tokens, iter_time_s, busy, peak_bytes, bool(is_updated), code)

    @torch.no_grad()
    def evaluate(self, dataset: Dataset | None, first_sample: int, batch_size: int, num_steps: int) -> float:
        """Mean loss over ``num_steps`` batches from ``first_sample`` on; collective over the world."""
        reports: list[Tensor] = []
        for model in self.models:
            model.eval()
        for i in range(num_steps):
            num_micro_batches = batch_size // self.plan.batch.samples
            reports += self._run_schedule(dataset, first_sample + i * batch_size, num_micro_batches, forward_only=True)
        for model in self.models:
            model.train()
        return self._share(reports, 0, 0.0)[0]

    @property
    def lr(self) -> float:
        """Learning rate of the coming step."""
        return current_lr(self.scheduler)

    def _run_schedule(
        self, dataset: Dataset | None, first_sample: int, num_micro_batches: int, forward_only: bool
    ) -> list[Tensor]:
        from megatron.core.pipeline_parallel import schedules

        def batches() -> Iterator[dict[str, Tensor]]:
            if dataset is None:
                return iter([{}] * num_micro_batches)
            return feed(dataset, self.plan, self.me, first_sample, num_micro_batches, self.torch_device)

        options: dict[str, Any] = {
            "forward_step_func": self._forward_step,
            "data_iterator": [batches() for _ in self.models],
            "model": self.models,
            "num_microbatches": num_micro_batches,
            "seq_length": self.arguments["seq_length"],
            "micro_batch_size": self.me.stage.replicas[0].micro_batch_size,
            "forward_only": forward_only,
            "pg_collection": self.groups.collection,
        }
        self._micro_batch = 0
        if len(self.plan.stages) == 1:
            return list(schedules.forward_backward_no_pipelining(**options))
        if self.pipe is None:
            from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

            transport = P2PCommunicator(pp_group=self.groups.collection.pp, config=self.config)
            return list(schedules.forward_backward_pipelining_with_interleaving(p2p_communicator=transport, **options))
        self.pipe.begin(num_micro_batches, forward_only)
        reports = schedules.forward_backward_pipelining_without_interleaving(p2p_communicator=self.pipe, **options)
        self.pipe.finish()
        return list(reports)

    def _forward_step(self, iterator: Iterator[dict[str, Tensor]], model: Any) -> tuple[Tensor, Any]:
        if len(self.me.stage.recompute) > 1:
            for name, value in recompute_fields(self.me, self._micro_batch).items():
                setattr(self.config, name, value)
            self._micro_batch += 1
        batch = next(iterator)
        self.device.begin()
        output = model(
            batch.get("tokens"), batch.get("position_ids"), batch.get("attention_mask"), labels=batch.get("labels")
        )
        if is_paced(self.device) and output.requires_grad:
            output.register_hook(lambda _: self.device.begin())

        def compute_loss(losses: Tensor) -> tuple[Any, ...]:
            return self._reduce_loss(losses, batch["loss_mask"])

        return output, compute_loss

    def _reduce_loss(self, losses: Tensor, mask: Tensor) -> tuple[Any, ...]:
        total, count = (losses.float() * mask).sum(), mask.sum()
        if self.plan.batch.loss == "token":
            return total, count.int(), torch.stack([total.detach(), count])
        if self.me.mesh.cp > 1:
            count = count.clone()
            dist.all_reduce(count, group=self.groups.collection.cp)
        mean = total / count.clamp(min=1)
        # A copy: the schedule scales the loss in place.
        return mean, torch.stack([mean.detach().clone(), mask.sum()])

    def _share(
        self, reports: list[Tensor], stop_code: int, wait_s: float
    ) -> tuple[float, int, int, tuple[float, ...], tuple[int, ...]]:
        """Loss, tokens, stop code, and each stage's seconds waited and peak memory, known to every rank."""
        num_stages = len(self.plan.stages)
        shared = torch.zeros(5 + 2 * num_stages, dtype=torch.float64)
        shared[0], shared[1] = float(stop_code > 0), float(stop_code)
        if reports and self.me.tp == 0:
            sums = torch.stack(reports).double().sum(0).cpu()
            shared[2], shared[3] = sums[0], sums[1]
            shared[4] = len(reports) / self.me.mesh.cp
        if (self.me.dp, self.me.cp, self.me.tp) == (0, 0, 0):
            stage = 5 + self.me.stage.id
            shared[stage], shared[stage + num_stages] = wait_s, self.device.peak_bytes()
        dist.all_reduce(shared)
        numbers = shared.tolist()
        weight = numbers[3] if self.plan.batch.loss == "token" else numbers[4]
        code = round(numbers[1] / numbers[0]) if numbers[0] else 0
        waits_s, peak_bytes = numbers[5 : 5 + num_stages], map(round, numbers[5 + num_stages :])
        return numbers[2] / max(weight, 1.0), round(numbers[3]), code, tuple(waits_s), tuple(peak_bytes)
