"""Hosts of the one logic: embedded in a process, and replay."""
