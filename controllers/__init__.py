"""Observe and decide: pure functions from a view of the plant to what should be in force."""

__distribution__ = "windrow"
