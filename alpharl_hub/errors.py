"""Everything that can go wrong for a user, as one tree.

AlphaRLError                 shown as one line, exit status 1
  SourceError                a repo, revision, folder or file cannot be read
    RangeReadError           the server sent other bytes than were asked for
  HeaderError                not a valid safetensors header
  TrajectoryError            the checkpoints are not one trajectory (steps, names, shapes, base)
  ScoreError                 the scores are missing, flat or do not match the checkpoints
  FitError                   the method has no answer (too few checkpoints, bad target, NaN)
  ManifestError              an alpharl.json that this version cannot use
  CardError                  a card's template, or a score for it, that cannot be used
  ResourceError              not enough memory or disk for what was asked
  WriteError                 an output cannot be written, or belongs to somebody else
  PushError                  the Hub refused the upload or the commit

Errors of other libraries are converted where they enter the package. Built-in exceptions are never
converted: a bug must look like a bug.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

_MAX_COMPARED = 2000
_MAX_COMPARED_CHARS = 100
_LAST_NUMBER = re.compile(r"(.*?)([0-9]+)([^0-9]*)", re.DOTALL)


def did_you_mean(given: str, known: Iterable[str], cutoff: float = 0.75) -> str:
    """Return "; did you mean X?" for the known name that is most like the one given, else "".

    `cutoff`: how alike they must be, from 0 to 1 (difflib.SequenceMatcher.ratio).
    """
    short = [name for name in islice(known, _MAX_COMPARED) if len(name) <= _MAX_COMPARED_CHARS]
    given = given[:_MAX_COMPARED_CHARS]
    near = _nearest_number(given, short) or get_close_matches(given, short, n=1, cutoff=cutoff)
    return f"; did you mean {near[0]}?" if near else ""


def _nearest_number(given: str, known: Iterable[str]) -> list[str]:
    """Return the name that differs in its last number only, and there the least: of 13 it is 12."""
    match = _LAST_NUMBER.fullmatch(given)
    if match is None or not match[1]:
        return []
    distances = {
        name: abs(int(found[2]) - int(match[2]))
        for name in known
        if (found := _LAST_NUMBER.fullmatch(name)) and (found[1], found[3]) == (match[1], match[3])
    }
    return [min(distances, key=lambda name: distances[name])] if distances else []


class AlphaRLError(Exception):
    """Base of every error that a user can mend; its text says what, where and what next."""


class SourceError(AlphaRLError):
    """A repo, revision, folder or file cannot be read."""


class RangeReadError(SourceError):
    """The server sent other bytes than were asked for."""


class HeaderError(AlphaRLError):
    """Not a valid safetensors header."""


class TrajectoryError(AlphaRLError):
    """The checkpoints do not form one trajectory."""


class ScoreError(AlphaRLError):
    """The scores are missing, flat or do not match the checkpoints."""


class FitError(AlphaRLError):
    """The method has no answer for these checkpoints and this target."""


class ManifestError(AlphaRLError):
    """A manifest that this version cannot use."""


class CardError(AlphaRLError):
    """A template of a card, or a score or backtest that is to stand in one, that is no use."""


class ResourceError(AlphaRLError):
    """Not enough memory or disk for what was asked."""


class WriteError(AlphaRLError):
    """An output cannot be written, or belongs to another run."""


class PushError(AlphaRLError):
    """The Hub refused the upload or the commit."""
