"""A source to replay: a recording of our own, or an import of what others recorded."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from collectors.base import CollectorError
from collectors.importers import detect
from collectors.recording import read_recording
from runtime.config import ConfigError, load_site
from schemas.envelope import DeadLetter, Event
from schemas.recordings import NotARecording, RecordingHeader
from schemas.site_file import read_site
from schemas.topology import Site


class Source:
    """Something to replay: a site, and events in order. `header` is that of a recording of our own,
    None for an import. Each reading of `events` starts from the beginning.

    Lines that could not be read are kept whole in `dead_letters`; they steer nothing.
    """

    def __init__(self, path: pathlib.Path, site: Site, header: RecordingHeader | None) -> None:
        self.path = path
        self.site = site
        self.header = header
        self.dead_letters: list[DeadLetter] = []
        self.note = ""

    @property
    def epoch(self) -> int:
        """The epoch of the controller that was recorded; 1 for an import."""
        return self.header.epoch if self.header else 1

    @property
    def events(self) -> Iterator[Event]:
        """The events, dead letters set aside. Raises ConfigError where the file breaks off."""
        self.dead_letters.clear()
        try:
            if self.header is None:
                yield from self._living(detect(self.path).events(self.path, self.site))
            else:
                recording = read_recording(self.path)
                yield from self._living(recording.events)
                self.note = recording.note
        except CollectorError as error:
            raise ConfigError(str(error)) from error

    def count_beats(self) -> int:
        """How many beats a recording of our own has; 0 for an import. Reads the file once."""
        try:
            return read_recording(self.path).count_beats() if self.header else 0
        except CollectorError as error:
            raise ConfigError(str(error)) from error

    def _living(self, events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, DeadLetter):
                self.dead_letters.append(event)
            else:
                yield event


def open_source(path: pathlib.Path, site: pathlib.Path | None, budget_kw: float | None) -> Source:
    """Open a recording or an import. A recording brings its site; an import takes it from a site file, or
    stands its hosts in one row under `budget_kw`. Raises ConfigError in words."""
    try:
        recording = read_recording(path)
    except CollectorError as error:
        if not isinstance(error.__cause__, NotARecording):
            raise ConfigError(str(error)) from error
        return _imported(path, site, budget_kw)
    if site is not None or budget_kw is not None:
        raise ConfigError(
            f"{path}: is a recording of our own and brings its site: leave --site and --budget-kw out"
        )
    try:
        return Source(path, read_site(recording.header.site, f"{path}, its site"), recording.header)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _imported(path: pathlib.Path, site: pathlib.Path | None, budget_kw: float | None) -> Source:
    try:
        importer = detect(path)
        if site is not None:
            return Source(path, load_site(site), None)
        if budget_kw is None:
            raise ConfigError(f"{path}: an import ({importer.name}) needs --budget-kw for its row, or --site")
        proposed = importer.site_for(importer.hosts_in(path), budget_kw * 1000)
        return Source(path, read_site(proposed, f"the row assumed for {path.name}"), None)
    except (CollectorError, ValueError) as error:
        raise ConfigError(str(error)) from error
