"""Every layout computes what one process computes: ten steps, as the product starts them, within 1e-5."""

from __future__ import annotations

import pytest

from tests.rank.gate import TOLERANCE, Gate, deviation

OVERLAP = "overlap_grad_reduce=true"
GATHER = f"distopt=true {OVERLAP} overlap_param_gather=true"
MEAN = "calculate_per_token_loss=false"
FULL = "recompute_granularity=full recompute_method"
PER_STAGE = "recompute_{}_per_stage_micro_batch"

ONE_MESH = (
    "llama tp2",
    "llama tp2 sp",
    "llama pp2",
    "llama pp4",
    "llama pp3 pipeline_model_parallel_layout=E|tt|ttL",
    "llama dp2",
    "llama dp2 distopt=true",
    f"llama dp2 pp2 {GATHER}",
    f"llama dp4 {GATHER} ddp_bucket_size=2000",
    "llama cp2",
    "gpt pp2 split=[1,3]",
)
INTERLEAVED = (
    "llama pp2 vpp=2 micro=2",
    "llama pp2 vpp=3 micro=2 num_layers=6",
    "llama pp4 vpp=2 micro=1 num_layers=8",
    f"llama dp2 pp2 vpp=2 micro=1 {MEAN} {GATHER}",
    "gpt dp2 pp2 vpp=2 micro=1 distopt=true",
    "moe ep2 dp2 pp2 vpp=2 micro=1 num_layers=4",
)
RECOMPUTE = (
    f"llama pp2 {FULL}=uniform recompute_num_layers=1",
    f"llama pp2 {FULL}=block recompute_num_layers=1",
    "llama pp2 recompute_granularity=selective",
    f"llama pp2 micro=2 recompute_granularity=full {PER_STAGE.format('granularity')}=[[1,3,1,3,0],[1,6,1]]"
    f" {PER_STAGE.format('method')}=[[1,6,0],[1,6,1]] {PER_STAGE.format('num_layers')}=[[1,6,1],[1,6,1]]",
    f"llama dp2 | tp2 {FULL}=uniform recompute_num_layers=1",
)
EXPERTS = (
    "moe dp2 micro=2",
    "moe ep2 dp2 pp2",
    "moe ep2 dp2 moe_token_dispatcher_type=allgather",
    "moe ep2 dp4 distopt=true",
    "moe cp2 ep2 dp2 moe_z_loss_coeff=0.01",
    "moe tp2 ep2 etp1 sp",
    "moe tp2 etp2 sp moe_z_loss_coeff=0.01",
    "moe tp2 ep2 etp1 sp moe_shared_expert_intermediate_size=32",
    "moe dp2 | ep2 dp2",
    "moe ep2 dp2 | tp2 ep2 etp1 sp moe_shared_expert_intermediate_size=32 moe_shared_expert_gate=true",
    "moe ep2 dp2 | tp2 etp2 sp distopt=true",
    "moe ep2 dp2 | cp2 ep2 moe_token_dispatcher_type=allgather",
    "moe pp2 | tp2 ep2 etp1 sp num_layers=4 moe_layer_freq=[0,1,0,1] split=[1,1,2]",
)
MIXED = (
    "llama tp2 | dp2",
    "llama dp2 | tp2",
    "llama dp2 | dp3",
    "llama dp3 | dp2 split=[1,3]",
    "llama tp2 dp2 | dp4",
    "llama tp2 sp | dp2",
    "llama dp2 | tp2 sp",
    "llama tp2 | dp2 | cp2 | pp2 split=[1,1,1,0,1]",
    "llama pp2 dp2 | tp2",
    "llama pp2 | tp2 pp2 | dp2 split=[1,0,1,1,1]",
    "llama dp2 | tp2 chips=[emu-l,emu-m]",
    "llama dp2 | tp2 distopt=true",
)
WITHOUT_LAYERS = (
    "llama dp2 | tp2 | dp3 split=[0,3,1]",
    "llama dp2 | tp2 | dp3 split=[2,0,2]",
    "llama dp2 | tp2 | dp3 split=[1,3,0]",
    "gpt dp2 | tp2 num_layers=1 split=[0,1]",
)
UNLIKE_SEQUENCES = (
    "llama cp2 | dp2",
    "llama cp2 tp2 | dp2",
    "llama cp2 | tp2 sp",
    "llama tp2 | cp2",
    "llama cp4 | cp2 tp2",
)
MEAN_LOSS = (
    f"llama dp2 | tp2 {MEAN}",
    f"llama dp4 | dp2 | dp1 {MEAN}",
    f"llama dp2 | dp3 | tp2 {MEAN} distopt=true",
)
TIED = (
    "gpt tp2 | dp2",
    "gpt tp2 | dp2 distopt=true",
    "gpt dp2 | tp2 sp distopt=true",
    "gpt dp3 | tp2 | dp2 distopt=true ddp_bucket_size=2000",
    f"gpt dp3 | tp4 distopt=true {MEAN}",
    f"gpt tp2 dp2 | dp4 {GATHER}",
    "gpt cp2 | dp2 distopt=true",
)
UNEVEN_MASKS = (
    "llama tp2 | dp2 mask=true",
    "llama dp2 | dp3 mask=true",
    "llama cp2 | dp3 mask=true",
    "llama tp2 sp cp2 | dp4 mask=true distopt=true",
    "moe ep2 dp2 | tp2 etp2 sp mask=true",
    "llama tp2 | dp2 reset_attention_mask=true reset_position_ids=true eod_mask_loss=true",
)
MORE_IN_FLIGHT = (
    "llama tp2 | dp2 micro=2 slow=[]",
    f"llama tp2 | dp2 | dp1 micro=2 slow=[0,1] {MEAN}",
    "llama tp2 | dp2 | dp1 micro=4 slow=[1]",
)
OTHER_SETTINGS = (
    "llama tp2 | dp2 optimizer=sgd",
    "llama tp2 sp | dp2 qk_layernorm=true",
    "llama tp2 | dp2 eval_interval=5 eval_iters=2",
    "llama tp2 | dp2 clip_grad=0.0",
)
LAYOUTS = (
    *ONE_MESH,
    *INTERLEAVED,
    *RECOMPUTE,
    *EXPERTS,
    *MIXED,
    *WITHOUT_LAYERS,
    *UNLIKE_SEQUENCES,
    *MEAN_LOSS,
    *TIED,
    *UNEVEN_MASKS,
    *MORE_IN_FLIGHT,
    *OTHER_SETTINGS,
)
RARE = (
    "llama tp4 num_query_groups=4",
    "llama cp2 tp2 sp dp2",
    f"llama tp2 sp dp2 pp2 {MEAN}",
    "gpt tp2 pp2 dp2 distopt=true",
    "moe tp2 ep2 etp2 sp dp2",
    "llama dp6 | dp1 | dp1",
    "llama tp2 | dp2 | tp2 sp split=[1,1,2]",
    f"llama tp2 dp2 | dp4 {GATHER}",
    f"llama cp4 | cp2 dp2 {MEAN}",
    "llama tp2 | dp2 untie_embeddings_and_output_weights=false",
    "llama tp2 | dp2 micro=2 slow=[0]",
    "llama tp2 | dp2 clip_grad=0.1",
    "llama cp2 tp2",
    "llama dp3",
    f"llama dp2 {OVERLAP}",
    f"llama cp2 pp2 {MEAN}",
    "gpt tp2 pp2",
    "llama cp2 | cp4",
    "llama dp4 | tp2 dp2",
    f"moe ep2 dp2 | ep4 dp4 {MEAN}",
    f"gpt tp2 dp2 | dp4 {OVERLAP}",
    "llama cp2 pp2 vpp=2 micro=2",
    "llama tp2 sp pp2 vpp=2 micro=2",
    "llama dp2 | tp4 num_query_groups=4",
    "gpt tp4 sp",
    f"moe tp2 ep2 etp1 sp dp2 {MEAN} distopt=true",
    f"llama dp2 {GATHER}",
    f"llama tp2 pp2 vpp=2 micro=2 distopt=true {OVERLAP}",
    "gpt pp2 vpp=2 micro=2",
    "gpt tp2 sp",
    "moe ep2 dp2 | dp4 moe_layer_freq=2",
    f"moe tp2 ep2 etp1 sp cp2 {MEAN} moe_z_loss_coeff=0.01",
    "llama tp2 | dp4 | cp2",
    "llama tp2 qk_layernorm=true",
    "llama tp2 | dp2 apply_layernorm_1p=true",
    "gpt tp2 | dp2 squared_relu=true",
    "gpt tp2 | dp2 position_embedding_type=none",
    "gpt dp2 | tp2 num_layers=1 split=[1,0]",
    "llama pp3 reset_attention_mask=true reset_position_ids=true eod_mask_loss=true",
    "llama tp2 | dp2 kv_channels=16",
    "llama tp2 | dp2 rotary_percent=0.5",
    "llama tp2 sp | dp2 disable_bias_linear=false",
    "llama dp2 | tp2 accumulate_allreduce_grads_in_fp32=true",
    f"llama dp2 | tp2 distopt=true {OVERLAP} ddp_bucket_size=2000",
)


@pytest.mark.parametrize("line", LAYOUTS)
def test_a_layout_computes_what_one_process_computes(gate: Gate, line: str) -> None:
    assert gate.deviation(line) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("line", RARE)
def test_a_rarer_layout_computes_what_one_process_computes(gate: Gate, line: str) -> None:
    assert gate.deviation(line) < TOLERANCE


def test_the_loss_falls(gate: Gate) -> None:
    curve = gate.reference("llama tp2")
    assert curve[-1][0] < curve[0][0] - 0.3


def test_another_seed_is_far_outside_the_tolerance(gate: Gate) -> None:
    assert deviation(gate.reference("llama seed=1"), gate.reference("llama")) > 100 * TOLERANCE
