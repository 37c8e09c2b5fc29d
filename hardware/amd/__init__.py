"""AMD: a ROCm build of torch shows its devices as torch.cuda. Untested on hardware."""
