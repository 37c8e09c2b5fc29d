"""From YAML files and overrides to one checked spec."""
