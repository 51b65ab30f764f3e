"""Convolutions of several experts, mixed for each example: tensors and layers; no UNet is known here."""
