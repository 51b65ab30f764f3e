"""Recipes: YAML files, strictly typed; imports no torch."""
