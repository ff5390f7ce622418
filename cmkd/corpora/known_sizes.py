"""The published sizes of releases, and the likely causes if a copy has another size."""

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
        release (`str`): The name of the release, such as "MSP-Podcast 1.6".
        utterances (`dict[str, int]`, *optional*): The number of utterances by split, if the release has splits.
        total (`int`, *optional*): The number of utterances in all splits; the sum of `utterances` if None.
        hours (`float`, *optional*): The hours of all splits, if the published number is that of the same utterances.
    """

    release: str
    utterances: Mapping[str, int] = field(default_factory=dict)
    total: int | None = None
    hours: float | None = None

    def mismatches(self, report: CorpusReport) -> list[str]:
        """Compares a corpus with the known size.

        Args:
            report (`CorpusReport`): A report with its counts. Hours that were not measured are not compared.

        Returns:
            `list[str]`: A sentence for each number that differs, with the likely cause; empty if all agree.
        """
        sentences = []
        for split, known in self.utterances.items():
            number = report.utterances.get(split, 0)
            if number != known:
                sentences.append(
                    self._sentence(f"{split} has {number:,} utterances", f"{known:,}", number - known, report)
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

    def _sentence(self, actual: str, known: str, difference: int, report: CorpusReport) -> str:
        left_out = sum(report.skipped.values())
        if difference > 0:
            cause = "this is another, probably later, release, or something was added"
        elif left_out >= -difference:
            cause = f"{left_out:,} were left out: see the reasons below"
        elif left_out:
            cause = f"{left_out:,} were left out, and the copy is incomplete or another release"
        else:
            cause = "the copy is incomplete, or another, probably earlier, release"
        return f"{actual}, but {self.release} has {known}: {cause}"
