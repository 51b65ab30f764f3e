"""What drawing costs: time, memory and operations, measured while it happens."""
