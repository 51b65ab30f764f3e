"""One experiment: several set-ups draw the same prompts with the same seeds, are timed in turn, counted and judged."""
