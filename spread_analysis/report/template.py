# Copyright Contributors to the pyro-spread project.
# SPDX-License-Identifier: Apache-2.0
"""The frame of the page and its style."""

from __future__ import annotations

from string import Template

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { --ink: #23272e; --soft: #5b6470; --line: #e3e6ea; --data: #1f5fa8; --page: #f5f6f8;
  --paper: #fff; --good: #2f8f5b; --bad: #b3261e; --alarm: #fdf0ee; --alarm-line: #efc9c4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e3e6ea; --soft: #a3adb8; --line: #353b44; --data: #7fb2ea; --page: #14171b;
    --paper: #1e2227; --good: #4cb37d; --bad: #e5695f; --alarm: #3a2321; --alarm-line: #6d3a35; }
  /* Plots are drawn on white: turned over, with their colours kept. Photographs stay. */
  .plot img { filter: invert(0.875) hue-rotate(180deg); }
  .photo img { background: #fff; border-radius: 6px; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 24px 80px; }
header h1 { margin: 0 0 4px; font-size: 30px; line-height: 1.2; overflow-wrap: anywhere; }
header p { margin: 0; color: var(--soft); }
nav { margin: 18px 0 8px; font-size: 14px; display: flex; flex-wrap: wrap; gap: 2px 16px; }
nav a { color: var(--data); text-decoration: none; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 22px 26px 24px; margin-top: 20px; }
h2 { margin: 0 0 6px; font-size: 20px; }
h3 { margin: 18px 0 2px; font-size: 16px; }
p { margin: 6px 0; max-width: 72ch; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 18px; }
.card { flex: 1 1 170px; background: var(--paper); border: 1px solid var(--line);
  border-radius: 10px; padding: 12px 16px; }
.card b { display: block; font-size: 25px; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13.5px; line-height: 1.35; display: block; }
.good { border-left: 4px solid var(--good); } .bad { border-left: 4px solid var(--bad); }
.bad b { color: var(--bad); }
.row { display: flex; flex-wrap: wrap; gap: 18px; align-items: flex-start; margin-top: 10px; }
figure { margin: 0; flex: 1 1 340px; min-width: 0; }
.small figure { flex: 0 1 calc(50% - 9px); }
figure img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption, .read { color: var(--soft); font-size: 14px; }
.read { border-left: 3px solid var(--line); padding-left: 12px; margin-top: 12px; }
table { border-collapse: collapse; width: 100%; margin-top: 10px; font-size: 15px; }
th, td { text-align: left; padding: 7px 12px 7px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
section > table th { width: 13em; }
th { font-weight: 600; color: var(--soft); font-size: 13.5px; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.note { color: var(--soft); font-size: 14px; }
.missing { color: var(--soft); font-style: italic; }
.alarm { background: var(--alarm); border: 1px solid var(--alarm-line); border-radius: 8px;
  padding: 10px 14px; margin: 10px 0; overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: 13px; margin-top: 24px; }
</style>
</head>
<body>
<main>
<header><h1>$title</h1><p>$subtitle</p></header>
<nav>$links</nav>
<div class="cards">$cards</div>
$sections
<footer>Written by pyro-spread on $date. This page is complete in itself: it loads nothing.</footer>
</main>
</body>
</html>
""")
