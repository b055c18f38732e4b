"""Benchmarks: figures for people, never for tests."""

import pathlib
import sys

# A broker to measure on is had as the tests have theirs.
sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))
