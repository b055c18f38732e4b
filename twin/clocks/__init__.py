"""How boards follow their clocks and power limits: learned from sweeps, and set against the axis in use."""
