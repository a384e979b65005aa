"""From the command line's words to the library's dataclasses."""

from __future__ import annotations

import math
import shlex
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from alpharl_hub.cli.options import NumBytes, split_list
from alpharl_hub.cli.running import Session, tell_wait
from alpharl_hub.cli.terminal import escape_text, human_bytes
from alpharl_hub.methods import AUTO, METHODS

if TYPE_CHECKING:
    from alpharl_hub.card.template import CardTemplate
    from alpharl_hub.prediction.destination import Destination, PushRequest
    from alpharl_hub.prediction.setting import PredictOptions
    from alpharl_hub.preparation import ScopeOptions
    from alpharl_hub.push.model_upload import HubAccess, PushHooks, PushOptions
    from alpharl_hub.results import Inspection
    from alpharl_hub.sources.opening import RunRequest
    from alpharl_hub.windows.streaming import Compute


def run_request(run: str, options: Mapping[str, Any], session: Session) -> RunRequest:
    """Build what says which run and which checkpoints."""
    from alpharl_hub.sources.opening import RunRequest

    if not options["quiet"]:
        tell_ambiguous(run, "RUN")
        tell_ambiguous(options["base"] or "", "--base")
    return RunRequest(
        run=run,
        base=options["base"],
        steps=options["steps"],
        until=options["until"],
        at=tuple(options["at"]),
        scores=options["scores"],
        score_key=options["score_key"],
        lower_is_better=options["lower_is_better"],
        keep_repeats=options["keep_repeats"],
        token=(options["token"] or "").strip() or None,
        allowed_hosts=frozenset(options["allow_host"]),
        verify=options["verify"],
        on_wait=tell_wait(options["verbose"]),
        on_verified=session.progress,
        stop=session.stop,
    )


def tell_ambiguous(text: str, what: str) -> None:
    """Say on stderr which was taken of a folder and a repo that could be called the same."""
    from alpharl_hub.sources.local_run import could_be_repo

    if could_be_repo(text):
        click.echo(
            escape_text(f"{what} {text}: the folder here is read; hf://{text} is the repo"),
            err=True,
        )


def scope_options(options: Mapping[str, Any]) -> ScopeOptions:
    """Build what says which matrices count."""
    from alpharl_hub.preparation import ScopeOptions

    return ScopeOptions(options["include"], options["exclude"], options.get("force", False))


def compute_request(options: Mapping[str, Any]) -> Compute:
    """Build what says where to compute.

    Raises:
        click.UsageError: an address without a cluster.
    """
    from alpharl_hub.windows.streaming import Cluster, Compute

    cluster, address = None, options.get("address")
    if options.get("executor") == "ray":
        cluster = Cluster(address, options["verbose"])
    elif address is not None:
        raise click.UsageError("--address is that of a Ray cluster: add --executor ray")
    return Compute(split_list(options["devices"]), options["memory"], cluster)


def prediction_options(options: Mapping[str, Any]) -> PredictOptions:
    """Build what says how to predict.

    Raises:
        click.UsageError: an option that the chosen method does not know.
    """
    from alpharl_hub.prediction.setting import PredictOptions
    from alpharl_hub.prediction.targets import TargetOptions

    check_method_options(options)
    as_adapter = options.get("as_adapter", False)
    return PredictOptions(
        method=options["method"],
        target=TargetOptions(options["target_step"], options["target_score"], options["scale"]),
        rescale=options["rescale"] and not options["keep_residual"],
        rank=options["rank"],
        keep_residual=options["keep_residual"],
        fit_last=options["fit_last"],
        anchor=options["anchor"],
        damping=options["damping"],
        others=options["others"] if is_given("others") or not as_adapter else None,
        dtype=options["dtype"],
        force=options["force"],
        as_adapter=as_adapter,
    )


def check_method_options(options: Mapping[str, Any]) -> None:
    """Refuse options that have no meaning for the chosen method, and more than one target.

    Raises:
        click.UsageError: names the option.
    """
    method = options["method"]
    for name in _meaningless_options(method):
        if is_given(name):
            flag = "--no-rescale" if (name, options[name]) == ("rescale", False) else flag_of(name)
            raise click.UsageError(f"{flag} has no meaning for --method {method}")
    if options["keep_residual"] and options["rescale"] and is_given("rescale"):
        raise click.UsageError("--keep-residual and --rescale would count the rest twice; give one")
    numbers = [(name, options[name]) for name in ("target_score", "scale", "damping")]
    numbers += [("target_step", step) for step in options["target_step"]]
    for name, value in numbers:
        if value is not None and not math.isfinite(value):
            raise click.UsageError(f"{flag_of(name)} {value}: give a finite number")
    if method in METHODS and not METHODS[method].looks_ahead and _given_targets(options):
        named = flag_of(_given_targets(options)[0])
        raise click.UsageError(f"--method {method} looks nowhere ahead: leave out {named}")
    if method == AUTO and len(options["target_step"]) > 1:
        raise click.UsageError("--method auto chooses one step: give one, or name a method")
    targets = _given_targets(options)
    if len(targets) > 1:
        named = " and ".join(flag_of(name) for name in targets)
        raise click.UsageError(f"{named} exclude each other; give one")


def _meaningless_options(method: str) -> tuple[str, ...]:
    if method == AUTO:
        return ("rescale", "rank", "keep_residual", "scale", "fit_last", "anchor", "others")
    known = METHODS[method].options
    names = ("rescale", "rank", "keep_residual", "scale", "fit_last")
    return tuple(name for name in names if name not in known)


def _given_targets(options: Mapping[str, Any]) -> list[str]:
    names = [n for n in ("target_score", "scale") if options[n] is not None]
    return ["target_step", *names] if options["target_step"] else names


def is_given(name: str) -> bool:
    """Whether the user gave an option on the command line."""
    return click.get_current_context().get_parameter_source(name) == ParameterSource.COMMANDLINE


def flag_of(name: str) -> str:
    """Write an option as it stands on the command line."""
    return f"--{name.replace('_', '-')}"


def require_target(options: Mapping[str, Any]) -> None:
    """Ask for a target.

    Raises:
        click.UsageError: there is none.
    """
    method = options["method"]
    needs_none = method == AUTO or not METHODS[method].looks_ahead
    if not needs_none and not _given_targets(options):
        scale = ", or --scale A" if "scale" in METHODS[method].options else ""
        raise click.UsageError(f"say how far: --target-step N or --target-score Y{scale}")


def check_predict_arguments(
    run: str | None,
    manifest: Path | None,
    output: Path | None,
    push_to: str | None,
    options: Mapping[str, Any],
) -> None:
    """Refuse what does not say what to predict, or where to put it.

    Raises:
        click.UsageError: names what is missing.
    """
    if run is None and manifest is None:
        raise click.UsageError("name a RUN, or an alpharl.json with --from")
    check_destination(output, push_to, options)
    if manifest is None:
        require_target(options)


def check_destination(output: Path | None, push_to: str | None, options: Mapping[str, Any]) -> None:
    """Refuse what does not say where to, or says it twice.

    Raises:
        click.UsageError: names what is missing, or too much.
    """
    if output is None and push_to is None:
        raise click.UsageError("say where to: -o DIR, --push-to ORG/NAME, or both")
    check_visibility_options(options)


def check_visibility_options(options: Mapping[str, Any]) -> None:
    """Refuse --private beside --public, and a branch for what goes to none.

    Raises:
        click.UsageError: both are there.
    """
    if options["private"] and options["public"]:
        raise click.UsageError("--private and --public exclude each other; give one")
    if options["create_pr"] and options["branch"]:
        raise click.UsageError(
            "a pull request asks for a change of main: give --create-pr or --branch"
        )


def destination(
    output: Path | None,
    push_to: str | None,
    options: Mapping[str, Any],
    stop: threading.Event,
    card_template: CardTemplate | None = None,
) -> Destination:
    """Build where a prediction goes."""
    from alpharl_hub.prediction.destination import Destination

    return Destination(
        output,
        options["overwrite"],
        options["work_dir"],
        options["license_id"],
        push_request(push_to, options, stop),
        card_template,
    )


def push_request(
    push_to: str | None, options: Mapping[str, Any], stop: threading.Event
) -> PushRequest | None:
    """Build which repo is pushed to, and how; None where none is named."""
    from alpharl_hub.prediction.destination import PushRequest

    if push_to is None:
        return None
    return PushRequest(
        push_to, push_options(options), hub_access(options), push_hooks(options, stop)
    )


def push_options(options: Mapping[str, Any]) -> PushOptions:
    """Build how a repo is made and written to."""
    from alpharl_hub.push.model_upload import DEFAULT_BRANCH, PushOptions

    private = True if options["private"] else False if options["public"] else None
    return PushOptions(
        private=private,
        branch=options["branch"] or DEFAULT_BRANCH,
        commit_message=options["commit_message"],
        overwrite=options["overwrite"],
        dry_run=options.get("dry_run", False),
        create_pr=options["create_pr"],
    )


def hub_access(options: Mapping[str, Any]) -> HubAccess:
    """Build with which token."""
    from alpharl_hub.push.model_upload import HubAccess

    return HubAccess(options["token"], allowed_hosts=frozenset(options["allow_host"]))


def push_hooks(options: Mapping[str, Any], stop: threading.Event) -> PushHooks:
    """Build what a push tells: uploads unless quiet, waits as elsewhere."""
    from alpharl_hub.push.model_upload import PushHooks
    from alpharl_hub.sources.patience import Patience

    patience = Patience(on_wait=tell_wait(options["verbose"]), stop=stop)
    if options["quiet"]:
        return PushHooks(patience=patience)
    return PushHooks(
        on_notice=lambda message: click.echo(escape_text(message), err=True),
        on_uploaded=lambda name, size: click.echo(
            escape_text(f"uploaded {name} ({human_bytes(size)})"), err=True
        ),
        patience=patience,
    )


def next_command(run: str, inspection: Inspection, options: Mapping[str, Any]) -> str:
    """Write the command that a user would want after inspect, ready to paste."""
    words = ["alpharl-hub", "predict", run, *_given_words(options)]
    method = options["method"]
    if not _given_targets(options) and (method == AUTO or METHODS[method].looks_ahead):
        last = max(c.step for c in inspection.checkpoints if c.selected)
        words += ["--target-step", str(2 * last)]
    return shlex.join([*words, "-o", "./predicted"])


_NOT_REPEATED = frozenset({"token", "as_json", "quiet", "verbose"})


def _given_words(options: Mapping[str, Any]) -> list[str]:
    """Write again the options that the user gave, as they stand in --help."""
    context = click.get_current_context()
    words: list[str] = []
    for param in context.command.params:
        name = param.name or ""
        is_given = context.get_parameter_source(name) == ParameterSource.COMMANDLINE
        if not isinstance(param, click.Option) or not is_given or name in _NOT_REPEATED:
            continue
        value, flag = options[name], max(param.opts, key=len)
        if param.is_flag:
            words.append(flag if value else param.secondary_opts[0])
        elif param.multiple:
            given = [item if isinstance(item, str) else f"{item[0]}={item[1]}" for item in value]
            words += [word for item in given for word in (flag, item)]
        elif isinstance(value, tuple):
            words += [flag, ",".join(f"{step:g}" for step in value)]
        elif isinstance(param.type, NumBytes):
            words += [flag, NumBytes.text(value)]
        else:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return words
