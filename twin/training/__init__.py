"""Nodes that train one model together: what they draw, how that was learned, and how true it is."""
