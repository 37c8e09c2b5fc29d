"""Searches arguments of serving engines with the tuner's machinery: space, prediction, trials."""
