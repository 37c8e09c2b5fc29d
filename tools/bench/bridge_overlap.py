"""How much of a slow link the schedule hides: one more micro-batch in flight, against none, against no link.

Two stages of equal time run megatron-core's 1F1B schedule over flagvega's transport; a link of a third of
a stage's time lies between them. The stages sleep instead of computing, so that nothing but the
schedule and the transport is measured. The last line is the ratio of the rates with the extra
micro-batch and without a link.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import sys
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from backends.megatron import facade
from backends.megatron.groups import build_groups
from flagvega.cluster.nodes import Cluster, Node
from flagvega.comm.pipe import Pipe
from flagvega.layout.build import build_plan
from flagvega.layout.plan import Plan
from flagvega.layout.ranks import places
from flagvega.layout.request import LayoutRequest, MeshRequest
from hardware.cpu import namespace
from hardware.cpu.device import CpuDevice

BOUND = 0.93
SEQUENCE, HIDDEN, NUM_MICRO_BATCHES = 8, 8, 32


class LinkedCpu(CpuDevice):
    """A CPU behind a link that takes the same time for any message."""

    def __init__(self, transfer_s: float) -> None:
        self.transfer_s = transfer_s

    def duration_s(self, kind: str, flops: float, num_bytes: float, tp: int = 1) -> float:
        """The link's time."""
        return self.transfer_s


class Sleep(torch.autograd.Function):
    """A third of a stage's time forward, two thirds backward."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, stage_s: float) -> torch.Tensor:
        """Sleep."""
        context.stage_s = stage_s
        time.sleep(stage_s / 3)
        return x.clone()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Sleep."""
        time.sleep(2 * context.stage_s / 3)
        return gradients[0], None


class Stage(torch.nn.Module):
    """Takes time, changes nothing."""

    def __init__(self, config: Any, stage_s: float) -> None:
        from megatron.core.enums import ModelType

        super().__init__()
        self.config, self.stage_s, self.model_type = config, stage_s, ModelType.encoder_or_decoder
        self.entering: torch.Tensor | None = None

    def set_input_tensor(self, tensors: list[torch.Tensor | None]) -> None:
        """What the stage before sent."""
        self.entering = tensors[0]

    def forward(self) -> torch.Tensor:
        """Pass on, late."""
        x = torch.zeros(SEQUENCE, 1, HIDDEN, requires_grad=True) if self.entering is None else self.entering
        return Sleep.apply(x, self.stage_s)  # type: ignore[no-any-return,no-untyped-call]


def make_plan(is_slow: bool) -> Plan:
    """Two meshes of one CPU each."""
    request = LayoutRequest(
        (MeshRequest(dp=1, chip="cpu"), MeshRequest(dp=1, chip="cpu")),
        2,
        1,
        64,
        slow_boundaries=(0,) if is_slow else (),
    )
    return build_plan(request, Cluster((Node("localhost", ("cpu", "cpu")),)))


def run_rank(rank: int, port: int, plan: Plan, stage_s: float, transfer_s: float, answer: Any) -> None:
    """Time one warm step; the last rank answers."""
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=rank == 0, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    facade.install(namespace.CPU, namespace)
    from megatron.core.pipeline_parallel import schedules
    from megatron.core.transformer.transformer_config import TransformerConfig

    me = places(plan)[rank]
    groups = build_groups(plan, me, {0: "gloo", 1: "gloo"})
    config = TransformerConfig(
        num_layers=2,
        hidden_size=HIDDEN,
        num_attention_heads=1,
        pipeline_model_parallel_size=2,
        pipeline_dtype=torch.float32,
    )
    model = Stage(config, stage_s)
    pipe = Pipe(plan, me, config, SEQUENCE, LinkedCpu(transfer_s), namespace.CPU, None, groups.boundaries)
    for _ in range(2):
        dist.barrier()
        begin = time.perf_counter()
        pipe.begin(NUM_MICRO_BATCHES)
        schedules.forward_backward_pipelining_without_interleaving(
            forward_step_func=lambda _, model: (model(), lambda out: (out.sum(), {})),
            data_iterator=iter(()),
            model=model,
            num_microbatches=NUM_MICRO_BATCHES,
            seq_length=SEQUENCE,
            micro_batch_size=1,
            p2p_communicator=pipe,
            pg_collection=groups.collection,
        )
        pipe.finish()
        dist.barrier()
        elapsed_s = time.perf_counter() - begin
    if rank == 1:
        answer.put(NUM_MICRO_BATCHES / elapsed_s)
    dist.destroy_process_group()


def measure(is_slow: bool, stage_s: float, transfer_s: float) -> float:
    """Micro-batches per second."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    arguments = (port, make_plan(is_slow), stage_s, transfer_s, answer)
    ranks = [context.Process(target=run_rank, args=(rank, *arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    rate = float(answer.get(timeout=300))
    for process in ranks:
        process.join()
    return rate


def main() -> int:
    """Print the three rates and the ratio; 1 when it is below the bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--stage-s", type=float, default=0.03, help="time of a stage for one micro-batch (default 0.03)"
    )
    parser.add_argument("--transfer-s", type=float, default=0.01, help="time of the link each way (default 0.01)")
    options = parser.parse_args()
    stock = measure(False, options.stage_s, options.transfer_s)
    extra = measure(True, options.stage_s, options.transfer_s)
    free = measure(False, options.stage_s, 0.0)
    print(f"micro-batches/s: no link {free:.2f}, link {stock:.2f}, link and one more in flight {extra:.2f}")
    print(f"ratio to no link: {extra / free:.3f} (without the extra micro-batch {stock / free:.3f}), bound {BOUND}")
    return int(extra / free < BOUND)


if __name__ == "__main__":
    sys.exit(main())
