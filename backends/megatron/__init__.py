"""Real Megatron-Core behind the engine interface."""
