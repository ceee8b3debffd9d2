"""The report's frame and looks, on a screen and on paper: system fonts, light, nothing that has to be fetched."""

PART_COLORS = (
    "#2563eb",
    "#0891b2",
    "#059669",
    "#d97706",
    "#7c3aed",
    "#e11d48",
)  # of the time's parts

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>{css}</style></head>
<body><main>
{body}
</main></body></html>
"""

CSS = """
:root { color-scheme: light; --ink: #0f172a; --soft: #64748b; --line: #e2e8f0; --ground: #f8fafc; }
* { box-sizing: border-box; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1020px; margin: 0 auto; padding: 32px 20px 48px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 12px; }
h3 { font-size: 15px; margin: 18px 0 8px; }
small { font-size: 12.5px; font-weight: 400; color: var(--soft); }
pre, code { font: 12.5px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
img { display: block; width: 100%; height: auto; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px 20px;
  margin-top: 18px; box-shadow: 0 1px 2px rgb(15 23 42 / 5%); }
.kicker, .label { margin: 0 0 4px; color: var(--soft); font-size: 12px; letter-spacing: .06em;
  text-transform: uppercase; }
.when { margin: 0; color: #334155; font-variant-numeric: tabular-nums; }
.about { margin: 14px 0; color: #334155; font-size: 13.5px; overflow-wrap: anywhere; }
.command { background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; }
.missing { color: var(--soft); font-style: italic; margin: 4px 0; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: repeat(4, 1fr); gap: 10px; margin: 18px 0 0; }
dl div { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px 12px; }
dt { color: var(--soft); font-size: 12.5px; }
dd { margin: 0; font-size: 19px; font-weight: 600; font-variant-numeric: tabular-nums; }
.badge { display: inline-block; padding: 1px 9px; border-radius: 999px; font-size: 12.5px; font-weight: 600;
  white-space: nowrap; }
.good { background: #dcfce7; color: #166534; }
.calm { background: #e0f2fe; color: #075985; }
.warn { background: #fef3c7; color: #92400e; }
.bad { background: #fee2e2; color: #991b1b; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; border-bottom: 1px solid #cbd5e1; padding: 4px 9px 4px 0; }
td { vertical-align: top; border-bottom: 1px solid var(--line); padding: 5px 10px 5px 0; overflow-wrap: anywhere; }
.events td:first-child { width: 12em; white-space: nowrap; color: var(--soft); }
.events td:nth-child(2) { width: 7em; }
.time { width: auto; min-width: 340px; }
.time th:nth-child(n+2), .time td:nth-child(n+2) { text-align: right; padding-left: 24px; }
.time tbody tr:last-child td { font-weight: 600; border-bottom: 0; }
.time i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 8px; }
.bar { display: flex; height: 22px; border-radius: 6px; overflow: hidden; background: var(--line);
  margin-bottom: 12px; }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(290px, 1fr)); gap: 10px; }
figure { margin: 0; background: var(--ground); border: 1px solid var(--line); border-radius: 8px;
  padding: 8px 12px 10px; }
figcaption { color: var(--soft); font-size: 12.5px; margin-bottom: 4px; font-variant-numeric: tabular-nums; }
figure b { color: #2563eb; font-weight: 600; }
.config { columns: 3; column-gap: 28px; }
@media (max-width: 720px) { dl { grid-template-columns: repeat(2, 1fr); } .config { columns: 1; } }
@media print {
  @page { margin: 14mm; }
  body { background: #fff; font-size: 10pt; }
  main { max-width: none; padding: 0; }
  section { border: 0; border-radius: 0; box-shadow: none; padding: 0; margin-top: 16pt; }
  h2, h3 { break-after: avoid; }
  img, figure, tr, dl div, .bar, .command { break-inside: avoid; }
  dd { font-size: 13pt; }
  dt { font-size: 8.5pt; }
  thead { display: table-header-group; }
  figure pre, .config { font-size: 7.5pt; }
  .samples { grid-template-columns: repeat(3, 1fr); }
}
"""
