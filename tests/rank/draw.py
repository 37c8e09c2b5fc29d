"""Random legal layouts, by the rules of the product: what is drawn here must be accepted and must compute the same."""

from __future__ import annotations

from itertools import accumulate
from math import lcm
from random import Random

from tests.rank.layouts import BATCH, MODELS

MAX_RANKS = 8
HEADS = 4


def draw_line(random: Random) -> str:
    """A layout of up to eight ranks, as a line."""
    model = random.choice(("llama", "llama", "gpt", "moe"))
    while True:
        meshes = _draw_meshes(random, model)
        samples = lcm(*(mesh["dp"] for mesh in meshes))
        if BATCH % samples == 0:
            break
    samples = random.choice([size for size in range(samples, BATCH + 1, samples) if BATCH % size == 0])
    words = [model, " | ".join(_mesh_words(mesh) for mesh in meshes), f"micro={samples // meshes[0]['dp']}"]
    words += _draw_layers(random, model, meshes, samples)
    words += _draw_computation(random, model, meshes)
    words += _draw_optimizer(random)
    return " ".join(word for word in words if word)


def _draw_meshes(random: Random, model: str) -> list[dict[str, int]]:
    left, meshes = MAX_RANKS, []
    for _ in range(random.choice((1, 2, 2, 3, 4))):
        fitting = [
            {"tp": tp, "cp": cp, "dp": dp, "pp": pp}
            for tp in (1, 2, 4)
            for cp in (1, 2, 4)
            for dp in (1, 2, 3, 4, 6)
            for pp in (1, 2, 3)
            if tp * cp * dp * pp <= left
        ]
        if not fitting:
            break
        size = random.choice(sorted({_size(mesh) for mesh in fitting}))
        mesh = random.choice([mesh for mesh in fitting if _size(mesh) == size])
        left -= size
        meshes.append(mesh | _draw_rest(random, model, mesh))
    return meshes


def _size(mesh: dict[str, int]) -> int:
    return mesh["tp"] * mesh["cp"] * mesh["dp"] * mesh["pp"]


def _draw_rest(random: Random, model: str, mesh: dict[str, int]) -> dict[str, int]:
    tp, stage_size = mesh["tp"], mesh["tp"] * mesh["cp"] * mesh["dp"]
    if model != "moe":
        return {"sp": tp > 1 and random.random() < 0.5, "ep": 1, "etp": 0}
    choices = [
        (ep, etp)
        for ep in (1, 2, 4)
        for etp in {1, tp}
        if stage_size % (ep * etp) == 0 and not (tp > 1 and ep == etp == 1)
    ]
    ep, etp = random.choice(choices)
    return {"sp": tp > 1, "ep": ep, "etp": etp}


def _mesh_words(mesh: dict[str, int]) -> str:
    degrees = [f"{name}{mesh[name]}" for name in ("tp", "cp", "ep", "dp", "pp") if mesh[name] > 1]
    degrees += [f"etp{mesh['etp']}"] if mesh["etp"] else []
    degrees += ["sp"] if mesh["sp"] else []
    return " ".join(degrees) or "dp1"


def _draw_layers(random: Random, model: str, meshes: list[dict[str, int]], samples: int) -> list[str]:
    """Interleaved where it is legal, else any split, empty stages included; slow boundaries at will."""
    num_stages = sum(mesh["pp"] for mesh in meshes)
    num_layers = int(MODELS[model]["num_layers"])
    if num_stages == 1:
        return []
    if len(meshes) == 1 and BATCH % (samples * num_stages) == 0 and random.random() < 0.7:
        chunks = random.choice((2, 3))
        return [f"vpp={chunks}", f"num_layers={num_stages * chunks}"]
    cuts = sorted(random.randrange(num_layers + 1) for _ in range(num_stages - 1))
    split = [stop - start for start, stop in zip([0, *cuts], [*cuts, num_layers], strict=True)]
    assert list(accumulate(split))[-1] == num_layers
    slow = [boundary for boundary in range(num_stages - 1) if random.random() < 0.4]
    return [f"split={split}".replace(" ", ""), f"slow={slow}".replace(" ", "")]


def _draw_computation(random: Random, model: str, meshes: list[dict[str, int]]) -> list[str]:
    words = []
    if model != "gpt" and any(mesh["tp"] > MODELS[model]["num_query_groups"] for mesh in meshes):
        words.append(f"num_query_groups={HEADS}")
    if model != "gpt" and random.random() < 0.3:
        words.append("untie_embeddings_and_output_weights=false")
    words.append(random.choice(("", "", "mask=true", "calculate_per_token_loss=false")))
    words.append(
        random.choice(
            (
                "",
                "",
                "recompute_granularity=selective",
                "recompute_granularity=full recompute_method=uniform recompute_num_layers=1",
                "recompute_granularity=full recompute_method=block recompute_num_layers=1",
            )
        )
    )
    if model == "moe":
        words.append(f"moe_token_dispatcher_type={random.choice(('alltoall', 'allgather'))}")
    return words


def _draw_optimizer(random: Random) -> list[str]:
    words = []
    is_distributed, overlaps = random.random() < 0.5, random.random() < 0.4
    words += ["distopt=true"] if is_distributed else []
    words += ["overlap_grad_reduce=true", "ddp_bucket_size=5000"] if overlaps else []
    words += ["overlap_param_gather=true"] if is_distributed and overlaps and random.random() < 0.5 else []
    return words
