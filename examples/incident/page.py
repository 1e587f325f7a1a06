"""The style of the report's page: light and dark, no assets."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root {
  --page: #f6f7f9; --card: #ffffff; --ink: #1a1d21; --quiet: #626a73; --line: #dfe3e8; --grid: #e8ebef;
  --series-1: #2a6fdb; --series-2: #c2570c; --series-3: #0f8a6a; --series-4: #8a4fd3;
  --good: #15803d; --bad: #c02626; --wait: #a16207; --good-bg: #dcf5e4; --bad-bg: #fbe3e3; --wait-bg: #fbf0d2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #101316; --card: #181c21; --ink: #e7eaee; --quiet: #98a1ab; --line: #2c333b; --grid: #262c33;
    --series-1: #6ea8ff; --series-2: #f59b53; --series-3: #4cc9a4; --series-4: #bf9bf5;
    --good: #6fd690; --bad: #f58a8a; --wait: #e5c15c; --good-bg: #16331f; --bad-bg: #3b1a1c; --wait-bg: #362c10;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 0 0 10px; }
h3 { font-size: 16px; margin: 18px 0 8px; }
h4 { font-size: 13px; margin: 0 0 4px; text-transform: uppercase; letter-spacing: 0.05em; color: var(--quiet); }
.kicker { margin: 0 0 4px; font-size: 12px; text-transform: uppercase; letter-spacing: 0.12em; color: var(--quiet); }
.quiet { color: var(--quiet); font-size: 13px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px;
  margin: 16px 0; }
section.decision { border-left: 5px solid var(--series-1); }
.verdict { font-size: 19px; font-weight: 650; margin: 0 0 6px; }
section.decision p:last-child { margin: 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tile span { display: block; }
.tile strong { font-size: 16px; }
figure { margin: 8px 0 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th { text-align: left; font-weight: 600; color: var(--quiet); font-size: 12px; padding: 6px 12px 6px 0;
  border-bottom: 1px solid var(--line); }
td { vertical-align: top; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--grid); overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
table.facts thead { display: none; }
table.facts td:first-child, table.timeline td:first-child, table.timeline td:nth-child(2) { color: var(--quiet); }
table.facts td:first-child { width: 150px; }
table.timeline td:first-child { width: 105px; font-variant-numeric: tabular-nums; }
table.timeline td:nth-child(2) { width: 225px; }
table.findings td:first-child { width: 46%; }
ul { margin: 4px 0; padding-left: 18px; }
ul.evidence { padding-left: 0; list-style: none; margin: 0; }
ul.evidence li { margin: 0 0 6px; }
.source { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 12.5px; }
.odds { font-variant-numeric: tabular-nums; font-weight: 600; }
pre, code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 13px; overflow-wrap: anywhere; }
pre { background: var(--page); border: 1px solid var(--line); border-radius: 8px; padding: 12px; overflow-x: auto;
  white-space: pre-wrap; }
.columns { display: grid; grid-template-columns: 1fr 1fr; gap: 22px; }
@media (max-width: 700px) { .columns { grid-template-columns: 1fr; } }
.hypothesis { border-top: 1px solid var(--line); padding: 14px 0 6px; }
.hypothesis:first-of-type { border-top: 0; padding-top: 0; }
.hypothesis h3 { margin-top: 0; }
.meter { height: 8px; border-radius: 4px; background: var(--grid); overflow: hidden; }
.meter span { display: block; height: 100%; background: var(--series-1); }
.badge { display: inline-block; border-radius: 999px; padding: 1px 9px; font-size: 12px; font-weight: 600;
  white-space: nowrap; background: var(--grid); color: var(--ink); vertical-align: 1px; }
.badge.validated, .badge.accepted, .badge.completed, .badge.yes, .badge.approved { background: var(--good-bg);
  color: var(--good); }
.badge.refuted, .badge.rejected, .badge.failed, .badge.no, .badge.dead { background: var(--bad-bg); color: var(--bad); }
.badge.abstain, .badge.awaiting_approval, .badge.cancelled { background: var(--wait-bg); color: var(--wait); }
details summary { cursor: pointer; }
details summary h2 { display: inline; }
footer { margin-top: 24px; text-align: center; }
svg.plot { width: 100%; height: auto; display: block; }
svg.plot text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
svg.plot text { fill: var(--quiet); }
svg.plot text.legend, svg.plot text.lane { fill: var(--ink); font-size: 12px; }
svg.plot .grid { stroke: var(--grid); stroke-width: 1; }
svg.plot .axis { stroke: var(--line); stroke-width: 1; }
svg.plot .line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg.plot .limit { fill: none; stroke: var(--quiet); stroke-width: 1.5; stroke-dasharray: 5 4; }
svg.plot .mark { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 2 3; }
svg.plot .mark.strong { stroke: var(--bad); stroke-dasharray: none; stroke-width: 1.5; }
svg.plot text.strong-label { fill: var(--bad); font-weight: 600; }
svg.plot .fill { opacity: 0.16; }
svg.plot .line.s1 { stroke: var(--series-1); } svg.plot .line.s2 { stroke: var(--series-2); }
svg.plot .line.s3 { stroke: var(--series-3); } svg.plot .line.s4 { stroke: var(--series-4); }
svg.plot .fill.s1, svg.plot .dot.s1 { fill: var(--series-1); }
svg.plot .fill.s2, svg.plot .dot.s2 { fill: var(--series-2); }
svg.plot .fill.s3, svg.plot .dot.s3 { fill: var(--series-3); }
svg.plot .fill.s4, svg.plot .dot.s4 { fill: var(--series-4); }
svg.plot .dot { stroke: var(--card); stroke-width: 1.5; }
svg.plot .bar.done { fill: var(--series-1); opacity: 0.28; }
svg.plot .bar.lost { fill: var(--bad); opacity: 0.4; }
svg.plot .bar.open { fill: var(--quiet); opacity: 0.3; }
@media print { body { background: #fff; } section, .tile { break-inside: avoid; } }
"""
