"""Sites to test on: the ones that are deployed, and rows made to measure."""

from pathlib import Path

from schemas.site_file import read_site
from schemas.topology import Site

SITES = Path(__file__).resolve().parents[2] / "deploy" / "sites"
DEMO = SITES / "demo.toml"
ONE_HOST = SITES / "one-host.toml"


def site_from(file: Path) -> Site:
    """The site that a file describes."""
    return read_site(file.read_text(encoding="utf-8"), str(file.relative_to(SITES.parent)))
