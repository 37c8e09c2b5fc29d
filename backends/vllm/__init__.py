"""vLLM: the control side, without vLLM."""
