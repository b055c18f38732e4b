"""Apply, verify and release: the only code that changes the plant."""

__distribution__ = "windrow"
