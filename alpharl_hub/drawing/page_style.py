"""The dress of a page, light and dark, and the few lines that let its tables be sorted."""

from __future__ import annotations

from alpharl_hub.drawing.palette import (
    DARK,
    LIGHT,
    MISSING_SHADE,
    NUM_SHADES,
    STYLES,
    Theme,
    shade,
)

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;padding:1rem;max-width:74rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0 0}
h2{font-size:1.2rem;margin:2.2rem 0 .4rem;border-bottom:1px solid var(--grid);padding-bottom:.2rem}
p{margin:.3rem 0;max-width:48rem}
.note{color:var(--faint);font-size:.9rem}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,15rem),1fr));gap:.8rem;
margin:1rem 0}
.answers div{border:1px solid var(--grid);border-radius:.5rem;padding:.6rem .8rem}
.answers dt{color:var(--faint);font-size:.9rem}
.answers dd{margin:0;font-size:.9rem}
.answers strong{display:block;font-size:1.4rem;line-height:1.3}
.warnings{border-left:4px solid var(--s1);padding:.3rem .3rem .3rem 1.8rem;margin:1rem 0}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1rem}
.charts.small{grid-template-columns:repeat(auto-fill,minmax(min(100%,15rem),1fr))}
figure{margin:0}
figcaption{font-size:.9rem;font-weight:600;margin-bottom:.2rem}
svg.chart{display:block;width:100%;height:auto}
svg text{font-size:11px;fill:var(--ink)}
.tick-x,.tick-y{fill:var(--faint)}
.grid,.rim{fill:none;stroke:var(--grid);stroke-width:1}
.rim{stroke:var(--faint)}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
.mark{stroke-width:1.4;stroke-dasharray:none}
.hollow{fill:var(--paper)}
.band{stroke:none;opacity:.2}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0;margin:.6rem 0;
font-size:.9rem}
.swatch{vertical-align:middle;margin-right:.4rem;height:12px;overflow:visible}
.scale{display:flex;align-items:center;gap:.4rem;font-size:.85rem;flex-wrap:wrap}
.scale svg{height:12px;width:154px}
.wide{overflow-x:auto;max-height:36rem;border:1px solid var(--grid);border-radius:.3rem}
table{border-collapse:collapse;font-size:.85rem;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--faint);padding:.3rem .5rem}
th,td{padding:.25rem .5rem;text-align:right;white-space:nowrap;border-top:1px solid var(--grid)}
thead th{position:sticky;top:0;background:var(--paper);border-top:0}
th:first-child,td:first-child{text-align:left}
tbody th{font-weight:400;font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
thead button{font:inherit;font-weight:600;color:inherit;background:none;border:0;
padding:0;cursor:pointer;text-decoration:underline dotted}
[aria-sort=ascending] button::after{content:" \\2191"}
[aria-sort=descending] button::after{content:" \\2193"}
.spark{vertical-align:middle}
:focus-visible{outline:2px solid var(--s0);outline-offset:2px}
footer{margin-top:2.5rem;color:var(--faint);font-size:.85rem}
@media print{.wide{max-height:none;overflow:visible}}
"""

SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y, "en", {numeric: true}) : x - y;
        return up ? order : -order;
      });
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      table.tBodies[0].append(...rows);
    });
  });
}
"""
"""Without it, the tables are there all the same, in the order in which they were written."""


def style_sheet() -> str:
    """Return the page's style sheet."""
    light = _variables(LIGHT, [style.light for style in STYLES])
    dark = _variables(DARK, [style.dark for style in STYLES])
    return (
        f":root{{color-scheme:light dark;{light}}}\n"
        f"@media(prefers-color-scheme:dark){{:root{{{dark}}}}}\n"
        f"@media print{{:root{{{light}}}}}{_RULES}{_styles()}{_shades()}"
    )


def _variables(theme: Theme, colours: list[str]) -> str:
    named = {
        "paper": theme.paper,
        "ink": theme.ink,
        "faint": theme.faint_ink,
        "grid": theme.grid,
        "missing": MISSING_SHADE[theme],
        **{f"s{number}": colour for number, colour in enumerate(colours)},
    }
    return "".join(f"--{name}:{colour};" for name, colour in named.items())


def _styles() -> str:
    rules = []
    for number, style in enumerate(STYLES):
        colour = f"var(--s{number})"
        rules.append(f".s{number}{{stroke:{colour}}}")
        rules.append(f".mark.s{number}:not(.hollow),.band.s{number}{{fill:{colour}}}")
        if style.dash:
            lengths = " ".join(f"{1.8 * length:g}" for length in style.dash)
            rules.append(f".line.s{number}{{stroke-dasharray:{lengths}}}")
    return "\n".join(rules) + "\n"


def _shades() -> str:
    # The band along the edge shows where a cell ends that is as dark as the page.
    rules = [f".q{i}{{fill:{shade(i / (NUM_SHADES - 1))}}}" for i in range(NUM_SHADES)]
    missing = ".q-{fill:var(--missing);stroke:var(--faint);stroke-width:.5;stroke-dasharray:1 2}"
    edge = '[class^="q"]:not(.q-){stroke:var(--grid);stroke-width:.4}'
    return "\n".join([*rules, missing, edge]) + "\n"
