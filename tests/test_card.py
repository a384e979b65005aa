"""The card of a predicted model: valid for the Hub, true to the manifest, deaf to hostile names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, get_session
from manifest_maker import (
    COMMIT,
    TRUST,
    checkpoint,
    copied_tensor,
    local_checkpoint,
    manifest,
    method,
    run,
    tensor,
)
from markdown_it import MarkdownIt
from markdown_it.token import Token

from alpharl_hub.card.licenses import LICENSES
from alpharl_hub.card.make import (
    PICTURE,
    CardFacts,
    card_metadata,
    is_as_made,
    make_card,
    with_place,
)
from alpharl_hub.local_hub import LocalHub
from alpharl_hub.manifest import Manifest, Notice, ScoreRecord

HOSTILE = "x`](https://evil.example) |<script>alert(1)</script>\n\n# own heading\n---\nlicense: mit"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A Hub that answers validate-yaml."""
    with LocalHub(tmp_path_factory.mktemp("hub")) as started:
        yield started


def card(facts: CardFacts | None = None, **changes: object) -> str:
    """Make a card of the standard manifest with changes."""
    return make_card(manifest(**changes), facts or CardFacts("me/predicted"))


def front_matter(text: str) -> dict[str, object]:
    """Read the metadata with the YAML library that the Hub's client uses."""
    found = ModelCard(text).data.to_dict()
    assert found == yaml.safe_load(text.split("---\n")[1])
    return found


def problems(hub: LocalHub, text: str) -> dict[str, list[dict[str, str]]]:
    """Ask the Hub what is wrong with a card."""
    body = {"content": text, "repoType": "model"}
    answer = get_session().post(f"{hub.endpoint}/api/validate-yaml", json=body).json()
    assert set(answer) == {"errors", "warnings"}
    return answer


def test_metadata_describe_the_model(hub: LocalHub) -> None:
    """The Hub finds base, relation, run, license, task and library, and has no complaint."""
    run_card = "---\nlicense: mit\nlanguage: [en, no]\ndatasets:\n- org/sums\n---\n"
    text = card(CardFacts("me/predicted", run_card=run_card))
    assert front_matter(text) == {
        "base_model": "org/base",
        "base_model_relation": "finetune",
        "license": "mit",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": ["en", "no"],
        "datasets": "org/sums",
        "tags": ["alpharl-hub", "extrapolated", "reinforcement-learning", "org/run"],
    }
    assert problems(hub, text) == {"errors": [], "warnings": []}


def test_first_line_says_what_run_base_and_how_far() -> None:
    """Whoever reads one line learns that this is a prediction, of what, and how far ahead."""
    first = card().split("\n# ", 1)[1].split("\n\n")[1]
    assert "org/run" in first
    assert "org/base" in first
    assert "predicted at step 100, 2.5 x the last observed step 40" in first
    assert first.endswith("**predicted, not evaluated**.")


def test_going_beyond_what_is_safe_is_told_above_the_fold() -> None:
    """A model that was asked for farther than the run's direction carries says so at the top."""
    assert "this model goes beyond that" in card().split("## Use")[0]
    within = replace(TRUST, requested=2.0)
    assert "beyond that" not in card(trust=within).split("## Use")[0]


def test_no_placeholder_is_left() -> None:
    """A card never tells its reader to fill something in."""
    bare = manifest(trust=None, rounding=None, warnings=(), copied_files=(), tensors=())
    for text in (card(), make_card(bare, CardFacts("x"))):
        assert "More Information Needed" not in text
        assert "None" not in text
        assert "nan" not in text


def test_target_score_is_never_a_result() -> None:
    """The score that was aimed at appears as a target only, and never in the metadata."""
    text = card(method=method(response="score", target_score=0.875))
    lines = [line for line in text.splitlines() if "0.875" in line]
    assert lines
    assert all("target" in line for line in lines)
    assert "model-index" not in front_matter(text)


def test_checkpoints_link_to_their_commits() -> None:
    """Every checkpoint on the Hub is named with its step and a link to the commit that was read."""
    found = run(checkpoints=(checkpoint(10), checkpoint(40, folder="sub dir/hf")))
    text = card(run=found)
    assert f"](https://huggingface.co/org/run/tree/{COMMIT})" in text
    assert f"](https://huggingface.co/org/run/tree/{COMMIT}/sub%20dir/hf)" in text


def test_local_folders_appear_by_name_and_fingerprint(hub: LocalHub) -> None:
    """A model made of local folders claims no base on the Hub and links nowhere."""
    found = run(
        layout="local",
        pattern="checkpoint-{step}",
        base=local_checkpoint(None, "base"),
        base_model=None,
        checkpoints=(local_checkpoint(10, "checkpoint-10"), local_checkpoint(40, "checkpoint-40")),
    )
    text = card(run=found)
    assert not {"base_model", "base_model_relation"} & set(front_matter(text))
    assert "fingerprint `fedcba987654`" in text
    assert "https://huggingface.co" not in text
    assert problems(hub, text) == {"errors": [], "warnings": []}


def test_spectrum_table_holds_medians_per_module() -> None:
    """Modules are rows and their numbers are medians over layers, worked out here by hand."""
    shares = (0.25, 0.5, 0.9)
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(3)]
    tensors = [
        tensor(name, sigma=float(layer + 1), rank1_share=share, q2_step=None)
        for layer, (name, share) in enumerate(zip(names, shares, strict=True))
    ]
    text = card(tensors=(*tensors, copied_tensor("model.embed_tokens.weight")))
    assert "| `self_attn.q_proj` | 3 | 2 | 0.50 | - | 0.80 | 0.97 |" in text
    assert "\nself_attn.q_proj  259\n" in text
    assert "embed_tokens" not in text.split("## Spectrum")[1].split("## Rounding")[0]


def test_trust_is_told_in_words_with_numbers() -> None:
    """The reader sees the cosine, the horizon and that this model was asked for beyond it."""
    section = card().split("## Can it be trusted?")[1].split("##")[0]
    assert "steady: safe to about 2.5 x the last step" in section
    for number in ("0.95", "0.26", "2 %", "2.5 x", "asked for at 3 x, which is beyond that"):
        assert number in section


def test_files_tokenizer_and_code_are_named() -> None:
    """Copied files are listed, the tokenizer's origin is told, and code comes with a warning."""
    files = ("config.json", "tokenizer.json", "modeling_own.py")
    text = card(CardFacts("me/m", files_from_base=True), copied_files=files)
    assert "The tokenizer is the one stored with the base." in text
    assert "`modeling_own.py`. They run on your machine if you pass `trust_remote_code" in text
    without = card(copied_files=("config.json",))
    assert "AutoTokenizer" not in without
    assert "trust_remote_code" not in without


@pytest.mark.parametrize("name", ["alpharl", "linear"])
def test_paper_is_cited(name: str) -> None:
    """The BibTeX entry holds the title and the arXiv number of the method's paper."""
    made = method(name)
    entry = card(method=made).split("```bibtex\n")[1].split("```")[0]
    assert made.paper in entry
    assert f"eprint = {{{made.url.rsplit('/', 1)[1]}}}" in entry
    assert "author = {" in entry
    assert entry.count("{") == entry.count("}")


def test_repeat_command_says_what_was_set() -> None:
    """The command in the card splits, as a shell does it, into the options that were used."""
    found = run(include=r"mlp\.(up|down)_proj", pattern="it's/step-{step}")
    text = card(run=found, method=method("linear", fit_last="0.5", damping=0.5))
    words = shlex.split(text.split("# the same, spelt out\n")[1].split("\n```")[0])
    assert words[:3] == ["alpharl-hub", "predict", "hf://org/run@it's%2Fstep-{step}"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options == {
        "--base": f"hf://org/base@{COMMIT}",
        "--steps": "10,20,40",
        "--include": r"mlp\.(up|down)_proj",
        "--method": "linear",
        "--target-step": "100",
        "--fit-last": "50%",
        "--anchor": "base",
        "--damping": "0.5",
        "--others": "last",
        "-o": "predicted",
    }


def changed_lines(before: str, after: str) -> list[tuple[str, str]]:
    """The lines in which two texts of as many lines differ."""
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    return [pair for pair in pairs if pair[0] != pair[1]]


def test_card_moves_with_the_model() -> None:
    """A folder's card, once pushed, names the repo and branch it went to; the rest stays."""
    scored = ScoreRecord("gsm8k", None, None, 0.5)
    text = card(CardFacts("my out"), scores=(scored,))
    comment = "  # this repo, or a folder that holds its files"
    assert changed_lines(text, with_place(text, "me/model", "try-2")) == [
        ("- name: my out", '- name: "me/model"'),
        ("# my out", "# me/model"),
        (f'name = "my out"{comment}', f'name = "me/model"{comment}'),
        ('revision = "main"', 'revision = "try-2"'),
        ("vllm serve 'my out' --revision main", "vllm serve me/model --revision try-2"),
    ]
    assert with_place("# rewritten by hand\n", "me/model", "main") == "# rewritten by hand\n"


@pytest.mark.parametrize("copied_files", [("config.json",), ("config.json", "tokenizer.json")])
def test_tokenizer_of_the_base_is_served_where_none_came_along(
    copied_files: tuple[str, ...],
) -> None:
    """vLLM looks for a tokenizer beside the weights; without one it is told of the base's."""
    lines = card(copied_files=copied_files).splitlines()
    words = shlex.split(next(line for line in lines if line.startswith("vllm serve")))
    expected = ["vllm", "serve", "me/predicted", "--revision", "main"]
    if "tokenizer.json" not in copied_files:
        expected += ["--tokenizer", "org/base", "--tokenizer-revision", COMMIT]
    assert words == expected


def test_hand_edits_are_noticed_and_moves_are_not() -> None:
    """A card is as made after a push or a change of line ends, and not after any other edit."""
    text = card()
    assert is_as_made(text)
    assert is_as_made(with_place(text, "other/place", "branch"))
    assert is_as_made(text.replace("\n", "\r\n"))
    for old, new in (("license: other", "license: mit"), ("## Limits", "## Limitations")):
        assert old in text
        assert not is_as_made(text.replace(old, new))
    assert not is_as_made(text + "One more thing.\n")
    assert not is_as_made("# rewritten by hand\n")


def parsed(text: str) -> list[Token]:
    """The blocks and inlines of a page, by a parser of the dialect that the Hub renders."""
    page = text.split("---\n", 2)[2]
    blocks = MarkdownIt("commonmark").enable("table").parse(page)
    return [t for block in blocks for t in (block, *(block.children or []))]


def test_page_reads_as_meant() -> None:
    """Sections stand in their order, tables are tables, and neither HTML nor the mark is seen."""
    tokens = parsed(card())
    headings = [
        (tokens[i].tag, tokens[i + 1].content)
        for i in range(len(tokens))
        if tokens[i].type == "heading_open"
    ]
    assert headings == [
        ("h1", "me/predicted"),
        ("h2", "Use"),
        ("h2", "How it was made"),
        ("h2", "Evidence"),
        ("h3", "Can it be trusted?"),
        ("h3", "Spectrum and fit"),
        ("h2", "Rounding"),
        ("h2", "Limits"),
        ("h2", "What the tool warned of"),
        ("h2", "Files"),
        ("h2", "How to repeat it"),
        ("h2", "License"),
        ("h2", "Citation"),
    ]
    assert sum(token.type == "table_open" for token in tokens) == 3
    assert not any(token.type.startswith("html") for token in tokens)
    assert not any("made this card" in token.content for token in tokens)


def test_hostile_names_make_no_links() -> None:
    """Links and pictures of a card lead to the Hub and the paper, whatever things are called."""
    tokens = parsed(make_card(hostile_manifest(), CardFacts("me/m"), has_picture=True))
    targets = {str(t.attrs["href"]) for t in tokens if t.type == "link_open"}
    assert targets
    assert all(t.startswith(("https://huggingface.co/", "https://arxiv.org/")) for t in targets)
    pictures = [t for t in tokens if t.type == "image"]
    assert [t.attrs["src"] for t in pictures] == [PICTURE]
    assert pictures[0].content


@pytest.mark.parametrize(
    ("run_card", "base_card", "override", "expected"),
    [
        ("license: mit", "license: gemma", None, {"license": "mit"}),
        ("language: en", "license: gemma", None, {"license": "gemma"}),
        (None, "license: gemma", None, {"license": "gemma"}),
        ("license: [mit, apache-2.0]", None, None, {"license": ["mit", "apache-2.0"]}),
        ("license: mit", None, "apache-2.0", {"license": "apache-2.0"}),
        ("license: mit", None, "My Own 1.0", {"license": "other", "license_name": "my-own-1.0"}),
        (
            None,
            "license: null",
            None,
            {
                "license": "other",
                "license_name": "not-stated",
                "license_link": "https://huggingface.co/org/run",
            },
        ),
        (
            "license: other\nlicense_name: yi\nlicense_link: LICENSE",
            None,
            None,
            {
                "license": "other",
                "license_name": "yi",
                "license_link": "https://huggingface.co/org/run",
            },
        ),
        (
            "license: license of mine",
            None,
            None,
            {
                "license": "other",
                "license_name": "license-of-mine",
                "license_link": "https://huggingface.co/org/run",
            },
        ),
    ],
)
def test_license_is_taken_and_never_guessed(
    hub: LocalHub,
    run_card: str | None,
    base_card: str | None,
    override: str | None,
    expected: dict[str, object],
) -> None:
    """The user's word, else the run's card, else the base's, else `other`, always valid."""
    cards = [None if block is None else f"---\n{block}\n---\n" for block in (run_card, base_card)]
    text = card(CardFacts("me/m", override, *cards))
    found = front_matter(text)
    assert {key: found[key] for key in found if key.startswith("license")} == expected
    assert problems(hub, text) == {"errors": [], "warnings": []}


def test_license_file_is_linked_when_it_came_along() -> None:
    """A license text that was copied is linked in the new repo itself."""
    run_card = "---\nlicense: other\nlicense_name: yi\nlicense_link: LICENSE\n---\n"
    text = card(CardFacts("me/m", run_card=run_card), copied_files=("config.json", "LICENSE"))
    assert front_matter(text)["license_link"] == "LICENSE"


def test_differing_licenses_are_pointed_out() -> None:
    """When run and base state different licenses the reader is told both."""
    cards = ("---\nlicense: mit\n---\n", "---\nlicense: cc-by-nc-4.0\n---\n")
    section = card(CardFacts("me/m", None, *cards)).split("## License")[1].split("##")[0]
    assert "cc-by-nc-4.0" in section


def test_common_licenses_are_known() -> None:
    """Identifiers that large model families use count as the Hub's own."""
    assert {"apache-2.0", "mit", "llama3.1", "gemma", "cc-by-nc-4.0", "other"} <= LICENSES


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "no front matter",
        "---\n- a list\n---\n",
        "---\nlicense: [unclosed\n---\n",
        "---\n" + "[" * 20_000 + "\n---\n",
        "---\n? [a, b]\n: c\n---\n",
        "---\nx: !!python/object/apply:os.system [echo]\n---\n",
        "---\n" + "a: b\n" * 100_000 + "---\n",
    ],
)
def test_unusable_cards_of_others_count_as_none(text: str | None) -> None:
    """A card that is no YAML mapping, or is made to hurt its reader, gives no license."""
    assert "license" not in card_metadata(text)


class _Tags(HTMLParser):
    """Collects the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)


def hostile_manifest() -> Manifest:
    """A manifest with hostile text wherever a stranger could have put it."""
    bad = checkpoint(40, HOSTILE, HOSTILE, folder=HOSTILE)
    return manifest(
        run=run(
            pattern=HOSTILE,
            base=checkpoint(None, HOSTILE, HOSTILE),
            base_model=HOSTILE,
            checkpoints=(checkpoint(10, HOSTILE), bad),
            score_name=HOSTILE,
            include=HOSTILE,
        ),
        tensors=(tensor(f"model.layers.0.{HOSTILE}"), copied_tensor(HOSTILE, HOSTILE)),
        copied_files=(HOSTILE, f"{HOSTILE}.py", "tokenizer.json"),
        warnings=(Notice(HOSTILE, HOSTILE),),
    )


def test_hostile_names_have_no_effect(hub: LocalHub) -> None:
    """Names of strangers make no heading, tag, link, table cell or metadata of their own."""
    facts = CardFacts(
        "me/m", HOSTILE, f"---\nlanguage: '{HOSTILE}'\ndatasets: ['{HOSTILE}']\n---\n"
    )
    text = make_card(hostile_manifest(), facts)
    assert set(front_matter(text)) == {
        "license", "license_name", "library_name", "pipeline_tag", "tags",
    }  # fmt: skip
    assert front_matter(text)["tags"] == ["alpharl-hub", "extrapolated", "reinforcement-learning"]
    assert problems(hub, text) == {"errors": [], "warnings": []}
    page = text.split("---\n", 2)[2]
    outside = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", page)
    assert [line for line in page.splitlines() if line.startswith("# own")] == []
    tags = _Tags()
    tags.feed(re.sub(r"`[^`\n]*`", "", outside))
    assert tags.tags == {"code"}
    assert "](https://evil" not in outside
    header_cells = None
    for line in outside.splitlines():
        if not line.startswith("|"):
            header_cells = None
            continue
        header_cells = header_cells or line.count("|")
        assert line.count("|") == header_cells


def test_benign_manifest_looks_the_same_without_hostile_text() -> None:
    """The hostile text is shown, not dropped: a reader can see what the name really is."""
    text = make_card(hostile_manifest(), CardFacts("me/m"))
    assert "&#60;script&#62;alert" in text


def test_many_checkpoints_and_layers_stay_readable() -> None:
    """A run of hundreds of checkpoints and layers gives a table and a map of bounded size."""
    found = run(checkpoints=tuple(checkpoint(step) for step in range(1, 301)))
    tensors = tuple(tensor(f"model.layers.{i}.mlp.up_proj.weight") for i in range(300))
    text = card(run=found, tensors=tensors)
    assert len([line for line in text.splitlines() if line.startswith("|")]) < 60
    assert max(len(line) for line in text.split("```text\n")[1].split("```")[0].splitlines()) < 140
    assert "more in `alpharl.json`" in text


def test_card_is_deterministic(tmp_path: Path) -> None:
    """The same manifest gives the same bytes, and they survive a file."""
    text = card()
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == card()
