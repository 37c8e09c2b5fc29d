"""Moore Threads MUSA: torch_musa. Untested on hardware."""
