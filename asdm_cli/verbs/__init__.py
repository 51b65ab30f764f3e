"""One verb, one file: what it would do (`plan`, from the recipe and from file headers only), and doing it (`run`)."""
