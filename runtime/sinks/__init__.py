"""Sinks: where what was said on the bus goes on to, for people and their dashboards."""
