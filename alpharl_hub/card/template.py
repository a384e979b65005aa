"""A card's page from a template of the user's own, in Jinja's language.

A template sees `card_data` (the metadata as YAML), `title`, every section of the standard page as a
text of Markdown (`summary`, `use`, `scores`, `how_it_was_made`, `evidence`, `rounding`, `limits`,
`warnings`, `files`, `repeat`, `license`, `citation`; some are empty), `page` (all of them), and
`manifest`: alpharl.json. What stands in the manifest is named by strangers: the filters `code` and
`prose` put it into a page without effect. Metadata come first by themselves unless the template
begins with its own.

It runs in Jinja's sandbox and reads no other file:
https://jinja.palletsprojects.com/en/stable/sandbox/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from jinja2 import DictLoader, StrictUndefined, TemplateError, TemplateSyntaxError, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alpharl_hub import strict_json
from alpharl_hub.card.markdown import code, prose
from alpharl_hub.card.metadata import card_metadata
from alpharl_hub.errors import CardError
from alpharl_hub.manifest import Manifest

SECTIONS = (
    *("summary", "use", "scores", "how_it_was_made", "evidence", "rounding", "limits"),
    *("warnings", "files", "repeat", "license", "citation"),
)
VARIABLES = ("card_data", "title", *SECTIONS, "page", "manifest")
"""What a template may name."""

_MAX_TEMPLATE_BYTES = 1 << 20
_COMPILED_NAME = "<template>"  # what Jinja calls a template that came from a string
# What an expression of Python's can raise; Jinja passes it on as it is.
_IN_EXPRESSIONS = (ArithmeticError, LookupError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class TemplateInput:
    """What a template is filled with: the parts of the standard card."""

    metadata: str
    title: str
    sections: Mapping[str, str]
    manifest: Manifest


@dataclass(frozen=True)
class CardTemplate:
    """A template that could be read: `name` is for messages, `source` its text."""

    name: str
    source: str

    def fill(self, given: TemplateInput) -> str:
        """Return the card.

        Raises:
            CardError: an expression in it fails, named by its line.
        """
        page = "\n\n".join(part for part in (given.title, *given.sections.values()) if part)
        values = {
            "card_data": given.metadata,
            "title": given.title,
            **given.sections,
            "page": page,
            "manifest": strict_json.to_plain(given.manifest),
        }
        try:
            text = _environment().from_string(self.source).render(values)
        except (TemplateError, RecursionError, *_IN_EXPRESSIONS) as error:
            line = _line_of(error.__traceback__)
            raise _refusal(self.name, line, str(error)) from error
        if text.lstrip().startswith("---"):
            if not card_metadata(text):
                raise _refusal(self.name, 1, "begins with --- but not with metadata in YAML")
            return text.strip() + "\n"
        return f"---\n{given.metadata}\n---\n\n{text.strip()}\n"


def read_template(path: Path) -> CardTemplate:
    """Read a template, and refuse one that could not be filled in.

    Raises:
        CardError: it cannot be read, is no template, or names a variable that there is none of.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_TEMPLATE_BYTES + 1)
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror}); name another") from error
    if len(data) > _MAX_TEMPLATE_BYTES:
        raise CardError(f"{path}: more than {_MAX_TEMPLATE_BYTES} bytes, no template of a card")
    try:
        source = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise CardError(f"{path}, line {line}: not UTF-8; save it as that") from error
    template = CardTemplate(str(path), source)
    _check_names(template)
    return template


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        loader=DictLoader({}),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "code": lambda value: code(str(value)),
        "prose": lambda value: prose(str(value)),
    }
    return environment


def _check_names(template: CardTemplate) -> None:
    """Refuse what is no template, and names of variables that there are none of."""
    environment = _environment()
    try:
        tree = environment.parse(template.source)
        environment.compile(template.source)  # unknown filters and tests are found only now
    except TemplateSyntaxError as error:
        raise _refusal(template.name, error.lineno, error.message or "a syntax error") from error
    except RecursionError as error:
        raise _refusal(template.name, None, "nested too deeply") from error
    known = {*VARIABLES, *environment.globals}
    unknown = find_undeclared_variables(tree) - known
    if not unknown:
        return
    uses = [(node.lineno, node.name) for node in tree.find_all(nodes.Name) if node.name in unknown]
    line, name = min(uses)
    known_words = ", ".join(VARIABLES)
    raise CardError(f"{template.name}, line {line}: no variable {name!r}; there are {known_words}")


def _line_of(traceback: TracebackType | None) -> int | None:
    """Return the template's line in which an error came up: Jinja puts it into the traceback."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == _COMPILED_NAME:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _refusal(name: str, line: int | None, reason: str) -> CardError:
    where = name if line is None else f"{name}, line {line}"
    return CardError(f"{where}: {' '.join(reason.split())}; mend the template")
