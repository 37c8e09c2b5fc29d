"""The launcher, and nothing else."""
