"""Finding what is worth drawing with: what each choice errs and costs, and the best of them under a budget."""
