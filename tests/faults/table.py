"""The results as a page for people."""

from collections.abc import Sequence

from faults.rig import HERE, POLICY, SITE
from faults.trial import Result
from support.counterparts import PROJECT

_HEAD = (HERE / "page.md").read_text(encoding="utf-8")


def table(results: Sequence[Result], machine: str) -> str:
    """The page, in Markdown."""
    site, policy = ("../" + str(path.relative_to(PROJECT)) for path in (SITE, POLICY))
    lines = [_HEAD.format(site=site, policy=policy, machine=machine)]
    for each in results:
        lasts = f"{each.lasted_s:.0f} s" if each.lasted_s else "–"
        cells = (
            f"**{each.fault}**: {each.what}",
            lasts,
            f"{each.rows_s:.1f} ({each.usual_rows_s:.1f})" + ("" if each.recovered else ", did not recover"),
            f"{each.hosts_s:.1f} ({each.usual_hosts_s:.1f})",
            str(each.commands),
            str(each.asked_again),
            str(len(each.lost)),
            str(len(each.wrong)),
            f"{each.peak_ratio:.2f}",
            ", ".join(each.breakers) or "none",
        )
        lines.append("| " + " | ".join(cells) + " |\n")
    troubles = [f"- {each.fault}: {text}\n" for each in results for text in (*each.lost, *each.wrong)]
    if troubles:
        lines += ["\n## What was lost or wrong\n\n", *troubles]
    return "".join(lines)
