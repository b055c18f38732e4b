"""Calibrations: fitted coefficients, where they came from, and what they were not shown.

A calibration holds one fit over all its runs and one per fold, each made without that fold's runs. So a run
that was used can still be predicted by coefficients that never saw it, and no figure flatters itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import msgspec

from twin.provenance import Provenance
from twin.provenance import stored as stored_file
from twin.serving.board import ServingFit
from twin.serving.fit import Board, fit
from twin.serving.recorded import RecordedRun

FOLDS = 7


class CalibrationError(ValueError):
    """A calibration that cannot be read; the text is for the operator."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Coefficients of one kind of board: one fit over all runs, and one per fold without its runs.
    `left_out` is the fold of each file that the provenance names."""

    provenance: Provenance
    fit: ServingFit
    folds: tuple[ServingFit, ...]
    left_out: dict[str, int]

    def fold_of(self, run: RecordedRun) -> int | None:
        """The fold that left a run out, None for a run of elsewhere. A run is known by its file's digest, and
        by its name too: one that was written anew (other line ends, a further column) is still that run."""
        for name, digest in self.provenance.files.items():
            if digest == run.digest or name == f"{run.name}.csv":
                return self.left_out[name]
        return None

    def fit_for(self, run: RecordedRun) -> ServingFit:
        """The fit that predicts a run without having seen it: its fold's, or for a run of elsewhere the
        whole one."""
        fold = self.fold_of(run)
        return self.fit if fold is None else self.folds[fold]


def calibrate(
    runs: Sequence[RecordedRun], board: Board, *, source: str, licence: str, command: str, seed: int
) -> Iterator[str | Calibration]:
    """Fit all runs, then each fold. Yields a line of what is done next, and the calibration last.

    Runs are dealt to the folds in turn, in order of model and batch, so that each fold lacks runs of
    every kind and no kind altogether. Raises RunsError where the runs are too few.
    """
    dealt = sorted(runs, key=lambda run: (run.llm.name, run.chunked, run.max_answers, run.name))
    fold_of = {run.digest: place % FOLDS for place, run in enumerate(dealt)}
    yield f"fitting {len(runs)} runs"
    whole = fit(runs, board, seed=seed)
    folds = []
    for fold in range(FOLDS):
        yield f"fitting without fold {fold + 1} of {FOLDS}"
        folds.append(fit([run for run in runs if fold_of[run.digest] != fold], board, seed=seed))
    yield Calibration(
        provenance=Provenance(
            files={f"{run.name}.csv": run.digest for run in runs},
            source=source,
            licence=licence,
            command=command,
            seed=seed,
        ),
        fit=whole,
        folds=tuple(folds),
        left_out={f"{run.name}.csv": fold_of[run.digest] for run in runs},
    )


@cache
def stored(name: str = "serving_h100") -> Calibration:
    """A calibration that ships."""
    return stored_file(name, Calibration)


def read(text: bytes) -> Calibration:
    """A calibration from its file's text. Raises CalibrationError in words."""
    try:
        return msgspec.json.decode(text, type=Calibration)
    except msgspec.MsgspecError as error:
        raise CalibrationError(f"not a calibration: {error}") from error
