"""Convolutions of several experts, mixed for each example (CondConv), and UNets that have some."""
