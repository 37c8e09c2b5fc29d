"""Run by the Python of .venv-serve: logits that transformers computes, of converted folders.

``transformers_logits.py RUN...``: each holds ``huggingface/`` and ``tokens.npy``; writes ``transformers.npy`` there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    torch.set_num_threads(1)
    for run in map(Path, sys.argv[1:]):
        model, report = AutoModelForCausalLM.from_pretrained(
            run / "huggingface", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not any(report.values()), report
        with torch.no_grad():
            logits = model.eval()(torch.from_numpy(np.load(run / "tokens.npy"))).logits
        np.save(run / "transformers.npy", logits.numpy())


if __name__ == "__main__":
    main()
