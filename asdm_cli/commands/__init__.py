"""What can be typed after `asdm`; together with cli.py the top room of the house. Imports no torch."""
