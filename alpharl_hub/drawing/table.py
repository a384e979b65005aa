"""The report's records as a table (CSV): one row per matrix and step.

Numbers are written so that they read back to the same bits; what is unknown is empty.
"""

from __future__ import annotations

import csv
import io
import unicodedata

from alpharl_hub.drawing.words import spell_out
from alpharl_hub.report_records import COLUMNS, Value, records
from alpharl_hub.results import SpectralReport

# https://owasp.org/www-community/attacks/CSV_Injection
_STARTS_A_FORMULA = ("=", "+", "-", "@")


def table_bytes(report: SpectralReport) -> bytes:
    """Return the table as UTF-8.

    A name that a spreadsheet would take for a formula stands behind an apostrophe; what cannot be
    printed is spelt out.
    """
    rows = records(report)
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(rows[0] if rows else COLUMNS)
    writer.writerows([_cell(value) for value in row.values()] for row in rows)
    return stream.getvalue().encode("utf-8")


def _cell(value: Value) -> Value:
    """Return a value that no spreadsheet computes."""
    if not isinstance(value, str):
        return value
    shown = spell_out(value)
    # Full-width signs are taken for the plain ones in some of them.
    start = unicodedata.normalize("NFKC", shown[:1])
    return f"'{shown}" if start.startswith(_STARTS_A_FORMULA) else shown
