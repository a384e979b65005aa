"""Peft adapters as checkpoints: what adapter_config.json and the names in the file mean.

LoRA and DoRA are read; every other variant, and every name that is not understood, is refused.
The names are those that peft 0.21 writes, and of older versions that keep the adapter's own name.
https://github.com/huggingface/peft/blob/main/src/peft/utils/save_and_load.py
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeGuard

from alpharl_hub.errors import TrajectoryError
from alpharl_hub.strict_json import shown, shown_value
from alpharl_hub.trajectory import LowRankRef, StoredRef, TensorRef

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
BASE_COPY = ".base_layer.weight"
"""How a frozen weight that peft saves beside its LoRA ends (embeddings); no weight of the run."""

_PREFIX = "base_model.model."
_PART = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(?:\.(?!weight$|bias$)[^.]+)?(?P<end>\.weight|\.bias)?$"
)
_SAVED_WRAPPER = re.compile(r"\.modules_to_save\.[^.]+\.")
_MERGE = "merge it into its base first (peft: merge_and_unload)"

# Keys that a config may carry without any change to what B A means. A key that is not here, and is
# set, is refused: new variants of LoRA come as new keys.
_HARMLESS = frozenset(
    {
        *("alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config"),
        *("ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out"),
        *("inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform"),
        *("loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core"),
        *("modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r"),
        *("rank_pattern", "revision", "runtime_config", "target_modules", "task_type"),
        *("use_dora", "use_rslora"),
    }
)
_WRAPPERS = ("base_layer", "original_module", "modules_to_save", "token_adapter")
_ZERO_STARTS = ("gaussian", "eva", "mica")
_MOVED_BASES = ("pissa", "olora", "corda", "lora_ga")

# rank_pattern and alpha_pattern hold regular expressions, and one can be written that takes longer
# than anybody lives: https://docs.python.org/3/library/re.html has no limit of its own. What peft's
# users write (module paths, `.*q_proj`, `layers\.\d+\..*`) stays far below these.
_MAX_EXPRESSION_CHARS = 500
_MAX_REPEATS = 3
_MAX_MATCHING_STEPS = 1e10
_NOT_READ_IN_EXPRESSIONS = re.compile(r"\)[*+?{]|\(\?(?!:)|\\[1-9]|\[[^]]*(?:\[|--|&&|~~|\|\|)")
_MAX_NUMBER = 1e30


@dataclass(frozen=True)
class AdapterSettings:
    """What of an adapter_config.json decides the weights."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    use_rslora: bool
    use_dora: bool
    fan_in_fan_out: bool

    def rank_of(self, module: str) -> float:
        """Return the rank that the config gives a module."""
        return self.rank_pattern.get(_pattern_key(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """Return alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732)."""
        alpha = self.alpha_pattern.get(_pattern_key(self.alpha_pattern, module), self.alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def parse_settings(config: Mapping[str, object], where: str) -> AdapterSettings:
    """Read an adapter_config.json.

    Raises:
        TrajectoryError: not a LoRA or DoRA, or with something on that changes what it means.
    """
    peft_type = config.get("peft_type")
    if peft_type != "LORA":
        kind = shown_value(peft_type).strip("'")
        raise TrajectoryError(f"{where}: a {kind} adapter; only LoRA is read, {_MERGE}")
    for key, value in config.items():
        if value and key not in _HARMLESS:
            key = shown_value(key).strip("'")
            raise TrajectoryError(f"{where}: {key} is set, which is not read; {_MERGE}")
    _require_place(config.get("base_model_name_or_path"), where)
    start = config.get("init_lora_weights", True)
    if not (_is_zero_start(start) or _moves_base(start)):
        raise TrajectoryError(
            f"{where}: init_lora_weights is {shown_value(start)}, a start that is not zero on "
            f"weights that no repo holds; {_MERGE}"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    is_rank = isinstance(rank, int) and _is_number(rank) and rank >= 1
    if not is_rank or not _is_number(alpha) or alpha == 0:
        raise TrajectoryError(
            f"{where}: r is {shown_value(rank)} and lora_alpha {shown_value(alpha)}, which no LoRA "
            "has; mend it, or leave this step out with --steps"
        )
    assert isinstance(rank, int)
    return AdapterSettings(
        rank=rank,
        alpha=float(alpha),
        rank_pattern=_pattern(config, "rank_pattern", where),
        alpha_pattern=_pattern(config, "alpha_pattern", where),
        use_rslora=_flag(config, "use_rslora", where),
        use_dora=_flag(config, "use_dora", where),
        fan_in_fan_out=_flag(config, "fan_in_fan_out", where),
    )


def moves_base(config: Mapping[str, object]) -> bool:
    """Whether the run began with a product that is not zero and was taken out of the base.

    PiSSA, OLoRA, CorDA and LoRA-GA: W_0 is trained as (W_0 - s B_0 A_0) + s B A.
    """
    return _moves_base(config.get("init_lora_weights", True))


def _is_zero_start(start: object) -> bool:
    return start is None or start is True or start in _ZERO_STARTS


def _moves_base(start: object) -> bool:
    return isinstance(start, str) and start.lower().startswith(_MOVED_BASES)


def _is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number, also after a few multiplications."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _MAX_NUMBER


def _flag(config: Mapping[str, object], key: str, where: str) -> bool:
    """Read a switch; peft takes any value for on or off, and a wrong guess scales updates wrongly.

    Raises:
        TrajectoryError: neither true nor false.
    """
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise TrajectoryError(
            f"{where}: {key} is {shown_value(value)}, neither true nor false; mend it"
        )
    return value is True


def _require_place(named: object, where: str) -> None:
    """Refuse the name of a base that can be no folder and no repo; others ask the disk for it."""
    if not isinstance(named, str):
        return
    if not named.isprintable() or any(len(part.encode()) > 255 for part in named.split("/")):
        raise TrajectoryError(
            f"{where}: base_model_name_or_path is {shown(named)}, which names nothing; mend it"
        )


def _pattern(config: Mapping[str, object], key: str, where: str) -> dict[str, float]:
    found = config.get(key) or {}
    if not isinstance(found, dict) or not all(_is_number(value) for value in found.values()):
        raise TrajectoryError(f"{where}: {key} is no list of numbers by module; store it again")
    for expression in found:
        if (
            len(expression) > _MAX_EXPRESSION_CHARS
            or _NOT_READ_IN_EXPRESSIONS.search(expression)
            or _num_repeats(expression) > _MAX_REPEATS
        ):
            raise TrajectoryError(
                f"{where}: {key} has {shown(expression)}, an expression too intricate to be "
                f"matched in bounded time; write it plainly, or {_MERGE}"
            )
        try:
            re.compile(expression)  # alone first: "a)(b" would fit between our brackets
            _at_end(expression)
        except (re.error, OverflowError, RecursionError) as error:
            raise TrajectoryError(
                f"{where}: {key} has {shown(expression)} ({error}); mend it"
            ) from error
    return found


def _num_repeats(expression: str) -> int:
    return len(re.findall(r"[*+?{]", expression.replace("(?:", "(")))


@lru_cache(maxsize=4096)
def _at_end(expression: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({expression})$")


def _pattern_key(patterns: Iterable[str], module: str) -> str:
    """Return the first pattern that fits the end of a module's path, as peft chooses it."""
    for key in patterns:
        if _at_end(key).match(module):
            return key
    return module


def _check_effort(settings: AdapterSettings, modules: Collection[str], where: str) -> None:
    """Refuse expressions and modules that would take minutes to match.

    Every repeat may stop at any character, and the whole may begin behind any dot.
    """
    patterns = (*settings.rank_pattern, *settings.alpha_pattern)
    for num_repeats, count in Counter(map(_num_repeats, patterns)).items():
        power = max(1, num_repeats)
        steps = count * sum((1 + m.count(".")) * float(len(m)) ** power for m in modules)
        if steps > _MAX_MATCHING_STEPS:
            raise TrajectoryError(
                f"{where}: {len(patterns)} patterns for {len(modules)} modules take too long to "
                f"match; {_MERGE}"
            )


def adapter_tensors(
    refs: Iterable[TensorRef], settings: AdapterSettings, where: str
) -> dict[str, StoredRef]:
    """Turn the tensors of an adapter's file into those of the model that they stand for.

    Names are the model's own (its files may lack a prefix, see `fit_to_base`). A frozen copy of a
    base weight stays under its name with `.base_layer.`.

    Raises:
        TrajectoryError: a name that is not understood, half a pair, or a rank that is not the
            config's.
    """
    tensors: dict[str, StoredRef] = {}
    modules: dict[str, dict[str, TensorRef]] = {}
    for ref in refs:
        name = ref.name.removeprefix(_PREFIX)
        match = _PART.match(name)
        if match is None:
            _enter(tensors, _full_name(name, ref, where), ref, where)
            continue
        is_linear = match["part"] in ("lora_A", "lora_B")
        if match["end"] == ".bias" or (is_linear and match["end"] is None):
            raise TrajectoryError(f"{where}: {ref.name} is no part of LoRA that is read; {_MERGE}")
        parts = modules.setdefault(match["module"], {})
        if match["part"] in parts:
            raise TrajectoryError(
                f"{where}: {ref.name} and {parts[match['part']].name} are the same part; "
                "keep one adapter in the file"
            )
        parts[match["part"]] = ref
    _check_effort(settings, modules, where)
    for module, parts in modules.items():
        update = _low_rank(module, parts, settings, where)
        _enter(tensors, update.name, update, where)
    return tensors


def _enter(tensors: dict[str, StoredRef], name: str, ref: StoredRef, where: str) -> None:
    if name in tensors:
        raise TrajectoryError(f"{where}: {name} stands there twice; store it again")
    tensors[name] = ref


def _full_name(name: str, ref: TensorRef, where: str) -> str:
    """The model's name of a tensor that was saved whole."""
    name = _SAVED_WRAPPER.sub(".", name)
    if name.endswith(".base_layer.bias"):
        name = name.removesuffix(".base_layer.bias") + ".bias"
    components = name.removesuffix(BASE_COPY).split(".")
    if any(c.startswith("lora_") or c in _WRAPPERS for c in components):
        raise TrajectoryError(f"{where}: {ref.name} is not understood; {_MERGE}")
    return name


def _low_rank(
    module: str, parts: Mapping[str, TensorRef], settings: AdapterSettings, where: str
) -> LowRankRef:
    is_embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
    names = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A", "lora_B")
    wanted = {*names, *(("lora_magnitude_vector",) if settings.use_dora else ())}
    if set(parts) != wanted:
        odd = sorted(set(parts) ^ wanted)[0]
        raise TrajectoryError(
            f"{where}: {module} has {', '.join(sorted(parts))}, where {odd} is one too "
            f"{'many' if odd in parts else 'few'}; store it again, or {_MERGE}"
        )
    factor_a, factor_b = parts[names[0]], parts[names[1]]
    if len(factor_a.shape) != 2 or len(factor_b.shape) != 2 or 0 in factor_a.shape:
        raise TrajectoryError(
            f"{where}: {module} has factors of shape {list(factor_a.shape)} and "
            f"{list(factor_b.shape)}; only matrices are read (sharded weights must be gathered "
            "before they are saved)"
        )
    rank = factor_a.shape[0]
    if factor_b.shape[1] != rank or settings.rank_of(module) != rank:
        raise TrajectoryError(
            f"{where}: {module} has rank {rank} in A, {factor_b.shape[1]} in B and "
            f"{settings.rank_of(module)} in {ADAPTER_CONFIG}; these do not belong together"
        )
    straight = LowRankRef(
        name=f"{module}.weight",
        shape=(factor_b.shape[0], factor_a.shape[1]),
        left=factor_b,
        right=factor_a,
        scale=settings.scale_of(module, rank),
        magnitude=parts.get("lora_magnitude_vector"),
    )
    return transpose_ref(straight) if is_embedding or settings.fan_in_fan_out else straight


def transpose_ref(ref: LowRankRef) -> LowRankRef:
    """Return the same factors as the update of a weight that is stored the other way round."""
    return replace(
        ref,
        shape=ref.shape[::-1],
        left=ref.right,
        right=ref.left,
        transposed=not ref.transposed,
    )
