"""A report as rows in long form, one per matrix and step: for pandas, and for CSV."""

from __future__ import annotations

from collections.abc import Iterator

from alpharl_hub.module_names import layer_and_group
from alpharl_hub.results import ModuleSpectrum, SpectralReport

Value = str | int | float | None

COLUMNS = (
    *("name", "layer", "module", "num_rows", "num_columns", "step", "score"),
    *("sigma", "frobenius", "rank1_share", "drift_deg", "stable_rank"),
    *("q2_step", "q2_score", "r2_step_in_sample"),
)
"""The keys of every record; sigma_2 and further follow where they were asked for."""


def records(report: SpectralReport) -> list[dict[str, Value]]:
    """Return one dictionary per matrix and step, all with the same keys: pandas.DataFrame takes it.

    `drift_deg` is the angle to the last step's direction. `q2_*`, `r2_step_in_sample` and
    `stable_rank` speak of the matrix as a whole and are the same in all of its rows; `sigma_2` and
    further, where they were asked for, are known at the last step only. Unknown is None.
    """
    num_values = max((len(module.singular_values) for module in report.modules), default=1)
    return [row for module in report.modules for row in _rows(report, module, num_values)]


def _rows(
    report: SpectralReport, module: ModuleSpectrum, num_values: int
) -> Iterator[dict[str, Value]]:
    layer, group = layer_and_group(module.name)
    for t, step in enumerate(report.steps):
        known = module.singular_values if t == len(report.steps) - 1 else ()
        values: tuple[Value, ...] = (
            *(module.name, layer, group, module.shape[0], module.shape[-1], step),
            report.score_line.scores[t] if report.score_line else None,
            *(module.sigma[t], module.frobenius[t], module.rank1_share[t], module.drift[t]),
            *(module.stable_rank, module.q2_step, module.q2_score, module.r2_step_in_sample),
        )
        further = range(2, num_values + 1)
        yield {
            **dict(zip(COLUMNS, values, strict=True)),
            **{f"sigma_{k}": known[k - 1] if k <= len(known) else None for k in further},
        }
