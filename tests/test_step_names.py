"""Names that carry a step: those that public runs and trainers give, and those that look alike."""

import pytest

from alpharl_hub.errors import TrajectoryError
from alpharl_hub.sources.step_names import (
    choose_family,
    find_families,
    match_pattern,
    match_repo,
    match_step,
    mention_patterns,
)

STEPS = {
    # branches of public runs
    "step_1": ("step_{step}", 1),
    "step_500": ("step_{step}", 500),
    "step_1900": ("step_{step}", 1900),
    "step_0100": ("step_{step}", 100),
    "step_2800": ("step_{step}", 2800),
    "step_0025": ("step_{step}", 25),
    "step-002500": ("step-{step}", 2500),
    "main-step-000000100": ("main-step-{step}", 100),
    "v01.00-step-000000300": ("v01.00-step-{step}", 300),
    # folders of public runs
    "step-0020": ("step-{step}", 20),
    "step-1240": ("step-{step}", 1240),
    "checkpoint-500": ("checkpoint-{step}", 500),
    "global_step1000": ("global_step{step}", 1000),
    "global_step_15": ("global_step_{step}", 15),
    "checkpoint-1161": ("checkpoint-{step}", 1161),
    # what trainers write here
    "global_step_300": ("global_step_{step}", 300),
    "global_step300_hf": ("global_step{step}_hf", 300),
    "best_global_step300_hf": ("best_global_step{step}_hf", 300),
    "iter_0000100": ("iter_{step}", 100),
    "ckpt-7": ("ckpt-{step}", 7),
    "Step_10": ("Step_{step}", 10),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_name_gives_its_family_and_its_number(name: str) -> None:
    """The family is the text around the number; zeros in front of the number do not count."""
    assert match_step(name) == STEPS[name]


@pytest.mark.parametrize(
    "name",
    [
        "main",
        "latest-checkpoint",
        "last-checkpoint",
        "step1000-tokens4B",
        "step-001000-2BT",
        "stage1-step120000-tokens252B",
        "step_",
        "checkpoint-best",
        "tmp_step_5",
        "old_step_5",
        "step_5_old",
        "steps_5",
        "step_" + "1" * 16,
        "v1.0",
        "refs",
    ],
)
def test_other_names_carry_no_step(name: str) -> None:
    """Moving names, unfinished folders and revisions of pre-training are no steps of a run."""
    assert match_step(name) is None


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("DAPO-step-0", "DAPO-step-{step}"),
        ("Qwen3-4B-RLVR-Code-step-300", "Qwen3-4B-RLVR-Code-step-{step}"),
        ("OLMo-run5-step50", "OLMo-run5-step{step}"),
        ("qwen_step_0100", "qwen_step_{step}"),
        ("INTELLECT-1-step-17000", "INTELLECT-1-step-{step}"),
        ("qwen3-1p7b-sgd-polaris-step300-best-val", "qwen3-1p7b-sgd-polaris-step{step}-best-val"),
        ("step-7", "step-{step}"),
        ("qwen3_4B_Base_MaxRL_Polaris_1000_steps", None),
        ("olmo-step1000-tokens4B", None),
        ("olmo-step-001000-2BT", None),
        ("multistep5", None),
        ("two-step-model", None),
        ("step3.5", None),
        ("Qwen2.5-Math-1.5B", None),
    ],
)
def test_a_repos_name_gives_the_pattern_of_its_run(name: str, pattern: str | None) -> None:
    """A guess that is only ever a hint: text may follow, counts of tokens and words may not."""
    assert match_repo(name) == pattern


def test_padded_and_unpadded_names_are_one_family_in_order_of_numbers() -> None:
    """Numbers order the steps, whatever their padding; names stay as they are."""
    (family,) = find_families(["step_1000", "step_0200", "step_30", "main", "step_0004"])
    assert family.pattern == "step_{step}"
    steps = [(4, "step_0004"), (30, "step_30"), (200, "step_0200"), (1000, "step_1000")]
    assert list(family.names.items()) == steps


def test_a_single_name_is_no_family() -> None:
    """One folder that happens to end in a number does not make a run."""
    assert find_families(["checkpoint-500", "step_10", "step_20"])[0].pattern == "step_{step}"
    assert len(find_families(["checkpoint-500", "step_10", "step_20"])) == 1


def test_two_names_of_one_step_are_refused() -> None:
    """Which of step_100 and step_0100 is meant is not guessed."""
    with pytest.raises(TrajectoryError, match="step_100 and step_0100 are both step 100"):
        find_families(["step_100", "step_0100", "step_200"])
    with pytest.raises(TrajectoryError, match="x7 and x07 are both step 7"):
        match_pattern("x{step}", ["x7", "x07"])


def test_two_families_are_listed_with_a_way_to_say_which() -> None:
    """The message names both patterns, how many steps each has, and what to type."""
    families = find_families(["step_1", "step_2", "main-step-1", "main-step-2", "main-step-3"])
    with pytest.raises(TrajectoryError) as error:
        choose_family(families, "lab/run", "lab/run@*")
    text = str(error.value)
    assert "main-step-{step} (3 steps), step_{step} (2 steps)" in text
    assert text.endswith("say which, such as lab/run@main-step-{step}")


def test_no_family_and_one_family() -> None:
    """Without a family there is none to choose; a single one is chosen."""
    assert choose_family((), "lab/run", "lab/run@*") is None
    families = find_families(["step_1", "step_2"])
    assert choose_family(families, "lab/run", "lab/run@*") == families[0]


def test_a_pattern_of_the_users_own() -> None:
    """Any text around the number, taken literally; a single fit is enough."""
    names = ["run.a+1-final", "run.a+20-final", "runxa+3-final", "run.a+4", "run.a+-final"]
    family = match_pattern("run.a+{step}-final", names)
    assert dict(family.names) == {1: "run.a+1-final", 20: "run.a+20-final"}
    assert dict(match_pattern("{step}", ["7", "x7"]).names) == {7: "7"}
    assert dict(match_pattern("none-{step}", names).names) == {}


def test_a_mention_refuses_nothing() -> None:
    """What is only mentioned may hold two names of one step, or several families."""
    names = ["step_1", "step_01", "ckpt_1", "ckpt_2", "iter_1", "iter_2", "main"]
    assert mention_patterns(names) == ("ckpt_{step}", "iter_{step}")
