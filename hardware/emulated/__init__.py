"""Emulated chips: real computation on the CPU, at the pace and within the memory of a made-up chip."""
