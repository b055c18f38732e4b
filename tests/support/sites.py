"""Sites to test on: the ones that are deployed, and rows made to measure."""

from pathlib import Path

from schemas.site_file import read_site
from schemas.topology import Site

PROJECT = Path(__file__).resolve().parents[2]
DEMO = PROJECT / "twin" / "scenarios" / "demo-row.toml"
ONE_HOST = PROJECT / "deploy" / "sites" / "one-host.toml"


def site_from(file: Path) -> Site:
    """The site that a file describes."""
    return read_site(file.read_text(encoding="utf-8"), str(file.relative_to(PROJECT)))
