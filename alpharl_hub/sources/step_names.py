"""Names that carry a step: which number, and which family they belong to.

A family is the text around the number. Numbers are compared as integers, so that step_0100 and
step_100 are the same step, and names are only ever recognised among those that exist, never built:
one organisation mixes padded and unpadded names (allenai/Olmo-3-7B-RL-Zero-Math and Olmo-3.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from alpharl_hub.errors import TrajectoryError

PLACEHOLDER = "{step}"

# Revisions of pre-training runs look alike and are no steps of an RL run: stage1-step1000-tokens4B,
# step-001000-2BT.
# Digits are those of ASCII: by itself \d takes other scripts' too, which look alike and would make
# a second name of the same step.
_FLAGS = re.IGNORECASE | re.ASCII
_PRE_TRAINING = re.compile(r"(stage\d+-.*)?step[-_]?\d+-(tokens)?\d+B?T?", _FLAGS)
_PLAIN = re.compile(
    r"(?P<before>(?:global[-_]?)?(?:step|ckpt|checkpoint|iter)[-_]?)(?P<step>\d+)", _FLAGS
)
# open-r1 pushes main-step-000000100: the revision that it was told, then the step.
_PREFIXED = re.compile(r"(?P<before>.+-step-)(?P<step>\d+)", re.ASCII)
_OPENRLHF = re.compile(r"(?P<before>(?:best_)?global_step)(?P<step>\d+)(?P<after>_hf)", re.ASCII)
# A repo of its own for every step; what follows the number is the same for all of them
# (Sinestro38/qwen3-1p7b-sgd-polaris-step300-best-val).
_REPO = re.compile(r"(?P<before>(?:.*[-_.])?step[-_]?)(?P<step>\d+)(?P<after>[-_].+)?", _FLAGS)
_TOKENS = re.compile(r"[-_](tokens)?\d+[BT]", _FLAGS)
_FAMILIES = (_PLAIN, _PREFIXED, _OPENRLHF)
_MAX_DIGITS = 15


@dataclass(frozen=True)
class Family:
    """Names with the same text around the number; `names` maps a step to the name that has it."""

    pattern: str
    names: Mapping[int, str]


def match_step(name: str) -> tuple[str, int] | None:
    """Return (pattern, step) of a name that carries a step, or None."""
    if _PRE_TRAINING.fullmatch(name):
        return None
    for family in _FAMILIES:
        match = family.fullmatch(name)
        if match and len(match["step"]) <= _MAX_DIGITS:
            after = match.groupdict().get("after") or ""
            return f"{match['before']}{PLACEHOLDER}{after}", int(match["step"])
    return None


def match_repo(name: str) -> str | None:
    """Return the pattern of a repo's name that carries a step, or None; a guess, for a hint."""
    match = _REPO.fullmatch(name)
    if match is None or len(match["step"]) > _MAX_DIGITS or _TOKENS.match(match["after"] or ""):
        return None
    return f"{match['before']}{PLACEHOLDER}{match['after'] or ''}"


def find_families(names: Iterable[str]) -> tuple[Family, ...]:
    """Group names into families of two or more steps, the largest first.

    Raises:
        TrajectoryError: two names of one family carry the same number.
    """
    by_pattern: dict[str, dict[int, str]] = {}
    for name in names:
        found = match_step(name)
        if found:
            _enter(by_pattern.setdefault(found[0], {}), found[1], name)
    families = [
        Family(pattern, dict(sorted(steps.items()))) for pattern, steps in by_pattern.items()
    ]
    kept = [family for family in families if len(family.names) > 1]
    return tuple(sorted(kept, key=lambda family: (-len(family.names), family.pattern)))


def mention_patterns(names: Iterable[str]) -> tuple[str, ...]:
    """Return the patterns that two or more names fit, for a mention: nothing is refused."""
    steps: dict[str, set[int]] = {}
    for pattern, step in filter(None, map(match_step, names)):
        steps.setdefault(pattern, set()).add(step)
    return tuple(sorted(pattern for pattern, found in steps.items() if len(found) > 1))


def match_pattern(pattern: str, names: Iterable[str]) -> Family:
    """Find the names that fit a pattern with one {step}; padding makes no difference.

    Raises:
        TrajectoryError: two names carry the same number.
    """
    before, after = pattern.split(PLACEHOLDER)
    expression = re.compile(f"{re.escape(before)}([0-9]{{1,{_MAX_DIGITS}}}){re.escape(after)}")
    steps: dict[int, str] = {}
    for name in names:
        match = expression.fullmatch(name)
        if match:
            _enter(steps, int(match[1]), name)
    return Family(pattern, dict(sorted(steps.items())))


def _enter(steps: dict[int, str], step: int, name: str) -> None:
    if step in steps:
        raise TrajectoryError(
            f"{steps[step]} and {name} are both step {step}; name the run with a {PLACEHOLDER} "
            "pattern that only one of them fits"
        )
    steps[step] = name


def choose_family(families: tuple[Family, ...], where: str, examples: str) -> Family | None:
    """Return the only family, or None without one.

    Raises:
        TrajectoryError: two or more families; the message lists them.
    """
    if len(families) > 1:
        listed = ", ".join(f"{family.pattern} ({len(family.names)} steps)" for family in families)
        first = families[0].pattern
        raise TrajectoryError(
            f"{where}: more than one family of steps: {listed}; say which, such as "
            f"{examples.replace('*', first)}"
        )
    return families[0] if families else None
