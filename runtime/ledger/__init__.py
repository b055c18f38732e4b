"""The ledger: the append-only, hash-chained record of what was decided, done and seen."""
