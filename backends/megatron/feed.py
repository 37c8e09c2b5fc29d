"""Micro-batches for the schedule: the samples of this rank, cut for context parallelism."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from flagvega.comm.reshard import owned_samples, sequence_runs
from flagvega.layout.plan import Plan
from flagvega.layout.ranks import Place

PER_TOKEN = ("tokens", "labels", "loss_mask", "position_ids")


class Dataset(Protocol):
    """Samples by index; each a mapping of 1-D tensors as long as the sequence."""

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def feed(
    dataset: Dataset, plan: Plan, me: Place, first_sample: int, num_micro_batches: int, device: torch.device
) -> Iterator[dict[str, Tensor]]:
    """The micro-batches of a step; every tensor ``[samples, sequence]`` (masks keep their own shape).

    Which samples a global micro-batch has depends on its number only, never on the layout.
    """
    size = plan.batch.samples
    low, high = owned_samples(me.mesh, me.dp, size)
    for i in range(num_micro_batches):
        samples = [dataset[first_sample + i * size + j] for j in range(low, high)]
        batch = {name: torch.stack([torch.as_tensor(sample[name]) for sample in samples]) for name in samples[0]}
        for name in PER_TOKEN:
            batch[name] = _cut_sequence(batch[name], me).to(device)
        if "attention_mask" in batch:
            batch["attention_mask"] = batch["attention_mask"].to(device)
        yield batch


def _cut_sequence(tensor: Tensor, me: Place) -> Tensor:
    if me.mesh.cp == 1:
        return tensor
    runs = sequence_runs(tensor.shape[1], me.mesh.cp, me.cp)
    return torch.cat([tensor[:, start:stop] for start, stop in runs], dim=1).contiguous()
