"""The vocabulary: what can be said on the bus, as data and pure functions on it."""

__distribution__ = "windrow"
