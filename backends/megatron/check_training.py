"""What is wrong with the course of training: its length, learning rate, batch, saving."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from backends.megatron.numbers import nearest_multiple
from flagvega.config.spec import Spec
from flagvega.errors import Fault


def check_training(spec: Spec, settings: Mapping[str, Any]) -> list[Fault]:
    """Faults of the schedule; ``settings`` are the completed arguments of the spec."""
    return [
        *_length(spec),
        *_warmup(spec, settings),
        *_rates(spec, settings),
        *_batch(spec, settings),
        *_needs(spec, settings),
    ]


def _at(spec: Spec, name: str) -> str:
    return spec.where.get(name, name)


def _length(spec: Spec) -> Iterator[Fault]:
    """Iterations and samples do not mix, as in Megatron-LM."""
    given = {name for name, value in spec.arguments.items() if value}
    if {"train_iters", "train_samples"} <= given:
        what = "'train_iters' and 'train_samples' both say how long to train"
        yield Fault(what, _at(spec, "train_samples"), "keep one of them")
        return
    by, other = ("samples", "iters") if "train_samples" in given else ("iters", "samples")
    for name in ("lr_decay", "lr_warmup", "lr_wsd_decay"):
        if f"{name}_{other}" in given:
            what = f"'{name}_{other}' does not go with 'train_{by}'"
            yield Fault(what, _at(spec, f"{name}_{other}"), f"write {name}_{by}")
    if by == "iters" and "rampup_batch_size" in given:
        where = _at(spec, "rampup_batch_size")
        yield Fault("'rampup_batch_size' does not go with 'train_iters'", where, "write train_samples")


def _warmup(spec: Spec, settings: Mapping[str, Any]) -> Iterator[Fault]:
    fraction = settings["lr_warmup_fraction"]
    by = "samples" if settings["train_samples"] else "iters"
    warmup, total = settings[f"lr_warmup_{by}"], settings[f"lr_decay_{by}"] or settings[f"train_{by}"]
    if fraction is not None and warmup:
        what = f"'lr_warmup_fraction' and 'lr_warmup_{by}' both say how long to warm up"
        yield Fault(what, _at(spec, f"lr_warmup_{by}"), "keep one of them")
    if fraction is not None and not 0 <= fraction < 1:
        where = _at(spec, "lr_warmup_fraction")
        yield Fault(f"'lr_warmup_fraction' is {fraction}", where, "legal: at least 0 and less than 1")
    if total and warmup and not 0 <= warmup < total:
        what = f"lr_warmup_{by} {warmup} is not less than the {total} over which the learning rate decays"
        yield Fault(what, _at(spec, f"lr_warmup_{by}"), f"legal: 0 to {total - 1}")
    if settings["lr_decay_style"] == "WSD":
        annealing = settings[f"lr_wsd_decay_{by}"]
        if annealing is None or (total and annealing > total):
            what = f"lr_decay_style WSD needs lr_wsd_decay_{by}, at most {total}"
            yield Fault(what, _at(spec, "lr_decay_style"), f"add lr_wsd_decay_{by}: {max(1, (total or 10) // 10)}")


def _rates(spec: Spec, settings: Mapping[str, Any]) -> Iterator[Fault]:
    if settings["min_lr"] > settings["lr"]:
        what = f"min_lr {settings['min_lr']} is more than lr {settings['lr']}"
        yield Fault(what, _at(spec, "min_lr"), f"legal: 0 to {settings['lr']}")
    if settings["lr_warmup_init"] > settings["lr"]:
        what = f"lr_warmup_init {settings['lr_warmup_init']} is more than lr {settings['lr']}"
        yield Fault(what, _at(spec, "lr_warmup_init"), f"legal: 0 to {settings['lr']}")
    ends = [name for name in ("start_weight_decay", "end_weight_decay") if settings[name] is not None]
    style = settings["weight_decay_incr_style"]
    if style == "constant" and ends:
        fix = "write weight_decay_incr_style: linear or cosine, or remove it"
        yield Fault(f"'{ends[0]}' has no effect on a constant weight decay", _at(spec, ends[0]), fix)
    if style != "constant" and len(ends) < 2:
        where = _at(spec, "weight_decay_incr_style")
        yield Fault(f"weight_decay_incr_style {style} needs start_weight_decay and end_weight_decay", where, "add both")
    if {"override_opt_param_scheduler", "use_checkpoint_opt_param_scheduler"} <= {n for n, v in settings.items() if v}:
        where = _at(spec, "override_opt_param_scheduler")
        yield Fault("the schedule is both overridden and taken from the checkpoint", where, "keep one of them")


_NEEDS = (
    ("overlap_param_gather", ("use_distributed_optimizer",)),
    ("overlap_param_gather", ("overlap_grad_reduce",)),
    ("fp16_lm_cross_entropy", ("fp16",)),
    ("fp32_residual_connection", ("bf16", "fp16")),
)
"""Keys with those of which one must be true beside them."""


def _needs(spec: Spec, settings: Mapping[str, Any]) -> Iterator[Fault]:
    for name, others in _NEEDS:
        if settings[name] and not any(settings[other] for other in others):
            yield Fault(f"'{name}' needs {' or '.join(others)}", _at(spec, name), f"add {others[0]}: true")
    if settings["use_distributed_optimizer"] and settings["optimizer"] != "adam":
        what = f"megatron-core's distributed optimizer is Adam, not {settings['optimizer']}"
        yield Fault(what, _at(spec, "optimizer"), "write use_distributed_optimizer: false, or optimizer: adam")


def _batch(spec: Spec, settings: Mapping[str, Any]) -> Iterator[Fault]:
    size, micro = settings["global_batch_size"], settings["micro_batch_size"]
    if size % micro:
        what = f"global_batch_size {size} is no multiple of micro_batch_size {micro}"
        yield Fault(what, _at(spec, "global_batch_size"), f"{nearest_multiple(size, micro)} would fit")
    rampup = settings["rampup_batch_size"]
    if not rampup:
        return
    where = _at(spec, "rampup_batch_size")
    if len(rampup) != 3 or min(rampup) < 1:
        what = f"rampup_batch_size {list(rampup)} is not [start, increment, samples]"
        yield Fault(what, where, f"for example [{micro}, {micro}, 1000000]")
    elif rampup[0] > size or (size - rampup[0]) % rampup[1]:
        what = f"from {rampup[0]} by {rampup[1]} the batch never is global_batch_size {size}"
        yield Fault(what, where, f"the increment divides {size} - start")
