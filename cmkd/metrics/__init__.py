"""Metrics for the `evaluate` library, each a folder that is also a Space of the Hub.

A folder imports nothing of this package, so that it works where only `evaluate` is installed:

    evaluate.load(CONCORDANCE_CC)
"""

from pathlib import Path

CONCORDANCE_CC = str(Path(__file__).with_name("concordance_cc"))
"""The folder of the concordance correlation coefficient."""
