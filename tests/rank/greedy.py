"""Run as a process: greedy continuations by the product's own model, from a run's checkpoint.

``greedy.py RUN LENGTH``: the run holds ``arguments.json`` and ``prompts.npy`` (prompts of one length); writes
``tokens.npy`` (LENGTH more for each) and ``gaps.npy`` (between the two best logits, at each of them) there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from tests.rank.huggingface_logits import load_model, set_up


def main() -> None:
    run, length = Path(sys.argv[1]), int(sys.argv[2])
    setting = set_up()
    arguments = json.loads((run / "arguments.json").read_text())
    model = load_model(setting, run, arguments)
    tokens = torch.from_numpy(np.load(run / "prompts.npy"))
    gaps = []
    for _ in range(length):
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        with torch.no_grad():
            logits = model(tokens, positions, None)[:, -1, : arguments["vocab_size"]].float()
        best, ids = logits.topk(2)
        gaps.append(best[:, 0] - best[:, 1])
        tokens = torch.cat([tokens, ids[:, :1]], dim=1)
    np.save(run / "tokens.npy", tokens[:, -length:].numpy())
    np.save(run / "gaps.npy", torch.stack(gaps, dim=1).numpy())


if __name__ == "__main__":
    main()
