"""What changes how a pipeline draws without changing its weights: one file for each kind."""
