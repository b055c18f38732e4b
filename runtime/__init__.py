"""Hosts the same logic three ways: the only place with a clock, a loop, a disk or a broker."""

__distribution__ = "windrow"
