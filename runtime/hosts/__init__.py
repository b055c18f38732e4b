"""Hosts of the one logic: embedded in a process, on Kafka, and replay."""
