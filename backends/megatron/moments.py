"""Optimizer state by parameter, whole on every replica: the same for any sharding of the optimizer.

megatron-core's own checkpoints of its plain and its distributed optimizer cannot be read by each
other, and its distributed one miscounts the steps of torch's Adam after loading (0.16.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Moments = dict[str, list[Tensor]]
"""State name -> a tensor shaped like each parameter, in the order asked."""


def state_names(optimizer_name: str, has_master: bool) -> tuple[str, ...]:
    """The tensors that an optimizer keeps for a parameter."""
    names = {"adam": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}[optimizer_name]
    return (*names, "master") if has_master else names


def read_moments(optimizer: Any, parameters: Sequence[Tensor], names: tuple[str, ...]) -> Moments:
    """Gather the state of ``parameters``; collective over the replicas of each part of the optimizer."""
    found: Moments = {name: [torch.zeros(p.shape, dtype=torch.float32) for p in parameters] for name in names}
    for part in optimizer.chained_optimizers:
        mine = [i for i, parameter in enumerate(parameters) if _belongs(parameter, part)]
        for name in names:
            for i in mine:
                _read_local(part, parameters[i], name, found[name][i])
        if part.config.use_distributed_optimizer:
            _sum_over_replicas(part, [found[name][i] for name in names for i in mine])
    return found


def write_moments(optimizer: Any, parameters: Sequence[Tensor], moments: Mapping[str, list[Tensor]], step: int) -> None:
    """Put gathered state where this rank's optimizer keeps it; ``step`` counts the updates so far."""
    optimizer.reload_model_params()
    for part in optimizer.chained_optimizers:
        for i, parameter in enumerate(parameters):
            if not _belongs(parameter, part):
                continue
            held = _held(part, parameter)
            if held is None:
                continue
            main, span = held
            state = {name: _cut(tensors[i], span, main) for name, tensors in moments.items() if name != "master"}
            if part.config.optimizer == "adam":
                state["step"] = torch.tensor(float(step))
            part.optimizer.state[main] = state
            if "master" in moments:
                with torch.no_grad():
                    main.copy_(_cut(moments["master"][i], span, main))


def _belongs(parameter: Tensor, part: Any) -> bool:
    """Dense parameters and experts have optimizers of their own; both lists are disjoint."""
    if part.is_stub_optimizer:
        return False
    is_expert = not getattr(parameter, "allreduce", True)
    return is_expert == any(group["is_expert_parallel"] for group in part.param_groups)


def _held(part: Any, parameter: Tensor) -> tuple[Tensor, tuple[int, int]] | None:
    """The tensor that the optimizer steps for a parameter, and the flat range of the parameter it covers."""
    if not part.config.use_distributed_optimizer:
        return getattr(parameter, "main_param", parameter), (0, parameter.numel())
    if parameter not in part.model_param_group_index_map:
        return None
    group, order = part.model_param_group_index_map[parameter]
    span = part._get_model_param_range_map(parameter)["param"]
    return part.optimizer.param_groups[group]["params"][order], (span.start, span.end)


def _cut(whole: Tensor, span: tuple[int, int], like: Tensor) -> Tensor:
    return whole.reshape(-1)[slice(*span)].reshape(like.shape).to(like.device, torch.float32, copy=True)


def _read_local(part: Any, parameter: Tensor, name: str, into: Tensor) -> None:
    held = _held(part, parameter)
    if held is None:
        return
    main, span = held
    value = main if name == "master" else part.optimizer.state[main].get(name)
    if value is not None:
        into.view(-1)[slice(*span)] = value.detach().reshape(-1).float().cpu()


def _sum_over_replicas(part: Any, tensors: list[Tensor]) -> None:
    if not tensors:
        return
    group = part.data_parallel_group
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    device = next(iter(part.model_param_gbuf_map), flat).device
    moved = flat.to(device)
    dist.all_reduce(moved, group=group)
    for tensor, piece in zip(tensors, moved.cpu().split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(piece.view(tensor.shape))
