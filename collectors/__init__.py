"""Plant to samples: adapters that read GPUs, racks, feeds, farms and routers, and never set anything."""

__distribution__ = "windrow"
