"""What commands do that are more than a few lines of cli.py, imported when they run."""
