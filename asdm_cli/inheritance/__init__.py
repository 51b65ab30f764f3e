"""Tuning-free feature inheritance: a plan says what is handed on from earlier calls, an engine on the UNet does it."""
