"""The plant, simulated: answers actuators and feeds collectors through the vendors' own interfaces."""

__distribution__ = "windrow"
