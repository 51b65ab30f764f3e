"""Several set-ups draw the same prompts, are timed in turn and judged."""
