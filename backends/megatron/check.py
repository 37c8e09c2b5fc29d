"""What is wrong with the arguments before any plan: missing, contradictory or impossible values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from backends.megatron.arguments import complete, keys, negations
from backends.megatron.check_model import check_model
from backends.megatron.check_training import check_training
from backends.megatron.datafiles import check_data, read_sources
from backends.megatron.pretrained import check_pretrained, is_pretrained
from backends.megatron.request import located, padded_vocab_size, read_request
from flagvega.config.spec import Spec
from flagvega.errors import ConfigError, Fault

_REQUIRED = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "seq_length",
    "max_position_embeddings",
    "micro_batch_size",
    "global_batch_size",
    "lr",
)
_POSITIVE = (
    *_REQUIRED,
    "num_query_groups",
    "ffn_hidden_size",
    "kv_channels",
    "vocab_size",
    "make_vocab_size_divisible_by",
    "multiple_of",
    "hidden_dim_multiplier",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "num_layers_per_virtual_pipeline_stage",
    "num_virtual_stages_per_pipeline_rank",
    "num_experts",
    "moe_router_topk",
    "moe_ffn_hidden_size",
    "train_iters",
    "train_samples",
    "eval_interval",
    "save_interval",
    "exit_interval",
    "keep_last",
    "log_interval",
    "tensorboard_log_interval",
    "distributed_timeout_minutes",
    "rotary_base",
    "rotary_percent",
    "rotary_seq_len_interpolation_factor",
    "norm_epsilon",
    "adam_eps",
    "init_method_std",
    "ddp_bucket_size",
    "num_dataset_builder_threads",
)
_SHARES = ("hidden_dropout", "attention_dropout", "adam_beta1", "adam_beta2", "sgd_momentum")
_NOT_NEGATIVE = ("min_lr", "weight_decay", "clip_grad", "eval_iters", "moe_aux_loss_coeff", "lr_warmup_init")

_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (_POSITIVE, lambda value: value > 0, "more than 0"),
    (_NOT_NEGATIVE, lambda value: value >= 0, "0 or more"),
    (_SHARES, lambda value: 0 <= value < 1, "at least 0 and less than 1"),
)


def check_arguments(spec: Spec) -> list[Fault]:
    """Every fault of the arguments that needs no plan, the layout that they ask for included."""
    settings = complete(spec.arguments)
    unusable = unusable_values(spec)
    faults = [*_unsupported(spec), *_contradictions(spec), *unusable]
    if unusable:
        return faults
    faults += [*check_model(spec, settings), *check_training(spec, settings)]
    for read in (lambda: read_sources(spec.arguments), lambda: read_request(spec)):
        try:
            read()
        except ConfigError as error:
            faults += _placed(spec, error.faults)
    return faults


def unusable_values(spec: Spec) -> list[Fault]:
    """Values that are missing or out of range: without them nothing else can be asked."""
    return [*_missing(spec), *_out_of_range(spec, complete(spec.arguments))]


def check_files(spec: Spec) -> list[Fault]:
    """Faults of the files that the run will read on this host; a dry run elsewhere does not ask."""
    settings = complete(spec.arguments)
    faults = check_data(settings, padded_vocab_size(spec, settings))
    faults += _check_load(spec, settings)
    return _placed(spec, faults)


def _check_load(spec: Spec, settings: Mapping[str, Any]) -> list[Fault]:
    """Of what the run begins from. Its own checkpoints may be there later; another folder that is not is a mistake."""
    if not settings["load"]:
        return []
    given, own = Path(settings["load"]), Path(settings["save"] or spec.exp_dir / "checkpoints")
    if is_pretrained(given):
        return check_pretrained(given, settings)
    if given.exists() or own.exists() or given.absolute() == own.absolute():
        return []
    fix = "give a folder of checkpoints or of a HuggingFace model, or leave it out to begin with random weights"
    return [Fault(f"there is nothing at {given}", "load", fix)]


def _placed(spec: Spec, faults: Iterable[Fault]) -> list[Fault]:
    """Faults at the places of the YAML; a key that is not there has that of its block."""
    block = {"data_path": spec.where.get("train.data", "data_path")}
    return [replace(fault, where=block.get(fault.where, fault.where)) for fault in located(spec, faults)]


def warnings_of(spec: Spec) -> list[str]:
    """What the arguments ask for and do not get, each with its place."""
    found = []
    for name, value in spec.arguments.items():
        key = keys()[name]
        if key.target == "ignored" and value != key.default:
            found.append(f"{_at(spec, name)}: ignored: {key.note}")
    if spec.arguments.get("ckpt_format", "torch_dist") != "torch_dist":
        found.append(f"{_at(spec, 'ckpt_format')}: checkpoints are written as torch_dist")
    if _loses_token_counts(spec):
        what = "losses are averaged per micro-batch, so with loss masks the layout matters a little"
        found.append(f"{what}; write calculate_per_token_loss: true to make all layouts equal")
    return found


def _loses_token_counts(spec: Spec) -> bool:
    settings = complete(spec.arguments)
    return not settings["calculate_per_token_loss"] and (settings["eod_mask_loss"] or settings["reset_attention_mask"])


def _at(spec: Spec, name: str, otherwise: str | None = None) -> str:
    return spec.where.get(name, otherwise or name)


def _unsupported(spec: Spec) -> Iterator[Fault]:
    for name, value in spec.arguments.items():
        key = keys()[name]
        asks_nothing = value == key.default or (key.type == "bool" and not value and not key.default)
        if key.target == "unsupported" and not asks_nothing:
            yield Fault(f"'{name}' is known, but not supported", _at(spec, name), key.note)


def _contradictions(spec: Spec) -> Iterator[Fault]:
    for negative, positive in negations().items():
        if negative in spec.arguments and positive in spec.arguments:
            what = f"'{positive}' and its negation '{negative}' are both given"
            yield Fault(what, _at(spec, negative), f"keep one of them; the other is at {_at(spec, positive)}")
    for first, second in (("bf16", "fp16"), ("swiglu", "squared_relu"), ("mock_data", "data_path")):
        if spec.arguments.get(first) and spec.arguments.get(second):
            yield Fault(f"'{first}' and '{second}' exclude each other", _at(spec, second), "keep one of them")


def _missing(spec: Spec) -> Iterator[Fault]:
    for name in _REQUIRED:
        if spec.arguments.get(name) is None:
            block = "system or model" if "batch" in name else "model"
            yield Fault(f"'{name}' is missing", _at(spec, "train.model", "train"), f"write it under train.{block}")
    if not {"train_iters", "train_samples"} & set(spec.arguments):
        where = _at(spec, "train.model", "train")
        yield Fault("neither 'train_iters' nor 'train_samples' is given", where, "write train_iters: 1000, say")


def _out_of_range(spec: Spec, settings: Mapping[str, Any]) -> Iterator[Fault]:
    for names, fits, legal in _RANGES:
        for name in names:
            if name in spec.arguments and settings[name] is not None and not fits(settings[name]):
                yield Fault(f"'{name}' is {settings[name]}", _at(spec, name), f"legal: {legal}")
