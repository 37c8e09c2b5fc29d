"""What published runs do not say in their row: parts of a model's shape, the engine's kernels, hosts and networks."""

from __future__ import annotations

from dataclasses import dataclass

from flagvega.model.shape import Experts, LatentAttention
from flagvega.model.workload import Kernels

CHIPS = {
    "B200-SXM": "b200-sxm",
    "B200": "b200-sxm",
    "B300": "b300-sxm",
    "GB200": "gb200",
    "GB300": "gb300",
    "H100": "h100-sxm",
    "GH-96": "gh200-96g",
    "A100-80GB-SXM": "a100-sxm-80g",
    "A800-80GB": "a800-sxm-80g",
    "a100_40gb": "a100-sxm-40g",
    "a100_80gb": "a100-sxm-80g",
    "h100_80gb": "h100-sxm",
    "H100-96GB-HBM2e-500W": "h100-sxm",
}
DTYPES = {
    "bf16": "bf16", "amp_bf16": "bf16", "BF16": "bf16", "fp16": "fp16", "fp32": "fp32",
    "FP8": "fp8", "FP8-CS": "fp8", "FP8-MX": "fp8", "MXFP8": "fp8",
}  # fmt: skip
"""As the products ran; both scalings of fp8 are one."""


@dataclass(frozen=True)
class Source:
    """How a project's engine works, and the cluster it was measured on."""

    kernels: Kernels = Kernels()
    gradient_bytes: int = 4
    sharded_optimizer: bool = True
    overlaps_reduction: bool = True
    devices_per_host: int = 8
    network_bytes_per_s: float = 25e9
    """Of one device; 200 Gb/s where nothing is told."""
    gated: bool = False
    is_foreign: bool = False
    """Starts its kernels in its own time, and its memory figure is all that is used on a device: both are fitted."""


SOURCES = {
    # Megatron-LM with Transformer Engine, flash attention, fused loss, no overlap of any collective
    # (docs/b200/b200_real_repro_guide.md, simu_tools/megatron_scripts).
    "SimuMax": Source(Kernels(fused=True), overlaps_reduction=False, gated=True),
    # Megatron-DeepSpeed in fp32: attention by baddbmm, softmax, bmm (megatron/model/opt_model.py); `zero_optimization`
    # empty; memory of the whole device after a step (deepspeed/pipe_engine.py).
    "Sailor": Source(Kernels(keeps_scores=True), sharded_optimizer=False, overlaps_reduction=False,
                     devices_per_host=4, is_foreign=True),
    # Four ports of 100 Gb/s for eight devices; gradients taken to be reduced in bf16.
    "InternEvo": Source(Kernels(fused=True), gradient_bytes=2, network_bytes_per_s=6.25e9, gated=True),
    # Compiled, and with flash-attention's loss in one kernel: neither has fp32 logits pass over memory.
    "torchtitan": Source(Kernels(fused=True), gated=True),
    "llm-foundry": Source(Kernels(fused=True)),
    "Megatron-Bridge": Source(Kernels(fused=True), network_bytes_per_s=50e9, gated=True),
}  # fmt: skip
WITHOUT_HEAD = ("GPT-NEO",)
"""Sailor's has no output layer: 20,480 bytes of parameters behind its last layer (sailor/Planner/llm_info.json)."""
NVLINK_DOMAIN = {"gb200": 64, "gb300": 64}
"""Devices that reach each other over NVLink where that is more than a host has; 72, of which runs used 64."""

DEEPSEEK = LatentAttention(q_rank=1536, kv_rank=512, qk_nope_dim=128, qk_rope_dim=64, v_dim=128)


@dataclass(frozen=True)
class Extra:
    """What the table has no columns for."""

    experts: Experts
    dense_layers: int = 0
    """At the beginning."""
    latent: LatentAttention | None = None
    head_dim: int = 0
    """0: hidden size over heads."""


MODELS = {
    # SimuMax configs/models/*.json@4dcaae51; both of its runs have one dense layer.
    "deepseek-v2": Extra(Experts(160, 6, 1536, 3072), 1, DEEPSEEK),
    "deepseek-v3": Extra(Experts(256, 8, 2048, 2048), 1, DEEPSEEK),
    # Published config.json of each.
    "deepseek-v3-671b": Extra(Experts(256, 8, 2048, 2048), 3, DEEPSEEK),
    "kimi-k2": Extra(Experts(384, 8, 2048, 2048), 1, DEEPSEEK),
    "qwen3-30b-a3b": Extra(Experts(128, 8, 768), head_dim=128),
    "qwen3-235b-a22b": Extra(Experts(128, 8, 1536), head_dim=128),
    "gpt-oss-120b": Extra(Experts(128, 4, 2880), head_dim=64),
}
FAMILIES = {
    "deepseek-v3-671b": "deepseek-v3", "qwen3-30b-a3b": "qwen3", "qwen3-235b-a22b": "qwen3",
    "llama3.1-8b": "llama3", "llama3.1-70b": "llama3", "llama3.1-405b": "llama3",
}  # fmt: skip
"""Of Megatron-Bridge's models; another's family is its name."""
