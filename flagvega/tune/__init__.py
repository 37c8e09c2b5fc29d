"""Finds the fastest configuration by few trials: space, prediction, search, trials, records."""
