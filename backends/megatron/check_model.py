"""What is wrong with the model's shape: heads, widths, positions, experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from backends.megatron.numbers import divisors_of, nearest
from flagvega.config.spec import Spec
from flagvega.errors import Fault


def check_model(spec: Spec, settings: Mapping[str, Any]) -> list[Fault]:
    """Faults of the shape; ``settings`` are the completed arguments of the spec."""
    return [*_shape(spec, settings), *_position(spec, settings), *_experts(spec, settings)]


def _at(spec: Spec, name: str) -> str:
    return spec.where.get(name, name)


def _shape(spec: Spec, settings: Mapping[str, Any]) -> Iterator[Fault]:
    hidden, heads = settings["hidden_size"], settings["num_attention_heads"]
    if "kv_channels" not in spec.arguments and hidden % heads:
        near = nearest(divisors_of(hidden), heads)
        what = f"hidden_size {hidden} is no multiple of num_attention_heads {heads}"
        yield Fault(
            what, _at(spec, "num_attention_heads"), f"num_attention_heads {near} would fit, or give kv_channels"
        )
    groups = spec.arguments.get("num_query_groups")
    if settings["group_query_attention"] and heads % settings["num_query_groups"]:
        what = f"num_attention_heads {heads} is no multiple of num_query_groups {groups}"
        fix = f"legal: {', '.join(map(str, divisors_of(heads)))}"
        yield Fault(what, _at(spec, "num_query_groups"), fix)
    if groups not in (None, heads) and "group_query_attention" not in spec.arguments:
        what = f"num_query_groups {groups} has no effect without group_query_attention"
        yield Fault(what, _at(spec, "num_query_groups"), "add group_query_attention: true")
    if settings["group_query_attention"] and groups is None:
        fix = f"write num_query_groups, one of {', '.join(map(str, divisors_of(heads)))}"
        yield Fault("group_query_attention without num_query_groups", _at(spec, "group_query_attention"), fix)
    if settings["max_position_embeddings"] < settings["seq_length"]:
        longest, length = settings["max_position_embeddings"], settings["seq_length"]
        what = f"max_position_embeddings {longest} is less than seq_length {length}"
        yield Fault(what, _at(spec, "max_position_embeddings"), f"write at least {length}")
    if settings["hidden_dim_multiplier"] and not settings["multiple_of"]:
        yield Fault(
            "hidden_dim_multiplier needs multiple_of", _at(spec, "hidden_dim_multiplier"), "add multiple_of: 256"
        )


def _position(spec: Spec, settings: Mapping[str, Any]) -> Iterator[Fault]:
    kind = spec.arguments.get("position_embedding_type")
    if settings["use_rotary_position_embeddings"] and kind not in (None, "rope"):
        what = f"position_embedding_type {kind} beside use_rotary_position_embeddings"
        yield Fault(what, _at(spec, "position_embedding_type"), "keep one of them")
    if settings["no_position_embedding"] and settings["position_embedding_type"] == "learned_absolute":
        fix = "write position_embedding_type: rope or none"
        yield Fault("no_position_embedding says no more what it did", _at(spec, "no_position_embedding"), fix)
    if settings["rotary_percent"] > 1:
        yield Fault(f"'rotary_percent' is {settings['rotary_percent']}", _at(spec, "rotary_percent"), "legal: up to 1")


def _experts(spec: Spec, settings: Mapping[str, Any]) -> Iterator[Fault]:
    experts, topk = settings["num_experts"], settings["moe_router_topk"]
    if experts is None:
        if settings["expert_model_parallel_size"] > 1:
            where = _at(spec, "expert_model_parallel_size")
            yield Fault("expert parallelism without experts", where, "give num_experts, or write 1")
        return
    if topk > experts:
        what = f"moe_router_topk {topk} is more than num_experts {experts}"
        yield Fault(what, _at(spec, "moe_router_topk"), f"legal: 1 to {experts}")
    if settings["moe_pad_expert_input_to_capacity"] and settings["moe_expert_capacity_factor"] is None:
        where = _at(spec, "moe_pad_expert_input_to_capacity")
        yield Fault(
            "padding to capacity needs moe_expert_capacity_factor", where, "add moe_expert_capacity_factor: 1.0"
        )
    capped = settings["moe_expert_capacity_factor"] is not None
    if capped and settings["moe_router_load_balancing_type"] == "sinkhorn":
        where = _at(spec, "moe_expert_capacity_factor")
        yield Fault(
            "sinkhorn balancing takes no capacity factor", where, "write moe_router_load_balancing_type: aux_loss"
        )
