"""Measures the parts of a model with the real engine, on one mesh: both passes, saved bytes, the optimizer's step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import inf
from statistics import median, quantiles
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from backends.megatron.construct import ddp_config, optimizer_config
from backends.megatron.model import build_config, build_model
from backends.megatron.pacing import is_paced, pace_model, pace_optimizer
from backends.megatron.stopwatch import SavedBytes, Stopwatch, watch_model
from backends.megatron.weights import Scheme, draw_weights, find_shards
from flagvega.layout.plan import Batch, Chunk, Mesh, Plan, Replica, Stage
from flagvega.layout.ranks import Place
from flagvega.platform import Device

WARM_UP = 2
MIN_REPEATS = 4
MAX_REPEATS = 16
ENOUGH_S = 1.5
"""Seconds of measuring after which no more micro-batches are asked for than :data:`MIN_REPEATS`."""
OPTIMIZER_REPEATS = 5
CALM = 0.08
"""Noise from which on measuring is not repeated: somebody else kept the host, or the device, busy."""
ATTEMPTS = 3


def probe_place(part: Mesh, samples: int, plan: Plan, rank: int, num_layers: int, ends: bool) -> tuple[Plan, Place]:
    """A plan of one stage on a mesh, and what rank ``rank`` of it is."""
    stage = Stage(0, (Replica(0, 1, samples),), 1)
    alone = Plan(
        Batch(samples, plan.batch.loss, plan.batch.padded_vocab_size),
        (part,),
        (stage,),
        (Chunk(0, (0, num_layers), embedding=ends, head=ends),),
        (),
        tied_embeddings=plan.tied_embeddings,
    )
    node, local = part.devices[rank]
    return alone, Place(rank, node, local, part, stage, 0, 0, rank)


def layer_arguments(arguments: Mapping[str, Any], kinds: list[str]) -> dict[str, Any]:
    """The arguments of a model that has just these kinds of layers."""
    changed: dict[str, Any] = {"num_layers": len(kinds)}
    if arguments["num_experts"]:
        changed["moe_layer_freq"] = [int(kind == "experts") for kind in kinds]
    return {**arguments, **changed}


class ProbedModel:
    """A small model of the run's layers on one mesh."""

    def __init__(self, arguments: Mapping[str, Any], plan: Plan, me: Place, collection: Any, device: Device,
                 torch_device: torch.device) -> None:  # fmt: skip
        self.arguments, self.plan, self.me, self.collection = arguments, plan, me, collection
        self.device, self.torch_device = device, torch_device
        self.config = build_config(arguments, plan, me, torch_device)
        self.chunk = build_model(arguments, self.config, plan, me, collection, torch_device)[0]
        scheme = Scheme(arguments["seed"], self.config.init_method_std, plan.num_layers, arguments["norm_init_weight"])
        draw_weights(find_shards(self.chunk, me, arguments["num_experts"]), scheme)
        self.model = self._wrap()
        self.stopwatch = Stopwatch(torch_device, device.namespace)

    def _wrap(self) -> Any:
        from megatron.core.distributed import DistributedDataParallel
        from megatron.core.transformer.module import Float16Module

        half = self.config.params_dtype != torch.float32
        model = Float16Module(self.config, self.chunk) if half else self.chunk
        settings = ddp_config(self.arguments, use_distributed_optimizer=False, overlap_param_gather=False)
        return DistributedDataParallel(self.config, settings, model, pg_collection=self.collection)

    @property
    def num_parameters(self) -> int:
        """Of this rank."""
        return sum(parameter.numel() for parameter in self.chunk.parameters())

    def measure(self, kinds: list[str], agree: Any) -> list[dict[str, Any]]:
        """Seconds and bytes of each part; ``agree`` makes a number the same on all ranks of the mesh."""
        saved = self._count_saved()
        pace_model(self.device, [self.chunk], self.config, self.arguments, self.me)
        watch_model(self.chunk, self.stopwatch.mark)
        begin = time.perf_counter()
        self._run(WARM_UP)
        each_s = (time.perf_counter() - begin) / WARM_UP
        repeats = int(agree(min(max(ENOUGH_S / each_s, MIN_REPEATS), MAX_REPEATS)))
        self.stopwatch.take()
        taken: dict[str, list[float]] = {}
        least = inf
        for _ in range(ATTEMPTS):
            again = self._take(repeats)
            noise = agree(_noise(again))
            if noise < least:
                taken, least = again, noise
            if least < CALM:
                break
        return [
            {
                "kind": kind,
                "forward_s": median(second for part in parts for second in taken[f"fwd {part}"]),
                "backward_s": median(second for part in parts for second in taken[f"bwd {part}"]),
                "activation_bytes": saved.get(parts[-1], 0),
                "parameter_bytes": self._parameter_bytes(parts[-1]),
            }
            for kind, parts in _parts(kinds).items()
        ]

    def _take(self, repeats: int) -> dict[str, list[float]]:
        """Seconds of every pass of every part."""
        self._run(repeats)
        taken: dict[str, list[float]] = {}
        for name, seconds in self.stopwatch.take():
            taken.setdefault(name, []).append(seconds)
        return taken

    def measure_optimizer(self) -> float:
        """Median seconds of a step on the gradients that are there."""
        from megatron.core.optimizer import get_megatron_optimizer

        config = optimizer_config(self.arguments, use_distributed_optimizer=False, overlap_param_gather=False)
        with _alone():
            optimizer = get_megatron_optimizer(
                config, [self.model], use_gloo_process_groups=False, pg_collection=self.collection
            )
        norm = optimizer.get_grad_norm

        def wait_for_norm() -> Any:
            found = norm()
            self.device.begin()
            return found

        optimizer.get_grad_norm = wait_for_norm
        taken = []
        for _ in range(OPTIMIZER_REPEATS + 1):
            self.device.begin()
            self.stopwatch.mark("begin")
            optimizer.step()
            pace_optimizer(self.device, self.num_parameters)
            self.stopwatch.mark("end")
            taken.append(self.stopwatch.take()[0][1])
        return median(taken[1:])

    def _count_saved(self) -> dict[str, int]:
        saved = SavedBytes(self.chunk)
        with saved.watching():
            output, compute_loss = self._forward_step(self._batches(), self.model)
            loss = compute_loss(output)[0]
        loss.backward()
        self.stopwatch.take()
        return saved.by_part

    def _run(self, num_micro_batches: int) -> None:
        from megatron.core.pipeline_parallel import schedules

        self.model.zero_grad_buffer()
        schedules.forward_backward_no_pipelining(
            forward_step_func=self._forward_step,
            data_iterator=[self._batches()],
            model=[self.model],
            num_microbatches=num_micro_batches,
            seq_length=self.arguments["seq_length"],
            micro_batch_size=self.plan.batch.samples,
            forward_only=False,
            pg_collection=self.collection,
        )
        self.stopwatch.mark("bwd embedding")

    def _batches(self) -> Iterator[dict[str, Tensor]]:
        """Random tokens: what they are costs nothing."""
        samples, seq = self.plan.batch.samples, self.arguments["seq_length"]
        random = torch.Generator().manual_seed(self.arguments["seed"])
        tokens = torch.randint(self.plan.batch.padded_vocab_size, (samples, seq + 1), generator=random)
        batch = {
            "tokens": tokens[:, :-1].contiguous().to(self.torch_device),
            "labels": tokens[:, 1:].contiguous().to(self.torch_device),
            "position_ids": torch.arange(seq).expand(samples, seq).contiguous().to(self.torch_device),
            "loss_mask": torch.ones(samples, seq, device=self.torch_device),
        }
        while True:
            yield batch

    def _forward_step(self, iterator: Iterator[dict[str, Tensor]], model: Any) -> tuple[Tensor, Any]:
        batch = next(iterator)
        self.stopwatch.mark("bwd embedding")
        self.device.begin()
        output = model(batch["tokens"], batch["position_ids"], None, labels=batch["labels"])
        if is_paced(self.device) and output.requires_grad:
            output.register_hook(lambda _: self.device.begin())

        def compute_loss(losses: Tensor) -> tuple[Any, ...]:
            total, count = (losses.float() * batch["loss_mask"]).sum(), batch["loss_mask"].sum()
            report = torch.stack([total.detach(), count])
            self.stopwatch.mark("fwd head")
            if self.plan.batch.loss == "token":
                return total, count.int(), report
            return total / count, report

        return output, compute_loss

    def _parameter_bytes(self, part: str) -> int:
        modules = {"embedding": self.chunk.embedding, "head": self.chunk.output_layer}
        module = modules[part] if part in modules else self.chunk.decoder.layers[int(part.split()[1])]
        return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


@contextmanager
def _alone() -> Iterator[None]:
    """megatron-core asks the whole world which groups of parameters there are; here most ranks build no optimizer."""
    gather = dist.all_gather_object

    def own(found: list[Any], mine: Any) -> None:
        found[:] = [mine] * len(found)

    dist.all_gather_object = own  # type: ignore[assignment]
    try:
        yield
    finally:
        dist.all_gather_object = gather


def _noise(taken: Mapping[str, list[float]]) -> float:
    """Half of the measurements lie within this share of the time that they take together."""
    quarters = [quantiles(values, n=4) for values in taken.values()]
    return sum(high - low for low, _, high in quarters) / sum(middle for _, middle, _ in quarters)


def _parts(kinds: list[str]) -> dict[str, list[str]]:
    """Names of the parts that are measured, by kind."""
    found: dict[str, list[str]] = {"embedding": ["embedding"]}
    for i, kind in enumerate(kinds):
        found.setdefault(kind, []).append(f"layer {i}")
    return found | {"head": ["head"]}
