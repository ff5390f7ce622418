"""What a release of a corpus is known to hold, and what it means if a copy holds something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cmkd.corpora.report import CorpusReport

HOURS_TOLERANCE = 0.05  # relative: published hours are rounded


@dataclass(frozen=True)
class KnownSize:
    """The published size of a release.

    Attributes:
        release (`str`): Such as "MSP-Podcast 1.6".
        utterances (`dict[str, int]`, *optional*): By split, where the release has splits of its own.
        total (`int`, *optional*): Utterances of all splits; the sum of `utterances` if None.
        hours (`float`, *optional*): Of all splits, where the published number is that of the same utterances.
    """

    release: str
    utterances: Mapping[str, int] = field(default_factory=dict)
    total: int | None = None
    hours: float | None = None

    def mismatches(self, report: CorpusReport) -> list[str]:
        """Compares a corpus with the known size.

        Args:
            report (`CorpusReport`): With its counts. Hours that were not measured are not compared.

        Returns:
            `list[str]`: A sentence for each number that differs, with the likely cause; empty if all agree.
        """
        sentences = []
        for split, known in self.utterances.items():
            found = report.utterances.get(split, 0)
            if found != known:
                sentences.append(
                    self._sentence(f"{split} has {found:,} utterances", f"{known:,}", found - known, report)
                )
        known_total = sum(self.utterances.values()) if self.total is None else self.total
        total = sum(report.utterances.values())
        if total != known_total and not sentences:
            what = f"there are {total:,} utterances"
            sentences.append(self._sentence(what, f"{known_total:,}", total - known_total, report))
        hours = [hours for hours in report.hours.values() if hours is not None]
        if self.hours is not None and len(hours) == len(report.hours):
            found_hours = sum(hours)
            if abs(found_hours - self.hours) > HOURS_TOLERANCE * self.hours:
                cause = (
                    "see above"
                    if sentences
                    else "the utterances are all there, so the audio itself differs: cut, padded, or at a wrong rate"
                )
                sentences.append(f"there are {found_hours:.2f} h, but {self.release} has {self.hours:g} h: {cause}")
        return sentences

    def _sentence(self, found: str, known: str, difference: int, report: CorpusReport) -> str:
        left_out = sum(report.skipped.values())
        if difference > 0:
            cause = "this is another, probably later, release, or something was added"
        elif left_out >= -difference:
            cause = f"{left_out:,} were left out: see the reasons below"
        elif left_out:
            cause = f"{left_out:,} were left out, and the copy is incomplete or another release"
        else:
            cause = "the copy is incomplete, or another, probably earlier, release"
        return f"{found}, but {self.release} has {known}: {cause}"
