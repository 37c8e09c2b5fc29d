"""Intel GPUs: torch's own xpu device. Untested on hardware."""
