"""Cards from a template of the user's: filled in, boxed in, and refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from manifest_maker import manifest, run

from alpharl_hub.card.make import CardFacts, is_as_made, is_from_template, make_card
from alpharl_hub.card.template import VARIABLES, read_template
from alpharl_hub.errors import CardError


def write(folder: Path, text: str) -> Path:
    """Write a template."""
    path = folder / "card.md.j2"
    path.write_text(text, encoding="utf-8")
    return path


def filled(folder: Path, text: str, **changes: object) -> str:
    """Make a card from a template."""
    template = read_template(write(folder, text))
    return make_card(manifest(**changes), CardFacts("me/model", template=template))


def test_whole_page_is_the_standard_card(tmp_path: Path) -> None:
    """A template of nothing but the page gives the standard card, but for the mark at its end."""
    standard = make_card(manifest(), CardFacts("me/model"))
    text = filled(tmp_path, "{{ page }}")
    assert text.rsplit("\n[//]", 1)[0] == standard.rsplit("\n[//]", 1)[0]
    assert is_as_made(text)
    assert is_from_template(text)
    assert not is_from_template(standard)


def test_sections_stand_where_the_template_puts_them(tmp_path: Path) -> None:
    """An organisation's own words and order; numbers come from alpharl.json."""
    text = filled(
        tmp_path,
        "# Lab model card\n{% for c in manifest.run.checkpoints %}\n- step {{ c.step }}\n"
        "{% endfor %}\n\n{{ limits }}\n\n{{ use }}\n",
    )
    page = text.split("---\n", 2)[2]
    assert page.startswith("\n# Lab model card\n- step 10\n- step 20\n- step 40\n\n## Limits\n")
    assert page.index("## Limits") < page.index("## Use")
    assert ModelCard(text).data.base_model == "org/base"


def test_template_may_write_the_metadata_itself(tmp_path: Path) -> None:
    """What begins with front matter keeps it, ours in it or not."""
    text = filled(tmp_path, "---\n{{ card_data }}\nextra_gated_heading: Ask us\n---\n{{ title }}\n")
    assert ModelCard(text).data.to_dict()["extra_gated_heading"] == "Ask us"
    assert ModelCard(text).data.library_name == "transformers"
    assert text.count("\n---\n") == 1


def test_every_documented_variable_is_there(tmp_path: Path) -> None:
    """Each name that a template may use has a value, and the module's words name them all."""
    import alpharl_hub.card.template as module

    text = filled(tmp_path, "".join(f"[{name}]{{{{ {name} is defined }}}}\n" for name in VARIABLES))
    assert all(f"[{name}]True" in text for name in VARIABLES)
    assert all(f"`{name}`" in (module.__doc__ or "") for name in VARIABLES)


def test_names_of_strangers_can_be_put_in_safely(tmp_path: Path) -> None:
    """The two filters do in a template what the standard page does."""
    text = filled(
        tmp_path,
        "{{ manifest.run.pattern | code }} and {{ manifest.run.pattern | prose }}",
        run=run(pattern="<b>`x`</b>"),
    )
    assert "<b>" not in text
    assert "&#60;b&#62;" in text


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("one\n{{ pagee }}\n", 2, "no variable 'pagee'"),
        ("{% if 0 %}\n{{ hidden }}\n{% endif %}", 2, "no variable 'hidden'"),
        ("a\nb\n{% if %}", 3, "Expected an expression"),
        ("a\n{% for x in manifest %}\n", 2, "Unexpected end of template"),
        ("a\n{{ page | shout }}", 2, "shout"),
        ("{{ page", 1, "unexpected end of template"),
    ],
)
def test_unusable_template_is_refused_when_it_is_read(
    tmp_path: Path, text: str, line: int, reason: str
) -> None:
    """Wrong syntax and unknown names are told with their line before anything is made."""
    path = write(tmp_path, text)
    with pytest.raises(CardError) as refused:
        read_template(path)
    assert f"{path}, line {line}: " in str(refused.value)
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("one\n\n{{ manifest.nothing.there }}", 3),
        ("{{ 1 / 0 }}", 1),
        ("a\n{{ title + 1 }}", 2),
        ("a\n{{ ''.__class__.__mro__ }}", 2),
        ("{{ manifest.run.update({'a': 1}) }}", 1),
        ("{{ range(99999999) | list }}", 1),
        ("a\n{% include '/etc/passwd' %}", 2),
        ("a\n{{ title.missing() }}", 2),
        ("---\nno end of this", 1),
        ("---\nlicense: [mit\n---\n{{ page }}", 1),
    ],
)
def test_what_fails_while_it_is_filled_names_its_line(tmp_path: Path, text: str, line: int) -> None:
    """Missing fields, wrong sums and whatever leads out of the box end in one line."""
    template = read_template(write(tmp_path, text))
    with pytest.raises(CardError) as refused:
        make_card(manifest(), CardFacts("me/model", template=template))
    assert f"{template.name}, line {line}: " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Other encodings are named with the line of the first wrong byte; huge files are not read."""
    path = tmp_path / "latin.j2"
    path.write_bytes("fine\nschön\n".encode("latin-1"))
    with pytest.raises(CardError, match="line 2: not UTF-8"):
        read_template(path)
    path.write_bytes(b"a" * (2 << 20))
    with pytest.raises(CardError, match="no template"):
        read_template(path)
