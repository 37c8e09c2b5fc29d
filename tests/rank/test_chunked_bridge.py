"""Transfers that are cut into chunks carry what whole ones do."""

from __future__ import annotations

import multiprocessing
import socket
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from flagvega.cluster.nodes import Cluster, Node
from flagvega.comm.neighbour import Neighbour, Shape
from flagvega.layout.build import build_plan
from flagvega.layout.plan import Boundary
from flagvega.layout.ranks import places
from flagvega.layout.request import LayoutRequest, MeshRequest
from hardware.cpu.device import CpuDevice

SEQUENCE, HIDDEN = 24, 6


def exchange(rank: int, port: int, answer: Any) -> None:
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=rank == 0, timeout=timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    forward, backward = dist.new_group(), dist.new_group()
    meshes = (MeshRequest(dp=1, chip="cpu"), MeshRequest(dp=1, chip="cpu"))
    plan = build_plan(LayoutRequest(meshes, 2, 2, 64), Cluster((Node("localhost", ("cpu", "cpu")),)))
    me, other = places(plan)[rank], places(plan)[1 - rank]
    shape = Shape(SEQUENCE, HIDDEN, torch.float32, torch.device("cpu"))
    tensor = torch.arange(SEQUENCE * 2 * HIDDEN, dtype=torch.float32).view(SEQUENCE, 2, HIDDEN)
    take, give = (backward, forward) if rank == 0 else (forward, backward)
    found = []
    for wire in (None, "bf16"):
        for chunk_bytes in (0, 1, 100, 10**9):
            boundary = Boundary("bridge", wire, chunk_bytes)
            side = Neighbour(me, boundary, [other], shape, 2, None, take, give, CpuDevice())
            side.expect(2, 2)
            for sign in (1, -1):
                side.give(sign * tensor)
            wanted = tensor.to(torch.bfloat16).float() if wire else tensor
            found.append(all(torch.equal(side.take(), sign * wanted) for sign in (1, -1)))
            side.outbox.finish()
    answer.put(found)
    dist.destroy_process_group()


def test_a_transfer_in_chunks_arrives_as_one_in_a_piece_does() -> None:
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [context.Process(target=exchange, args=(rank, port, answer)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = [answer.get(timeout=120) for _ in ranks]
    for process in ranks:
        process.join()
    assert found == [[True] * 8] * 2
