"""The rank's part of the model: one GPTModel per chunk of the plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from backends.megatron.attention import CoreAttention
from backends.megatron.construct import transformer_config
from backends.megatron.norm import Norm
from flagvega.layout.plan import Plan
from flagvega.layout.ranks import Place, stage_chunks


def build_config(arguments: Mapping[str, Any], plan: Plan, me: Place, device: torch.device) -> Any:
    """The rank's TransformerConfig: the user's arguments, the plan's degrees, the device's limits."""
    interleaved = plan.schedule == "interleaved"
    return transformer_config(
        arguments,
        fused=device.type == "cuda",
        tensor_model_parallel_size=me.mesh.tp,
        context_parallel_size=me.mesh.cp,
        expert_model_parallel_size=me.mesh.ep,
        expert_tensor_parallel_size=me.mesh.etp,
        sequence_parallel=me.mesh.sp,
        pipeline_model_parallel_size=len(plan.stages),
        virtual_pipeline_model_parallel_size=len(plan.chain) // len(plan.stages) if interleaved else None,
        pipeline_model_parallel_layout=_layer_layout(plan) if len(plan.stages) > 1 else None,
        overlap_p2p_comm=interleaved,
        batch_p2p_comm=not interleaved,
        use_cpu_initialization=False,
        init_method=_keep,  # weights.py draws the values
        output_layer_init_method=_keep,
        embedding_init_method=_keep,
        calculate_per_token_loss=plan.batch.loss == "token",
        # Safe with our transport, which holds what it sends; the stock one would send freed memory over gloo.
        deallocate_pipeline_outputs=not interleaved,
        **recompute_fields(me, 0),
    )


def _keep(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def recompute_fields(me: Place, micro_batch: int) -> dict[str, Any]:
    """TransformerConfig's recompute fields for one of a stage's micro-batches."""
    rule = next(rule for rule in me.stage.recompute if rule.until is None or micro_batch < rule.until)
    full = rule.granularity == "full"
    return {
        "recompute_granularity": rule.granularity,
        "recompute_method": rule.method if full else None,
        "recompute_num_layers": rule.num_layers if full else None,
    }


def _layer_layout(plan: Plan) -> list[list[str]]:
    return [
        ["embedding"] * chunk.embedding + ["decoder"] * chunk.num_layers + ["loss"] * chunk.head for chunk in plan.chain
    ]


def build_model(
    arguments: Mapping[str, Any], config: Any, plan: Plan, me: Place, groups: Any, device: torch.device
) -> list[Any]:
    """One GPTModel per chunk of the rank's stage, on ``device``, weights not yet drawn."""
    from megatron.core.models.gpt import GPTModel

    chunks = stage_chunks(plan, me.stage.id)
    models = []
    for i, chunk in enumerate(chunks):
        model = GPTModel(
            config,
            _block_spec(arguments, config, range(*chunk.layers), device),
            vocab_size=plan.batch.padded_vocab_size,
            max_sequence_length=arguments["max_position_embeddings"],
            pre_process=chunk.embedding,
            post_process=chunk.head,
            share_embeddings_and_output_weights=plan.tied_embeddings,
            position_embedding_type=arguments["position_embedding_type"],
            rotary_percent=arguments["rotary_percent"],
            rotary_base=arguments["rotary_base"],
            rope_scaling=arguments["use_rope_scaling"],
            rope_scaling_factor=arguments["rope_scaling_factor"],
            seq_len_interpolation_factor=arguments["rotary_seq_len_interpolation_factor"],
            pg_collection=groups,
            vp_stage=i if len(chunks) > 1 else None,
        )
        models.append(model.to(device))
    return models


def _block_spec(arguments: Mapping[str, Any], config: Any, layers: range, device: torch.device) -> Any:
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

    if _use_transformer_engine(arguments, device):
        from megatron.core.extensions.transformer_engine import TENorm

        final_norm = TENorm
    else:
        final_norm = Norm
    specs = [_layer_spec(arguments, config, _is_expert_layer(config, layer), device) for layer in layers]
    return TransformerBlockSubmodules(layer_specs=specs, layer_norm=final_norm)


def _is_expert_layer(config: Any, layer: int) -> bool:
    if config.num_moe_experts is None:
        return False
    frequency = config.moe_layer_freq
    return bool(frequency[layer]) if isinstance(frequency, list) else layer % frequency == 0


def _use_transformer_engine(arguments: Mapping[str, Any], device: torch.device) -> bool:
    if device.type != "cuda" or arguments["transformer_impl"] != "transformer_engine":
        return False
    from megatron.core.extensions.transformer_engine import HAVE_TE

    return bool(HAVE_TE)


def _layer_spec(arguments: Mapping[str, Any], config: Any, has_experts: bool, device: torch.device) -> Any:
    from megatron.core.models.gpt import gpt_layer_specs

    options = {
        "num_experts": config.num_moe_experts if has_experts else None,
        "moe_grouped_gemm": config.moe_grouped_gemm if has_experts else False,
        "qk_layernorm": config.qk_layernorm,
    }
    if _use_transformer_engine(arguments, device):
        return gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(**options)
    spec = gpt_layer_specs.get_gpt_layer_local_spec(**options, normalization=config.normalization)
    attention = spec.submodules.self_attention.submodules
    attention.core_attention = CoreAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = Norm
    spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = Norm
    return spec
