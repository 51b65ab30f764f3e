"""One verb, one file: from a recipe to a run directory."""
