"""Stands in for torch where only its launcher is needed, and needed at once: see ``distributed/run.py``."""
