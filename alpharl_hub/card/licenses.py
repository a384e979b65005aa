"""Which license a predicted model is under, as far as the cards of its run and base say.

A license is never guessed: where no card names one the answer is `other`, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from alpharl_hub.manifest import StatedRecord

# https://huggingface.co/docs/hub/repositories-licenses
_NAMES = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear
c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0
cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl
ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0
odc-by odbl openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib
pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1
llama3.2 llama3.3 llama4 grok2-community gemma unknown other
"""
LICENSES = frozenset(_NAMES.split())
"""Identifiers that the Hub accepts in a card; it refuses a commit with any other."""

OTHER = "other"
NOT_STATED = "not-stated"
_LICENSE_FILES = ("LICENSE", "LICENSE.md")


@dataclass(frozen=True)
class StatedBy:
    """What a card states, and the address of its repo (None for a local folder)."""

    who: str
    stated: StatedRecord
    url: str | None


@dataclass(frozen=True)
class LicenseChoice:
    """What goes into the card: identifiers, for `other` a name and a link, and a sentence on why.

    The sentence is Markdown without anything from others in it but identifiers.
    """

    identifiers: tuple[str, ...]
    name: str | None
    link: str | None
    reason: str


def choose_license(
    override: str | None, cards: tuple[StatedBy, ...], copied_files: Collection[str]
) -> LicenseChoice:
    """Take the user's word, else the first card (the run's, then the base's) that names a license.

    `copied_files` are the files of the model: a link to a license file is kept if it is there.
    """
    if override is not None:
        return _by_user(override)
    stated = [(card, card.stated.license) for card in cards]
    naming = [(card, names) for card, names in stated if names]
    if not naming:
        url = next((card.url for card in cards if card.url is not None), None)
        reason = "Neither the run nor its base states a license; ask their authors before use."
        return LicenseChoice((OTHER,), NOT_STATED, url, reason)
    card, names = naming[0]
    choice = _from_card(card, names, copied_files)
    differing = [other for other, theirs in naming[1:] if theirs != names]
    if differing:
        theirs = ", ".join(slug(name) for name in differing[0].stated.license)
        reason = f"{choice.reason} The card of the {differing[0].who} states {theirs}: check both."
        return LicenseChoice(choice.identifiers, choice.name, choice.link, reason)
    return choice


def _by_user(override: str) -> LicenseChoice:
    reason = "The license is the one that whoever made this model stated."
    if override in LICENSES and override != OTHER:
        return LicenseChoice((override,), None, None, reason)
    return LicenseChoice((OTHER,), slug(override), None, reason)


def _from_card(
    card: StatedBy, names: tuple[str, ...], copied_files: Collection[str]
) -> LicenseChoice:
    reason = f"The license is the one that the card of the {card.who} states."
    if OTHER not in names and all(name in LICENSES for name in names):
        return LicenseChoice(names, None, None, reason)
    given = [card.stated.license_name] if card.stated.license_name else []
    unknown = [name for name in names if name not in LICENSES]
    name = slug((*given, *unknown, NOT_STATED)[0])
    return LicenseChoice((OTHER,), name, _link(card, copied_files), reason)


def _link(card: StatedBy, copied_files: Collection[str]) -> str | None:
    """Return an address of the license's text that works from the new repo too."""
    given = card.stated.license_link or ""
    is_address = re.fullmatch(r"https?://[!-~]{1,400}", given) is not None
    is_there = given in _LICENSE_FILES and given in copied_files
    return given if is_address or is_there else card.url


def texts(value: object) -> tuple[str, ...]:
    """Return the text or texts that stand in a card's field; nothing for a field left empty."""
    listed = value if isinstance(value, list) else [value]
    words = [item.strip() for item in listed if isinstance(item, str)]
    return tuple(word for word in words if word.lower() not in ("", "~", "null", "none"))


def slug(name: str) -> str:
    """Return a name in the form of the Hub's own: small letters, digits, dots and dashes."""
    words = re.sub(r"[^a-z0-9.+]+", "-", name.lower())[:80].strip("-.+")
    # A leading letter keeps every reader of YAML from taking it for a number.
    return words if words[:1].isalpha() else f"license-{words}".rstrip("-")
