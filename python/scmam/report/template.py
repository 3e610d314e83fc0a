"""The page around the sections: its type, colours and layout.

No scripts, nothing fetched; light, dark and print.
"""

from string import Template

from .drawing import DARK, VARIABLES

LIGHT_ARMS = "; ".join(
    f"{variable}: {colour}"
    for colour, variable in VARIABLES.items()
    if variable.startswith("--arm")
)
DARK_ARMS = "; ".join(f"{VARIABLES[colour]}: {lighter}" for colour, lighter in DARK.items())

COLOURS = f"""
:root {{ color-scheme: light dark; --ink: #1c2127; --quiet: #5d6773; --rule: #d9dee4; --ground: #fefefe; --soft: #f4f6f8;
  --accent: #0b5c8a; --up: #0b6b4a; --down: #a33b00; {LIGHT_ARMS}; }}
@media screen and (prefers-color-scheme: dark) {{
  :root {{ --ink: #e4e8ec; --quiet: #9ba6b2; --rule: #38414a; --ground: #14181c; --soft: #1d2328;
    --accent: #6cb6e3; --up: #48c496; --down: #f0936a; {DARK_ARMS}; }}
}}
"""

TYPE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 74rem; padding: 2.6rem clamp(1rem, 4vw, 2.6rem) 4rem;
  color: var(--ink); background: var(--ground);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: clamp(1.55rem, 1.2rem + 1.6vw, 2.2rem); line-height: 1.15; letter-spacing: -.015em;
  margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.32rem; line-height: 1.25; letter-spacing: -.01em;
  margin: 3.2rem 0 .7rem; padding-top: 1.1rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.02rem; margin: 1.9rem 0 .5rem; }
p { margin: .5rem 0 .9rem; max-width: 46rem; }
a { color: var(--accent); text-decoration-thickness: 1px; text-underline-offset: .18em; }
code, pre { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .9em; }
pre { background: var(--soft); border-radius: .5rem; padding: .9rem 1.1rem; overflow-x: auto; font-size: .82rem; line-height: 1.5; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: 1.2rem 0 1rem; font-size: .9rem; }
summary { cursor: pointer; font-weight: 600; }
details { margin: .8rem 0; border-top: 1px solid var(--rule); padding-top: .55rem; }
footer { margin-top: 3rem; color: var(--quiet); font-size: .85rem; }
.lead { color: var(--quiet); margin: 0 0 1.2rem; }
section .lead { font-size: .9rem; line-height: 1.45; }
.verdict-line { font-size: clamp(1.12rem, 1rem + .7vw, 1.4rem); line-height: 1.35; max-width: 50rem;
  margin: 1.5rem 0 1.2rem; padding-left: 1rem; border-left: 4px solid var(--accent); }
"""

BOXES = """
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 14.5rem), 1fr)); gap: .9rem; margin: 1.2rem 0; }
.card { background: var(--soft); border-radius: .5rem; padding: .95rem 1.1rem 1rem; border-top: 3px solid var(--rule); }
.card.up { border-top-color: var(--up); }
.card.down { border-top-color: var(--down); }
.card h3 { margin: 0; font-size: .84rem; font-weight: 600; color: var(--quiet); }
.card b { display: block; font-size: 1.75rem; line-height: 1.25; letter-spacing: -.015em; font-variant-numeric: tabular-nums; }
.card p { margin: .15rem 0 0; font-size: .88rem; line-height: 1.4; color: var(--quiet); }
.card strong { color: var(--ink); }
.beside { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .6rem 2.4rem; align-items: start; }
.findings { padding-left: 1.15rem; margin: .2rem 0 1rem; }
.findings li { margin: 0 0 .55rem; }
.notes { margin: 1rem 0; padding: .7rem 1rem; max-width: 46rem; background: var(--soft);
  border-left: 4px solid var(--down); border-radius: 0 .4rem .4rem 0; }
.notes p { margin: 0 0 .3rem; font-weight: 600; }
.notes ul { margin: 0; padding-left: 1.1rem; overflow-wrap: anywhere; }
.read { background: var(--soft); border-radius: .5rem; padding: .9rem 1.2rem; }
.read h3 { margin: 0 0 .3rem; }
.read p { margin: .4rem 0; font-size: .93rem; line-height: 1.5; }
"""

TABLES = """
.scroll { overflow-x: auto; margin: 1rem 0 1.3rem; max-width: 100%; }
table { border-collapse: collapse; font-size: .91rem; font-variant-numeric: tabular-nums; }
.caption { font-weight: 600; margin: 1.3rem 0 .4rem; }
.caption + .scroll { margin-top: 0; }
th, td { padding: .42rem .8rem; text-align: right; vertical-align: top; line-height: 1.35; border-bottom: 1px solid var(--rule); }
th:first-child { padding-left: 0; position: sticky; left: 0; background: var(--ground); }
thead th { color: var(--quiet); font-weight: 600; vertical-align: bottom; border-bottom: 2px solid var(--rule); max-width: 11rem; }
tbody th { font-weight: 500; }
td { white-space: nowrap; }
th.w, td.w { text-align: left; white-space: normal; }
td ul { margin: 0; padding-left: 1rem; }
table small { display: block; color: var(--quiet); font-size: .8rem; white-space: nowrap; }
table b { font-weight: 600; }
.scores td { min-width: 6.5rem; }
.scores td:last-child { min-width: 0; }
table .verdict.up { color: var(--up); font-weight: 600; }
table .verdict.down { color: var(--down); font-weight: 600; }
.baseline { color: var(--quiet); }
.heat td { text-align: center; }
.heat td:nth-child(2) { text-align: right; color: var(--quiet); }
.heat tbody th { min-width: 9rem; }
.heat thead th { max-width: 6.5rem; }
.heat thead th:first-child { max-width: none; }
.heat thead .arm { white-space: normal; }
.heat thead th:nth-child(n+3) { text-align: center; }
.facts { width: 100%; max-width: 50rem; }
.facts thead { display: none; }
.facts tbody th { color: var(--quiet); white-space: nowrap; width: 9rem; }
.facts td { overflow-wrap: anywhere; }
.arm { white-space: nowrap; }
"""

FIGURES = """
figure { margin: 0; break-inside: avoid; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; font-variant-numeric: tabular-nums; }
svg * { stroke-linejoin: round; }
.wide figure { min-width: 46rem; }
.matrix { margin: 0; }
.matrix figure { min-width: 27rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, var(--panel)), 1fr));
  gap: 1.1rem 1.6rem; align-items: start; margin: 1rem 0; }
.swatch { display: inline-block; width: .72em; height: .72em; border-radius: .15em; margin-right: .42em; }
.swatch.round { border-radius: 50%; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; font-size: .91rem; max-width: none; }
.legend svg { display: inline-block; width: 1.9rem; height: .8rem; margin-right: .4rem; vertical-align: -.05rem; }
.classes { columns: 13rem auto; column-gap: 1.6rem; font-size: .88rem; padding-left: 1.9rem; margin: .8rem 0; }
.classes li { break-inside: avoid; }
.classes small { color: var(--quiet); }
"""

MEDIA = """
@media (max-width: 34rem) {
  body { padding-top: 1.5rem; }
  th, td { padding: .4rem .55rem; }
  h2 { margin-top: 2.4rem; }
  .scores td { min-width: 5.4rem; }
  .facts tbody th { width: auto; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; }
  h2 { break-after: avoid; }
  .card, .read, .notes, tr, figure { break-inside: avoid; }
  .scroll { overflow: visible; }
  .card, .heat td, .swatch, pre, .read, .notes { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  pre { white-space: pre-wrap; }
}
"""

PAGE = Template(
    f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="scmam">
<title>$title</title>
<style>{COLOURS}{TYPE}{BOXES}{TABLES}{FIGURES}{MEDIA}</style>
</head>
<body>
$body
</body>
</html>
"""
)
