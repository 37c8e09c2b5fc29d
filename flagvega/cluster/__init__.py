"""Nodes, devices and links; where they come from."""
