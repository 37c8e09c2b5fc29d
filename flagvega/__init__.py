"""flagvega: one command from YAML to running ranks, on any mix of chips."""

__version__ = "0.1.0"
