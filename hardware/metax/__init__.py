"""MetaX: a MACA build of torch that shows its devices as torch.cuda; it has no NVML. Untested on hardware."""
