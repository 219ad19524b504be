"""The report's page: style sheet, tables and embedded pictures. It loads no other files."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

import cv2

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --ink: #1d2126; --soft: #626b76;
  --rule: #dcdfe3; --card: #ffffff; --accent: #0a6b52; --warn: #9a4a00;
  --hit: 0, 114, 178; --miss: 213, 94, 0;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b5538b;
  --c4: #b98500; --c5: #3aa0dd; --c6: #5b4bb5; --c7: #7a7a7a; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e3e6ea; --soft: #98a2ae;
  --rule: #30363e; --card: #1b1f25; --accent: #4fc9a4; --warn: #f0a35e;
  --hit: 60, 150, 220; --miss: 235, 115, 40;
  --c0: #56a8e8; --c1: #f0824a; --c2: #35c79b; --c3: #dd8fbd;
  --c4: #e6b83c; --c5: #8ccbf2; --c6: #a196ee; --c7: #a5a5a5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 36px 28px 64px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 10px; padding-top: 14px; border-top: 1px solid var(--rule); }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { margin: 6px 0; max-width: 80ch; } p.lead { font-size: 17px; }
.note, figcaption, small { color: var(--soft); } .note { font-size: 14px; }
.missing { border-left: 3px solid var(--warn); padding: 2px 0 2px 14px; margin: 18px 0; }
.missing ul { margin: 2px 0; padding-left: 18px; font-size: 14px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px;
  margin: 20px 0 0; padding: 0; }
.facts div { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 10px 14px; min-width: 0; }
.facts dt { color: var(--soft); font-size: 13px; }
.facts dd { margin: 0; font-size: 18px; font-weight: 600; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
.facts dd small { font-weight: 400; font-size: 13px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 5px 14px 5px 0; text-align: right; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
table.text td, table.text th { text-align: left; overflow-wrap: anywhere; }
table.text td:first-child { white-space: nowrap; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; }
tbody th { font-weight: 500; } td.best { color: var(--accent); font-weight: 700; }
tr.headline td, tr.headline th { font-weight: 700; }
.scroll { overflow-x: auto; } .columns { display: flex; flex-wrap: wrap; gap: 0 56px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 16px; }
figure { margin: 0; }
.chart { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 10px 12px; }
.chart figcaption { color: var(--ink); font-weight: 600; font-size: 14px; }
.chart figcaption small { font-weight: 400; margin-left: 6px; }
.chart svg { display: block; width: 100%; height: auto; }
.chart svg text { fill: var(--soft); font-size: 11px; }
.chart svg text.y { text-anchor: end; } .chart svg text.x { text-anchor: middle; }
.chart svg line { stroke: var(--rule); stroke-width: 1; }
.chart svg path { fill: none; stroke: currentColor; stroke-width: 1.8; stroke-linejoin: round; }
.chart svg path.pale { stroke-width: 1; opacity: .32; }
.chart svg path.dashed { stroke-dasharray: 5 4; } .chart svg circle { fill: currentColor; }
.legend { font-size: 13px; color: var(--soft); display: flex; flex-wrap: wrap; gap: 0 14px; }
.legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.legend i { display: inline-block; width: 18px; margin-right: 5px; vertical-align: middle;
  border-top: 3px solid currentColor; } .legend i.dashed { border-top-style: dashed; }
.s0 { color: var(--c0); } .s1 { color: var(--c1); } .s2 { color: var(--c2); }
.s3 { color: var(--c3); } .s4 { color: var(--c4); } .s5 { color: var(--c5); }
.s6 { color: var(--c6); } .s7 { color: var(--c7); }
.confusion { margin: 6px 0; font-size: 13px; }
.confusion td, .confusion th { border: 1px solid var(--page); padding: 4px 8px;
  text-align: center; min-width: 46px; }
.confusion th { color: var(--ink); } .confusion tbody th { text-align: right; }
.confusion td.corner { color: var(--soft); font-size: 12px; }
.confusion td.hit { background: rgba(var(--hit), var(--a)); }
.confusion td.miss { background: rgba(var(--miss), var(--a)); }
.confusion td.strong { color: #fff; }
.example { margin: 14px 0; } .example img { display: block; width: 100%; border-radius: 4px; }
.example figcaption { font-size: 14px; margin-bottom: 4px; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 12px 14px; font-size: 13px; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: 10px 0; } summary { cursor: pointer; font-weight: 600; }
details table { margin-top: 8px; }
"""

# Widths in pixels and JPEG qualities, tried in order until the file is small enough.
_ENCODINGS = ((1600, 88), (1400, 82), (1200, 76), (1000, 70), (800, 60))


def page(title: str, body: str) -> str:
    """Returns an HTML document."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Returns a section with a heading, or an empty string without parts."""
    content = "\n".join(filter(None, parts))
    return f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" if content else ""


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    style: str = "",
    best: Sequence[int | None] = (),
    headline: int | None = None,
) -> str:
    """Returns a table; all its texts are escaped here.

    Args:
        head: the columns' names.
        rows: the rows, each with a text per column.
        style: CSS class; "text" aligns all columns to the left.
        best: for each row, the column to mark, or None.
        headline: the row to mark, or None.
    """
    lines = []
    for index, row in enumerate(rows):
        marked = best[index] if best else None
        cells = "".join(
            f"<td{' class=best' * (column == marked)}>{escape(text)}</td>"
            for column, text in enumerate(row)
        )
        lines.append(f"<tr{' class=headline' * (index == headline)}>{cells}</tr>")
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll"><table class="{style}"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def picture(path: Path, caption: str, *, max_bytes: int) -> str:
    """Returns a figure that embeds a picture: the file itself if small enough, else a JPEG.

    A missing or unreadable picture is replaced by a note with its name.
    """
    source = _encoded(path, max_bytes)
    content = f'<img alt="{escape(caption)}" src="data:{source}">' if source else ""
    if not content:
        content = f'<p class="note">The picture {escape(path.name)} is missing or unreadable.</p>'
    return f'<figure class="example"><figcaption>{escape(caption)}</figcaption>{content}</figure>'


def _encoded(path: Path, max_bytes: int) -> str | None:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if image is None:
        return None
    content, kind = path.read_bytes(), "png"
    for width, quality in _ENCODINGS:
        if len(content) <= max_bytes:
            break
        scale = min(1.0, width / image.shape[1])
        size = [max(1, round(scale * side)) for side in image.shape[1::-1]]
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        # Keep the full colour resolution, because outlines are one pixel wide.
        options = [
            cv2.IMWRITE_JPEG_QUALITY,
            quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ]
        content, kind = cv2.imencode(".jpg", small, options)[1].tobytes(), "jpeg"
    return f"image/{kind};base64,{base64.b64encode(content).decode()}"
