"""Enflame GCU: torch_gcu. Untested on hardware."""
