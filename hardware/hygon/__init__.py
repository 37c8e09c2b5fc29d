"""Hygon DCU: a DTK build of torch that shows its devices as torch.cuda. Untested on hardware."""
