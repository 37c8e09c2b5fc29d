"""Cambricon MLU: torch_mlu. Untested on hardware."""
