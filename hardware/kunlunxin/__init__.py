"""Kunlunxin: a build of torch that shows its devices as torch.cuda. Untested on hardware."""
