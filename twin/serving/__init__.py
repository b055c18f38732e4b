"""A GPU that serves a language model: its engine, its pace and power, and how they were fitted to recorded
runs.
"""
