"""`asdm run`: several recipes in a row."""
