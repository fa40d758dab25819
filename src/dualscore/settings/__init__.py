"""Experiments: the schema of their settings, its rules, and reading them from YAML."""
