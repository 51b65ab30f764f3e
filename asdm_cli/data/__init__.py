"""Training data: shards of pictures and captions, encoded once and read by number."""
