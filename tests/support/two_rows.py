"""A site of two rows of one host each, both behind one UPS: what concerns one row, and what both."""

_RACK = """
[[racks]]
row = "{row}"
names = "{name}"
feeds = ["feed-{row}"]
[[racks.hosts]]
names = "h01"
sku = "A100-SXM4-80GB"
gpus = 8
priority = "high"
paths = ["in_band"]
"""
TWO_ROWS = """
[site]
name = "ams1"
[[ups]]
name = "ups-1"
limit_w = 90000
[[pdus]]
name = "pdu-1"
ups = "ups-1"
limit_w = 90000
""" + "".join(
    f"""
[[feeds]]
name = "feed-{row}"
pdu = "pdu-1"
limit_w = 20000
[[rows]]
name = "{row}"
budget_w = 20000
meters = ["feed-{row}"]
{_RACK.format(row=row, name=f"r-{row}")}
"""
    for row in ("row-a", "row-b")
)
