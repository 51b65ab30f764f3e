"""What images are worth: figures with their intervals, as records."""
