"""What a RUN or --base says when it names a repo: repo, revision, folder, at most one {step}."""

from __future__ import annotations

from dataclasses import dataclass

from huggingface_hub import constants, parse_hf_uri
from huggingface_hub.errors import HfUriError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from alpharl_hub.errors import SourceError
from alpharl_hub.sources.http_routes import check_address, host_of, origin_of
from alpharl_hub.sources.step_names import PLACEHOLDER

# The client's parser knows no placeholder. What stands in for it must not be in the text, and must
# be short: it allows a repo's name 96 characters, which long names with a number come close to.
_STAND_INS = ("7qz", "8zq", "88997766554433221100")

_PUBLIC_HUB = "https://huggingface.co"
_PUBLIC_HOSTS = frozenset({"huggingface.co", "hf.co"})


@dataclass(frozen=True)
class RepoPlace:
    """`revision` None means the default branch; `folder` is empty for the root of the repo."""

    repo: str
    revision: str | None
    folder: str

    def __str__(self) -> str:
        """Write it as it is typed."""
        revision = f"@{self.revision}" if self.revision else ""
        folder = f"/{self.folder}" if self.folder else ""
        return f"{self.repo}{revision}{folder}"


def parse_place(text: str) -> RepoPlace:
    """Parse [hf://]ORG/NAME[@REVISION][/FOLDER], or a browser's URL.

    Raises:
        SourceError: not of that form, not a model repo, a path with `..`, or on another Hub than
            the one in use.
    """
    if not text.strip():
        raise SourceError("an empty text names neither a folder nor a repo; is a variable unset?")
    if text.count(PLACEHOLDER) > 1:
        raise SourceError(f"{text}: {PLACEHOLDER} stands more than once; one number tells the step")
    is_url = text.lower().startswith(("https://", "http://"))
    if is_url:
        check_address(text, text)
    uri = text if "://" in text else f"hf://{text}"
    # The client knows the URLs of one Hub and of the public one; whose it is, is asked below.
    endpoint = _hub_of(text) if is_url else constants.ENDPOINT
    stand_in = next((one for one in _STAND_INS if one not in text), _STAND_INS[-1])

    def restore(part: str) -> str:
        return part.replace(stand_in, PLACEHOLDER)

    try:
        parsed = parse_hf_uri(uri.replace(PLACEHOLDER, stand_in), endpoint=endpoint)
        validate_repo_id(parsed.id)
    except (HfUriError, HFValidationError) as error:
        reason = restore(str(error).splitlines()[0].strip())
        raise SourceError(
            f"{text}: neither a folder here nor ORG/NAME[@REVISION][/FOLDER] on the Hub ({reason})"
        ) from error
    if parsed.type != "model":
        raise SourceError(f"{text}: a {parsed.type}; only model repos hold checkpoints")
    if PLACEHOLDER in restore(parsed.id).split("/")[0]:
        raise SourceError(
            f"{text}: with a repo for every step write ORG/NAME-{PLACEHOLDER}; the number stands "
            "in the repo's name, behind the organisation's"
        )
    if ".." in [*(parsed.revision or "").split("/"), *parsed.path_in_repo.split("/")]:
        raise SourceError(f"{text}: `..` has no place in the name of a repo")
    revision = restore(parsed.revision) if parsed.revision is not None else None
    place = RepoPlace(restore(parsed.id), revision, restore(parsed.path_in_repo).strip("/"))
    if is_url and not _is_in_use(endpoint):
        raise SourceError(
            f"{text}: on another Hub than the one in use ({constants.ENDPOINT}); write {place} to "
            f"read it there, or set HF_ENDPOINT={endpoint} if you trust that Hub"
        )
    return place


def _hub_of(url: str) -> str:
    """Return the Hub that a browser's URL names: the one in use where it is that, as it is set."""
    if _is_in_use(url):
        return constants.ENDPOINT
    if _is_public(url):
        return _PUBLIC_HUB
    return f"{url.partition('://')[0].lower()}://{host_of(url)}"


def _is_in_use(url: str) -> bool:
    """Whether a URL lies on the Hub in use; the public one has two names."""
    if _is_public(url) and _is_public(constants.ENDPOINT):
        return True
    return _host_and_port(url) == _host_and_port(constants.ENDPOINT)


def _is_public(url: str) -> bool:
    return (origin_of(url)[1] or "").lower() in _PUBLIC_HOSTS


def _host_and_port(url: str) -> tuple[str, int | None]:
    """Of http and https the usual ports are one: an address may be typed with either."""
    _, host, port = origin_of(url)
    return (host or "").lower(), None if port in (80, 443) else port
