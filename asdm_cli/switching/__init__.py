"""Several UNets in one generation: rules say who serves which call, a module in the pipeline's place does it."""
