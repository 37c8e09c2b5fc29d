"""NVIDIA: torch.cuda, NVML."""
