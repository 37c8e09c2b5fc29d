"""Optimizer and learning-rate schedule: megatron-core's own, with the plan's groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.megatron.construct import optimizer_config
from backends.megatron.gradients import share_norm
from backends.megatron.groups import Groups
from backends.megatron.progress import Extent
from flagvega.layout.plan import Plan
from flagvega.platform import Device


def build_optimizer(
    arguments: Mapping[str, Any], plan: Plan, models: list[Any], groups: Groups, device: Device
) -> Any:
    """The rank's optimizer (a ChainedOptimizer) over the wrapped model chunks."""
    from megatron.core.optimizer import get_megatron_optimizer

    config = optimizer_config(arguments, use_distributed_optimizer=plan.distributed_optimizer)
    optimizer = get_megatron_optimizer(config, models, use_gloo_process_groups=False, pg_collection=groups.collection)
    share_norm(optimizer, groups, device)
    return optimizer


def build_scheduler(arguments: Mapping[str, Any], optimizer: Any, extent: Extent) -> Any:
    """Learning rate and weight decay by samples seen, as Megatron-LM's ``get_optimizer_param_scheduler``."""
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    size = extent.global_batch_size
    _, num_samples = extent.totals()
    by_samples = extent.train_samples is not None
    unit, given = (1, "samples") if by_samples else (size, "iters")
    decay = arguments[f"lr_decay_{given}"]
    decay = num_samples if decay is None else decay * unit
    wsd = arguments[f"lr_wsd_decay_{given}"]
    fraction = arguments["lr_warmup_fraction"]
    warmup = fraction * decay if fraction is not None else arguments[f"lr_warmup_{given}"] * unit
    weight_decay = arguments["weight_decay"]
    constant = arguments["weight_decay_incr_style"] == "constant"
    return OptimizerParamScheduler(
        optimizer,
        init_lr=arguments["lr_warmup_init"],
        max_lr=arguments["lr"],
        min_lr=arguments["min_lr"],
        lr_warmup_steps=warmup,
        lr_decay_steps=decay,
        lr_decay_style=arguments["lr_decay_style"],
        start_wd=weight_decay if constant else arguments["start_weight_decay"],
        end_wd=weight_decay if constant else arguments["end_weight_decay"],
        wd_incr_steps=num_samples,
        wd_incr_style=arguments["weight_decay_incr_style"],
        use_checkpoint_opt_param_scheduler=arguments["use_checkpoint_opt_param_scheduler"],
        override_opt_param_scheduler=arguments["override_opt_param_scheduler"],
        wsd_decay_steps=None if wsd is None else wsd * unit,
        lr_wsd_decay_style=arguments["lr_wsd_decay_style"],
    )


def count_updated(optimizer: Any) -> int:
    """Parameters that the rank itself updates: a part of those it holds where replicas share the work."""
    return sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])


def current_lr(scheduler: Any) -> float:
    """The learning rate of the coming step, also on ranks that hold no parameters."""
    return float(scheduler.get_lr({"max_lr": scheduler.max_lr, "min_lr": scheduler.min_lr}))
