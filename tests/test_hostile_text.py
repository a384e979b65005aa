"""Names and notes of strangers are shown as they are, and obeyed by no page and no terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from manifest_maker import checkpoint, copied_tensor, manifest, method, tensor
from manifest_maker import run as run_record
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console
from torch import Tensor
from trajectories import (
    UP_PROJ,
    Run,
    command,
    fail,
    model_config,
    rank_one_line,
    succeed,
    write_run,
)

from alpharl_hub.card.licenses import slug
from alpharl_hub.card.make import CardFacts, card_metadata, make_card
from alpharl_hub.card.markdown import code, fenced, link, one_line, prose, table
from alpharl_hub.cli.terminal import add_row, add_text_column, new_table, print_heading
from alpharl_hub.manifest import AutoRecord, Manifest, Notice, SweepRecord, TrustRecord

ESCAPES = "\x1b[2J\x1b[31m\x1b]8;;http:evil\x07\x1b]0;title\x07\x9b31m"
"""Clears the screen, colours it, begins a link, sets the title, and begins an 8-bit sequence."""
BIDI = "\u202e\u2066\u200f"
MARKUP = "[red][link=x]y[/nope]:smile:"
PAGE = "`<b onclick=x>|</code><!--"
FOLDER = f"evil{ESCAPES}{BIDI}{MARKUP}{PAGE}".replace("/", "")
"""As hostile as the name of a folder can be."""
TEXT = (
    f"{FOLDER}{MARKUP}\r\n\n# own heading\n---\nlicense: mit\n</pre><script>alert(1)</script>\u2028"
)
ODD_FILE = "`x` [a](b) &lt; _y_.md"
"""A name that every system can store, and that Markdown would obey."""
STEPS = (10, 20, 30, 40, 50, 60)


def shown_safely(text: str) -> bool:
    """Whether a terminal only gets lines of printable letters."""
    return all(line.isprintable() for line in text.split("\n"))


# -- the terminal --------------------------------------------------------------------------------


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model of which every name holds the hostile text."""
    bad = TEXT.replace(".", "")
    return {name.replace("_proj", f"_{bad}_proj"): tensor for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose folders, tensors, scores and cards are called by somebody who means harm."""
    root = tmp_path_factory.mktemp("place") / FOLDER
    line = rank_one_line()
    config = {**model_config(), "architectures": [TEXT], "model_type": TEXT, TEXT: TEXT}
    run = write_run(root, STEPS, lambda step: renamed(line(step)), config=config)
    for step in STEPS:
        folder = run.folder(step)
        (folder / f"{FOLDER}.txt").write_text(TEXT)
        (folder / ODD_FILE).write_text(TEXT)
        card = yaml.safe_dump({"license": TEXT, "datasets": [TEXT], "language": TEXT})
        (folder / "README.md").write_text(f"---\n{card}---\n{TEXT}")
        folder.rename(run.root / f"{FOLDER}-step-{step}")
    rows = [{"step": step, TEXT: step / 100} for step in STEPS]
    (root / "scores.json").write_text(json.dumps(rows))
    return run


def scored(run: Run) -> list[str]:
    """RUN, base and scores."""
    return run.arguments("--scores", str(run.root.parent / "scores.json"))


COMMANDS = {
    "inspect": ["inspect"],
    "inspect as JSON": ["inspect", "--json"],
    "report": ["report"],
    "report as JSON": ["report", "--json"],
    "backtest": ["backtest", "-v"],
    "predict": ["predict", "--target-step", "80", "-o", "{out}"],
    "predict by score": ["predict", "--target-score", "0.9", "-o", "{out}"],
    "extract": ["extract", "-o", "{out}"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_show_hostile_names_spelt_out(tmp_path: Path, hostile: Run, name: str) -> None:
    """Whatever a command prints of names, it is text: no escape, no markup, no turned line."""
    first, *rest = (word.format(out=tmp_path / "out") for word in COMMANDS[name])
    result = succeed(first, *scored(hostile), *rest)
    for stream in (result.stdout, result.stderr):
        assert shown_safely(stream), ascii(stream)
    if "--json" in rest:
        json.loads(result.stdout)
    if name == "inspect":
        assert "[red][link=x]y[/nope]:smile:" in "".join(result.stdout.split())
        assert "\\x1b" in result.stdout


def test_compare_shows_hostile_names_spelt_out(hostile: Run) -> None:
    """Both models are named, and the tensors that only one of them has."""
    last = hostile.root / f"{FOLDER}-step-40"
    result = succeed("compare", str(hostile.base), str(last), "--base", str(hostile.base))
    assert shown_safely(result.stdout + result.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", f"./{FOLDER}"],
        ["inspect", f"lab/{FOLDER}"],
        ["inspect", "{run}", "--base", f"./{FOLDER}"],
        ["inspect", "{run}", "--base", "{base}", "--steps", FOLDER],
        ["inspect", "{run}", "--base", "{base}", "--until", FOLDER],
        ["inspect", "{run}", "--base", "{base}", "--at", f"{FOLDER}=70"],
        ["inspect", "{run}", "--base", "{base}", "--include", f"({FOLDER}"],
        ["inspect", "{run}", "--base", "{base}", "--scores", "{scores}", "--score-key", FOLDER],
        ["report", "{run}", "--base", "{run}"],
    ],
)
def test_error_lines_are_one_printable_line(hostile: Run, arguments: list[str]) -> None:
    """An error repeats what it is about, and nothing of it reaches the terminal as a command."""
    places = {"run": hostile.root, "base": hostile.base, "scores": hostile.root.parent}
    places["scores"] = hostile.root.parent / "scores.json"
    words = [str(places.get(word.strip("{}"), word)) for word in arguments]
    line = fail(*words)
    assert line.isprintable()


def test_the_last_words_of_an_evaluation_are_spelt_out(tmp_path: Path, hostile: Run) -> None:
    """What a failing evaluation printed is shown, and does nothing to the terminal."""
    script = tmp_path / "evaluate.py"
    script.write_text(f"print({ESCAPES + BIDI + MARKUP!r})\nraise SystemExit(3)\n")
    evaluate = f"{sys.executable} {script} {{model}}"
    words = ("--evaluate", evaluate, "--scales", "1", "-o", str(tmp_path / "out"))
    result = command("sweep", *hostile.arguments("--method", "alpharl", *words))
    assert result.exit_code == 1, result.output
    assert shown_safely(result.stdout + result.stderr), ascii(result.stderr)
    assert "\\x1b[31m" in result.stderr


def test_a_shard_of_that_name_is_refused_in_one_printable_line(tmp_path: Path) -> None:
    """The header's error names the file, which is called anything."""
    run = write_run(tmp_path, STEPS, rank_one_line())
    data = bytearray((run.folder(40) / "model.safetensors").read_bytes())
    name = json.dumps(f"{TEXT}x").encode()[1:-1]
    header = b'{"' + name + b'": {"dtype": "' + name + b'", "shape": [], "data_offsets": [0, 0]}}'
    path = run.folder(40) / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert fail("inspect", *run.arguments()).isprintable()


def terminal_output(arguments: list[str]) -> str:
    """Run the command line with a terminal for its output, and return what that was sent."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    child = subprocess.Popen(
        [sys.executable, "-m", "alpharl_hub", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env=environment,
        cwd=Path(__file__).parents[1],
    )
    os.close(slave)
    sent = b""
    # Linux answers EIO at the end, where others answer with nothing.
    with suppress(OSError):
        while data := os.read(master, 65536):
            sent += data
    os.close(master)
    assert child.wait() == 0, sent
    return sent.decode()


def test_a_real_terminal_gets_our_colours_only(hostile: Run) -> None:
    """On a terminal bold is ours; every other control character would be theirs."""
    sent = terminal_output(["inspect", *scored(hostile), "--method", "alpharl"])
    assert "\x1b[1m" in sent
    without_styles = re.sub(r"\x1b\[[0-9;]*m", "", sent).replace("\r\n", "\n")
    assert shown_safely(without_styles), ascii(without_styles)
    assert "\x1b[31m" not in sent
    assert "\\x1b[31m" in without_styles.replace("\n", "")


TALKATIVE = """
import logging, sys, warnings
from alpharl_hub.__main__ import main
sys.argv = ["alpharl-hub", "--version"]
try:
    main()
except SystemExit:
    pass
text = sys.stdin.buffer.read().decode()
logging.getLogger("huggingface_hub").warning(text)
logging.getLogger("huggingface_hub").warning("%s of %d %%", text, 3)
warnings.warn("two lines\\n" + text)
import huggingface_hub
from huggingface_hub.utils import logging as theirs
theirs.get_logger("huggingface_hub.x").warning(text)
"""


def test_what_libraries_say_of_a_server_is_spelt_out() -> None:
    """Log records and warnings of the Hub's client repeat what a server sent."""
    ended = subprocess.run(
        [sys.executable, "-c", TALKATIVE],
        input=TEXT.encode(),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    stderr = ended.stderr.decode()
    assert shown_safely(stderr), ascii(stderr)
    assert stderr.count("\\x1b[2J") == 4
    assert "of 3 %" in stderr
    assert "UserWarning: two lines\n" in stderr


@given(st.text(st.characters(), max_size=30))
@example(TEXT)
def test_any_text_is_text_in_tables_and_headings(text: str) -> None:
    """Consoles that parse markup and emoji print a name as it is called."""
    console = Console(width=4000, file=None, record=True, quiet=False)
    with console.capture() as caught:
        table_ = new_table()
        add_text_column(table_, "name")
        add_row(table_, [text])
        console.print(table_)
        print_heading(console, text, text)
    assert shown_safely(caught.get())
    if text.isprintable() and text.strip() == text and text:
        assert text in caught.get()


# -- the page ------------------------------------------------------------------------------------

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
"""As the Hub reads cards: tables, and raw HTML where there is any."""
OUR_TAGS = frozenset(
    {
        *("h1", "h2", "h3", "p", "a", "img", "strong", "code", "pre", "ul", "li"),
        *("table", "thead", "tbody", "tr", "th", "td"),
    }
)


class Tags(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.comments: list[str] = []
        self.places: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep one."""
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)
        self.places += [value or "" for name, value in attrs if name == "href"]

    def handle_comment(self, data: str) -> None:
        """Keep what no page of ours has."""
        self.comments.append(data)


def read_page(page: str) -> Tags:
    """Render Markdown and read the page."""
    tags = Tags()
    tags.feed(MARKDOWN.render(page))
    tags.close()
    return tags


def structure(page: str) -> list[str]:
    """The headings of a page, as text."""
    tokens = MARKDOWN.parse(page)
    return [
        "".join(child.content for child in tokens[place + 1].children or ())
        for place, token in enumerate(tokens)
        if token.type == "heading_open"
    ]


def split_card(card: str) -> tuple[dict[str, object], str]:
    """The metadata and the page of a card."""
    _, front_matter, page = card.split("---\n", 2)
    return yaml.safe_load(front_matter), page


def hostile_manifest() -> Manifest:
    """A manifest with hostile text wherever a stranger could have put some."""
    bad = checkpoint(40, TEXT, TEXT, folder=TEXT)
    trust = TrustRecord(0.9, 0.2, 0.1, 0.1, 1.0, 20, 2.0, 3.0, TEXT)
    auto = AutoRecord(
        None,
        2.0,
        TEXT,
        0.9,
        None,
        None,
        None,
        None,
        20,
        None,
        None,
        None,
        TEXT,
        True,
        (TEXT, "- x"),
    )
    return manifest(
        run=run_record(
            layout="branches",
            pattern=TEXT,
            base=checkpoint(None, TEXT, TEXT),
            base_model=TEXT,
            checkpoints=(checkpoint(10, TEXT), bad),
            score_name=TEXT,
            include=TEXT,
            exclude=TEXT,
        ),
        method=method(fit_last="0.5", others=TEXT, dtype=TEXT, response=TEXT),
        trust=trust,
        auto=auto,
        sweep=SweepRecord("scale", (1.0, 2.0), (0.1, 0.2), 2.0, None, None, False),
        tensors=(
            tensor(f"model.layers.0.{TEXT}"),
            tensor(f"model.layers.1.{TEXT}.weight"),
            copied_tensor(TEXT, TEXT),
        ),
        copied_files=(TEXT, f"{TEXT}.py", "tokenizer.json", ODD_FILE),
        warnings=(
            Notice(TEXT, TEXT),
            Notice("x", "1. a list https://evil.example www.evil.example"),
        ),
    )


def hostile_card(as_adapter: bool) -> str:
    """The card of that, under cards of the same kind."""
    card = (
        f"---\n{yaml.safe_dump({'license': TEXT, 'license_name': TEXT, 'datasets': [TEXT]})}---\n"
    )
    found = hostile_manifest()
    assert found.method is not None
    found = replace(found, method=replace(found.method, as_adapter=as_adapter))
    return make_card(found, CardFacts(TEXT, run_card=card, base_card=card, branch=TEXT))


@pytest.mark.parametrize("as_adapter", [False, True])
def test_a_card_keeps_its_structure(as_adapter: bool) -> None:
    """No tag, attribute, link, heading or field of a stranger's survives in page and metadata."""
    metadata, page = split_card(hostile_card(as_adapter))
    allowed = {"license", "license_name", "license_link", "library_name", "pipeline_tag", "tags"}
    assert set(metadata) <= allowed
    assert metadata["license"] == "other"
    assert metadata["tags"] == ["alpharl-hub", "extrapolated", "reinforcement-learning"]
    tags = read_page(page)
    assert tags.tags <= OUR_TAGS
    assert tags.attributes <= {"href", "class"}
    assert tags.comments == []
    assert all(
        place.startswith(("https://huggingface.co/", "https://arxiv.org/")) for place in tags.places
    )
    headings = structure(page)
    assert len([h for h in headings if "own heading" in h and not h.startswith("evil")]) == 0
    plain = manifest(auto=hostile_manifest().auto, sweep=hostile_manifest().sweep)
    assert plain.method is not None
    plain = replace(plain, method=replace(plain.method, as_adapter=as_adapter))
    wanted = structure(split_card(make_card(plain, CardFacts("me/m")))[1])
    assert headings[1:] == wanted[1:]
    assert page.replace("\n", "").isprintable()


def test_the_card_of_a_hostile_run_is_clean(tmp_path: Path, hostile: Run) -> None:
    """From hostile folders through the command line to the page that people will see."""
    output = tmp_path / "out"
    result = succeed("predict", *scored(hostile), "--target-step", "80", "-o", str(output))
    assert result.exit_code == 0
    assert {path.name for path in output.iterdir()} == {
        *("README.md", "alpharl.json", "config.json", "model.safetensors", ODD_FILE),
        "alpharl-evidence.png",
    }
    card = (output / "README.md").read_text(encoding="utf-8")
    metadata, page = split_card(card)
    assert metadata["license"] == "other"
    assert re.fullmatch(r"[a-z0-9.+-]+", str(metadata["license_name"]))
    assert "datasets" not in metadata
    tags = read_page(page)
    assert tags.tags <= OUR_TAGS
    assert tags.attributes <= {"href", "class", "src", "alt"}
    assert page.replace("\n", "").isprintable()
    kept = json.loads((output / "alpharl.json").read_text(encoding="utf-8"))
    assert kept["run"]["score_name"] == TEXT


ANY_TEXT = st.text(st.characters(), max_size=40) | st.text(
    st.sampled_from("`*_[]()<>!|~&#;:/\\-+=.1 \n\tahtpsw@\"'\u202e"), max_size=40
)


def children(page: str) -> list[Token]:
    """What stands in the only paragraph of a page."""
    inline = [token for token in MARKDOWN.parse(page) if token.type == "inline"]
    (only,) = inline
    return only.children or []


def words(text: str) -> list[str]:
    """What of a text is to be seen."""
    return one_line(text, 600).replace("\u00a0", " ").split()


@given(ANY_TEXT)
@example("https://evil.example www.evil.example a@b.c")
@example("- a\n1. b")
@example("\ud800 &lt; &#60;")
def test_prose_is_nothing_but_its_words(text: str) -> None:
    """In a list, as the card has it, a stranger's sentence is one paragraph of text."""
    page = f"- {prose(text)}x"
    kinds = [token.type for token in MARKDOWN.parse(page)]
    assert kinds == [
        *("bullet_list_open", "list_item_open", "paragraph_open", "inline", "paragraph_close"),
        *("list_item_close", "bullet_list_close"),
    ]
    found = children(page)
    assert {child.type for child in found} <= {"text", "text_special"}
    assert "".join(c.content for c in found).split() == words(f"{text}x"[:600])
    assert not re.search(r"://|www\.", page, re.IGNORECASE)


@given(ANY_TEXT)
@example("|`|")
@example("`")
def test_code_is_one_cell_of_a_table(name: str) -> None:
    """A name as code neither ends its cell nor begins anything in it."""
    page = table(["a", "b"], [[code(f"x{name}"), "y"]])
    cells = [token for token in MARKDOWN.parse(page) if token.type == "td_open"]
    assert len(cells) == 2
    tags = read_page(page)
    assert tags.tags == {"table", "thead", "tbody", "tr", "th", "td", "code"}
    assert tags.attributes == set()


@given(st.lists(ANY_TEXT, max_size=4))
@example(["```", "~~~", "````x"])
def test_a_code_block_holds_its_lines_and_ends_after_them(lines: list[str]) -> None:
    """No line ends the block, and what follows it is outside."""
    tokens = MARKDOWN.parse(fenced(lines, "bash") + "\n\nafter")
    assert [token.type for token in tokens] == [
        *("fence", "paragraph_open", "inline", "paragraph_close"),
    ]
    assert tokens[0].content.split("\n")[:-1] == [one_line(line, 1000) for line in lines]


@given(ANY_TEXT, ANY_TEXT)
@example("../../evil", ")](javascript:alert(1)")
def test_a_link_leads_to_the_hub(label: str, path: str) -> None:
    """Whatever the parts of the path are, the address is one of the Hub's."""
    tags = read_page(f"see {link(code(label), 'org/x', path)} there")
    assert tags.tags <= {"p", "a", "code"}
    (place,) = tags.places
    assert place.startswith("https://huggingface.co/org/x")
    assert re.fullmatch(r"[!-~]+", place)


@settings(max_examples=40, deadline=None)
@given(ANY_TEXT)
@example("NULL")
@example("1.5")
def test_a_license_name_is_a_slug(name: str) -> None:
    """A license that nobody knows becomes small letters, digits, dots and dashes, kept as text."""
    metadata, _ = split_card(make_card(manifest(), CardFacts("me/m", license_override=name)))
    assert metadata["license"] == "other"
    assert re.fullmatch(r"[a-z][a-z0-9.+-]*", str(metadata["license_name"]))
    assert metadata["license_name"] == slug(name)


@pytest.mark.parametrize(
    "card",
    [
        "---\na: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nlicense: *c\n---\n",
        "---\nlicense: &a [*a]\n---\n",
        "---\nlicense: !!python/object/apply:os.system ['exit 1']\n---\n",
        "---\n" + "[" * 5_000 + "\n---\n",
        "---\n? [a, b]\n: c\n---\n",
        "---\n" + "a: b\n" * 3_000 + "---\n",
        "---\n" + " " * 90_000 + "x\n---\n",
    ],
    ids=["aliases", "circle", "object", "depth", "unhashable", "many", "blanks"],
)
def test_bombs_in_the_metadata_of_a_card_do_nothing(card: str) -> None:
    """Aliases stay references, tags make no objects, and depth counts as unreadable."""
    found = card_metadata(card)
    assert isinstance(found, dict)
    assert make_card(manifest(), CardFacts("me/m", run_card=card))


def test_error_lines_of_the_library_name_what_they_are_about() -> None:
    """The hostile text is spelt out, not dropped: a user sees what the name really is."""
    result = command("inspect", f"./{FOLDER}")
    assert "\\x1b[2J" in result.stderr
    assert "[red]" in result.stderr
    assert UP_PROJ not in result.stderr
