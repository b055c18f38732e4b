"""Experiments on the simulated row: the real controller over weeks of simulated time."""
