"""Recipes: what a YAML file may say, read with every fault at its line and column. Imports no torch."""

MOST = 2**31 - 1
"""Of whatever is counted: more is a slip of the hand, and overflows what counts."""
LARGEST_SEED = 2**63 - 1
