"""Faults on a whole site that runs as it would for an operator: short ones, one after the other.

`make faults` does the full ones, each on a site of its own.
"""

from pathlib import Path

import pytest
from faults.faults import FAULTS
from faults.rig import running
from faults.trial import tried
from support.cached import Unavailable
from support.counterparts import missing


@pytest.mark.counterpart
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_fault_loses_a_command_or_wrongs_a_host_and_the_site_recovers(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    try:
        with running(tmp_path) as rig:
            for fault in (each for each in FAULTS if each.nodes == 1):
                with subtests.test(fault.name):
                    result = tried(rig, fault, fault.short_s, load_s=0.0)
                    assert result.recovered, result
                    assert result.lost == ()
                    assert result.wrong == ()
                    assert result.breakers == ()
    except Unavailable as error:
        missing(str(error))
