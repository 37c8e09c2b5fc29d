"""The key that a user most likely meant."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from difflib import SequenceMatcher, get_close_matches

_OTHER_TOOLS = {
    "activation_checkpointing": ("recompute_granularity",),
    "batch_size": ("global_batch_size", "micro_batch_size"),
    "context_parallel": ("context_parallel_size",),
    "cp": ("context_parallel_size",),
    "d_ff": ("ffn_hidden_size",),
    "d_model": ("hidden_size",),
    "dropout": ("hidden_dropout", "attention_dropout"),
    "ep": ("expert_model_parallel_size",),
    "expert_parallel_size": ("expert_model_parallel_size",),
    "gradient_clipping": ("clip_grad",),
    "hidden_dim": ("hidden_size",),
    "intermediate_size": ("ffn_hidden_size",),
    "layers": ("num_layers",),
    "learning_rate": ("lr",),
    "max_grad_norm": ("clip_grad",),
    "max_seq_len": ("seq_length",),
    "max_steps": ("train_iters",),
    "n_head": ("num_attention_heads",),
    "n_heads": ("num_attention_heads",),
    "n_layer": ("num_layers",),
    "n_layers": ("num_layers",),
    "num_heads": ("num_attention_heads",),
    "num_hidden_layers": ("num_layers",),
    "num_key_value_heads": ("num_query_groups",),
    "num_kv_heads": ("num_query_groups",),
    "pp": ("pipeline_model_parallel_size",),
    "rms_norm_eps": ("norm_epsilon",),
    "rope_theta": ("rotary_base",),
    "seq_len": ("seq_length",),
    "steps": ("train_iters",),
    "tie_word_embeddings": ("untie_embeddings_and_output_weights",),
    "tp": ("tensor_model_parallel_size",),
    "warmup_steps": ("lr_warmup_iters",),
}
"""What other tools call these things; a suggestion is made only where the engine has the key."""


def nearest(word: str, candidates: Collection[str], limit: int = 3) -> tuple[str, ...]:
    """Up to ``limit`` candidates like ``word``, best first; empty when none is near."""
    word = word.lower().replace("-", "_")
    known = [name for name in _OTHER_TOOLS.get(word, ()) if name in candidates]
    typos = _typos(word, candidates)
    alike = [] if typos else get_close_matches(word, candidates, limit, cutoff=0.7)
    return tuple(dict.fromkeys([*known, *typos, *alike]))[:limit]


def suggest(word: str, candidates: Collection[str]) -> str:
    """``did you mean 'a', 'b'?`` or an empty string."""
    found = nearest(word, candidates)
    return f"did you mean {' or '.join(repr(name) for name in found)}?" if found else ""


def _typos(word: str, candidates: Iterable[str]) -> list[str]:
    """Candidates one or two edits away (one for short words), fewest edits first, then the most alike."""
    reach = 1 if len(word) < 6 else 2
    letters = set(word)
    near = [
        (edit_distance(word, name.lower()), -SequenceMatcher(None, word, name).ratio(), name)
        for name in candidates
        # Each edit changes the length by one at most and brings one foreign letter a side: a cheap first sieve.
        if abs(len(name) - len(word)) <= reach and len(letters.symmetric_difference(name.lower())) <= 2 * reach
    ]
    return [name for distance, _, name in sorted(near) if distance <= reach]


def edit_distance(a: str, b: str) -> int:
    """Letters to insert, delete, replace or swap with a neighbour to turn ``a`` into ``b``."""
    two_above: list[int] = []
    above: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        two_above, above, row = above, row, [i]
        for j, y in enumerate(b, 1):
            cost = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, two_above[j - 2] + 1)
            row.append(cost)
    return row[-1]
