"""How the page looks."""

CSS = """
:root { --ink: #1f2933; --soft: #66727f; --line: #e4e7eb; --paper: #fbfaf7; --card: #ffffff;
        --accent: #e4572e; --good: #2f7d4f; --bad: #b3261e; --note: #8a6d1a; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--ink);
       font: 15px/1.5 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
svg text { font-family: -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
} main, header > div { max-width: 1180px; margin: 0 auto; padding: 0 28px; }
header { background: var(--ink); color: #fff; padding: 26px 0 24px; }
header h1 { margin: 0 0 4px; font-size: 26px; letter-spacing: -0.01em; }
header p { margin: 0; color: #c7d0d9; }
nav { position: sticky; top: 0; z-index: 2; background: var(--paper); border-bottom: 1px solid var(--line); }
nav div { max-width: 1180px; margin: 0 auto; padding: 9px 28px; display: flex; gap: 18px; flex-wrap: wrap; }
nav a { color: var(--soft); text-decoration: none; font-size: 14px; }
nav a:hover { color: var(--accent); }
h2 { margin: 38px 0 4px; font-size: 21px; letter-spacing: -0.01em; }
h3 { margin: 28px 0 8px; font-size: 16px; }
p.lead { margin: 0 0 14px; color: var(--soft); }
.chip { display: inline-block; padding: 2px 11px; border-radius: 20px; font-size: 13px; font-weight: 600;
        color: #fff; vertical-align: 3px; margin-left: 10px; background: var(--good); }
.chip.bad { background: var(--bad); } .chip.note { background: var(--note); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(172px, 1fr)); gap: 12px; margin: 14px 0
6px; } .tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding:
12px 15px; } .tile b { display: block; font-size: 24px; letter-spacing: -0.02em; font-weight: 650;
white-space: nowrap; } .tile b small { font-size: 13px; color: var(--soft); font-weight: 400; letter-spacing:
0; } .tile span { display: block; font-size: 13px; color: var(--soft); line-height: 1.35; }
.card { margin: 0 0 14px; overflow-x: auto; }
.card svg { display: block; width: 100%; height: auto; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th { text-align: right; color: var(--soft); font-weight: 500; padding: 5px 10px; border-bottom: 1px solid
var(--line); } td { text-align: right; padding: 5px 10px; border-bottom: 1px solid #f1f2f4; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr:last-child td { border-bottom: 0; }
td.worse { color: var(--bad); font-weight: 600; } td.better { color: var(--good); font-weight: 600; }
td small { color: var(--soft); }
.moments { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 14px; }
.moment { margin: 0; } .moment figcaption { font-size: 13px; color: var(--soft); margin-bottom: 7px; }
.moment figcaption b { color: var(--ink); font-size: 14px; }
.moment .views { display: flex; gap: 6px; margin-bottom: 4px; }
.moment .views img { width: 50%; border-radius: 4px; display: block; }
ul.problems { margin: 6px 0; padding-left: 18px; } ul.problems li { margin: 3px 0; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--soft); }
pre { background: #f4f5f6; border-radius: 6px; padding: 13px 15px; overflow-x: auto; font-size: 12.5px;
line-height: 1.45; } footer { color: var(--soft); font-size: 13px; padding: 22px 0 46px; }
@media (max-width: 760px) { .pair { grid-template-columns: 1fr; } }
@media print { nav { display: none; } .card, .tile { break-inside: avoid; } }
"""
