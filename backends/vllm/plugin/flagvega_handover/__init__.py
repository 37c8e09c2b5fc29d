"""Hands a prompt's cache from one vLLM to another, through files."""
