"""The elements of a self-contained page: tables, figures, word differences, the style.

Arguments that are text are escaped here; arguments called *html* are inserted unchanged. Figures
are SVG inside the page. Their text stays text, and they have the page's light or dark colours.
"""

import difflib
import io
import re
from collections.abc import Iterable, Sequence
from html import escape

import matplotlib
from matplotlib.figure import Figure

from nvib_jax.plots.style import COLOURS, GRID, INK, MARKERS, MUTED, marker

_GLYPHS = dict(zip(MARKERS, "●■▲◆▼⬟✖", strict=True))
# (the CSS variable of a colour, the colour in light mode, the colour in dark mode)
_DARK = ("#4a9fd8", "#f08036", "#2bbd92", "#e09cc2", "#f0b53c", "#9bd6f6")
_THEME = [
    ("ink", INK, "#e6e8ea"),
    ("muted", MUTED, "#9aa1a8"),
    ("grid", GRID, "#34393e"),
    *((f"c{i}", c, d) for i, (c, d) in enumerate(zip(COLOURS, _DARK, strict=False))),
]


def page(title: str, header: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """A whole document.

    Args:
      title: text.
      header: html beneath the title.
      sections: (id, heading as text, html).
    """
    links = "".join(f'<li><a href="#{name}">{escape(h)}</a></li>' for name, h, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>{html}</section>\n'
        for name, heading, html in sections
    )
    light, dark = ("".join(f"--{name}:{pair[side]};" for name, *pair in _THEME) for side in (0, 1))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
:root{{color-scheme:light dark;--paper:#fff;--card:#f6f7f8;{light}}}
@media (prefers-color-scheme:dark){{:root{{--paper:#15181b;--card:#1d2125;{dark}}}}}
{_CSS}</style>
</head>
<body>
<header><h1>{escape(title)}</h1>{header}<nav aria-label="Sections"><ul>{links}</ul></nav></header>
<main>
{body}</main>
</body>
</html>
"""


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f'<p class="note">{escape(text)}</p>'


def small(text: str) -> str:
    """A second line in small type."""
    return f"<br><small>{escape(text)}</small>"


def missing(labels: Sequence[str], name: str = "evaluation.json") -> str:
    """A note that names the runs whose file lacks this part; empty if none does."""
    text = f"Not in the {name} of {', '.join(labels)}."
    return f'<p class="missing">{escape(text)}</p>' if labels else ""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """A table that scrolls sideways if the page is too narrow.

    Args:
      header: text of each column; after a line break it is small, for example a unit.
      rows: html of the cells; the first cell names the row.
      words: how many of the first columns are words; the others are numbers, aligned right.
    """
    kinds = [' class="text"' if i < words else "" for i in range(len(header))]
    head = "".join(
        f'<th scope="col"{kind}>{_heading(name)}</th>'
        for name, kind in zip(header, kinds, strict=True)
    )
    body = ""
    for first, *cells in rows:
        body += f'<tr><th scope="row">{first}</th>'
        body += "".join(f"<td{k}>{c}</td>" for k, c in zip(kinds[1:], cells, strict=True)) + "</tr>"
    return _scroll("numbers", f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>")


def comparison(name: str, text: str, lines: Iterable[tuple[str, str]]) -> str:
    """The outputs of several runs for one text.

    Args:
      name: the text's heading.
      text: the text.
      lines: (html of the run's label, html of its output).
    """
    head = f'<tr><th scope="row">{escape(name)}</th><td>{escape(text)}</td></tr>'
    body = "".join(f'<tr><th scope="row">{run}</th><td>{out}</td></tr>' for run, out in lines)
    return f'<table class="plain"><thead>{head}</thead><tbody>{body}</tbody></table>'


def heat_table(
    words: Sequence[str], groups: Iterable[tuple[str, Sequence[tuple[str, Sequence[float | None]]]]]
) -> str:
    """A number for each word, shown as the shade of a cell; each row has its own scale.

    Each word and the cells beneath it form a column, and columns wrap like text, so that a long
    sentence also fits on a narrow page. The first column names the rows.

    Args:
      words: column headings, text.
      groups: (heading as text, rows of (html of the label, a number for each word)).
    """
    names, columns = "<b></b>", [f"<b>{escape(word)}</b>" for word in words]
    for heading, rows in groups:
        names += f"<em>{escape(heading)}</em>"
        columns = [column + "<em></em>" for column in columns]
        for label, values in rows:
            peak = max(0.1, *(value or 0.0 for value in values))
            names += f"<span>{label}</span>"
            columns = [c + _shaded(v, peak) for c, v in zip(columns, values, strict=True)]
    shown = "".join(f'<div class="token">{column}</div>' for column in columns)
    return f'<div class="tokens"><div class="token names">{names}</div>{shown}</div>'


def card(title: str, items: Iterable[str], *, ordered: bool = False) -> str:
    """A list under a heading; both are html."""
    kind = "ol" if ordered else "ul"
    lines = "".join(f"<li>{item}</li>" for item in items)
    return f'<div class="card"><h4>{title}</h4><{kind}>{lines}</{kind}></div>'


def details(summary: str, html: str) -> str:
    """Html that is folded away under a summary until a reader opens it."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def key(labels: Sequence[str]) -> str:
    """The legend of all figures with these labels: colour, marker, name."""
    items = "".join(f"<li>{label_html(name, i)}</li>" for i, name in enumerate(labels))
    return f'<ul class="key" aria-label="Runs">{items}</ul>'


def label_html(name: str, index: int) -> str:
    """A run's marker in its colour, and its name."""
    shown = index % len(COLOURS)
    style = f"var(--c{shown})" if shown < len(_DARK) else "var(--ink)"
    glyph = _GLYPHS[marker(index)]
    mark = f'<span aria-hidden="true" style="color:{style}">{glyph}</span>'
    return f'<span class="label">{mark} {escape(name)}</span> '


def gallery(figures: Iterable[tuple[str, str, Figure]], *, beside: str = "") -> str:
    """Figures (see `figure_html`) next to each other if there is room, and html after them."""
    shown = "".join(figure_html(*each) for each in figures)
    return f'<div class="gallery">{shown}{beside}</div>'


def figure_html(name: str, caption: str, figure: Figure) -> str:
    """A figure as SVG in the page's colours.

    Args:
      name: the figure's id, unique in the page; letters, digits and hyphens.
      caption: text beneath it, also for screen readers.
      figure: drawn with `nvib_jax.plots.style`.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\g<1>{name}-", svg).replace(
        "xlink:href", "href"
    )
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2]
    opening = (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{float(width) * 4 / 3:.0f}px" '
        f'role="img" aria-label="{escape(caption)}">'
    )
    svg = re.sub(r"^<svg\b.*?>", lambda _: opening, svg, flags=re.S)
    for variable, colour, _ in _THEME:
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r"\n\s*", "\n", svg)
    return f'<figure id="{name}">{svg}<figcaption>{escape(caption)}</figcaption></figure>'


def difference(source: str, output: str, *, lost: bool = True) -> str:
    """The output as html, compared by words with the source: `<ins>` marks words that the source
    lacks, `<del>` words that the output lacks (only if `lost`).
    """
    a, b = source.split(), output.split()
    parts = []
    for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        old, new = (escape(" ".join(words)) for words in (a[a0:a1], b[b0:b1]))
        if kind == "equal":
            parts.append(new)
        else:
            parts += [f"<del>{old}</del>"] * bool(old and lost) + [f"<ins>{new}</ins>"] * bool(new)
    return " ".join(parts)


def _heading(name: str) -> str:
    first, *unit = name.split("\n", 1)
    return escape(first) + "".join(map(small, unit))


def _scroll(kind: str, html: str) -> str:
    return f'<div class="scroll" tabindex="0"><table class="{kind}">{html}</table></div>'


def _shaded(value: float | None, peak: float) -> str:
    share = (value or 0.0) / peak
    shown = "–" if value is None else "<.01" if 0 < value < 0.01 else f"{value:.2g}"
    return f'<span style="background:rgba(0,114,178,{0.65 * share:.2f})">{escape(shown)}</span>'


_CSS = """*{box-sizing:border-box}
body{margin:0 auto;padding:1.2rem;max-width:76rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.5rem;line-height:1.25;margin:.2rem 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 .6rem;padding-top:1rem;border-top:1px solid var(--grid)}
h3{font-size:1rem;margin:1.2rem 0 .4rem;overflow-wrap:anywhere}
section{margin:2rem 0}
a{color:inherit;text-underline-offset:.15em}
nav ul,.key{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;margin:.6rem 0;padding:0}
.key{font-size:.9rem}
.note,.missing,figcaption,small{color:var(--muted);font-size:.88rem}
.note,.missing{margin:.4rem 0;max-width:48rem}
.missing{font-style:italic}
small{font-weight:400;font-size:.8rem}
.scroll{position:relative;overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem .55rem;border-bottom:1px solid var(--grid);vertical-align:top;text-align:left}
thead th{vertical-align:bottom;line-height:1.25;border-bottom-color:var(--muted)}
tbody th{font-weight:500}
.numbers th:first-child{position:sticky;left:0;background:var(--paper);z-index:1}
.numbers td,.numbers th{white-space:nowrap;text-align:right}
.numbers th:first-child,.numbers .text{text-align:left}
.numbers tbody th:first-child{min-width:11rem;white-space:normal;overflow-wrap:anywhere}
.best{font-weight:700}
.best::after{content:"★";font-size:.7em;vertical-align:.2em;color:var(--c4);position:absolute}
.plain{width:100%;margin:0 0 1.2rem}
.plain th,.plain td{white-space:normal;overflow-wrap:anywhere;border-bottom-style:dotted}
.plain th{width:19rem}
.plain thead *{font-weight:600;vertical-align:top;border-bottom:1px solid var(--muted)}
.tokens{display:flex;flex-wrap:wrap;gap:.6rem .1rem;margin:.8rem 0 1.6rem;font-size:.88rem}
.token{display:flex;flex-direction:column;text-align:center;min-width:2.7rem}
.token>*{height:1.65rem;line-height:1.65rem;padding:0 .3rem;white-space:nowrap}
.token b{font-weight:600}
.token em{height:1.3rem;line-height:1.3rem;font-style:normal;font-size:.8rem;color:var(--muted)}
.token span{font-variant-numeric:tabular-nums}
.names{text-align:left;min-width:8rem}
.label{display:inline-block;margin-right:.6rem}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,22rem),1fr));gap:1rem}
figure{margin:0;min-width:0}
svg{display:block;width:100%;height:auto;overflow:visible}
svg *{stroke-linejoin:round;stroke-linecap:butt}
svg text{font-family:inherit!important}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,19rem),1fr));gap:.8rem}
.card{background:var(--card);border-radius:.4rem;padding:.6rem .8rem;font-size:.92rem}
.card h4{margin:0 0 .3rem;font-size:.9rem;font-weight:600;overflow-wrap:anywhere}
.card ul,.card ol{margin:0;padding-left:1.1rem;overflow-wrap:anywhere}
ins{text-decoration:none;background:rgba(230,159,0,.32);border-radius:.2em;padding:0 .15em}
del{color:var(--muted)}
.same{color:var(--c2)}
summary{cursor:pointer;margin:.6rem 0;color:var(--muted)}
@media (max-width:40rem){body{padding:.8rem}
h1{font-size:1.2rem}
.numbers tbody th:first-child{min-width:8rem;max-width:9rem;white-space:normal}
.plain th,.plain td{display:block;width:auto;padding:.2rem 0}.plain th{border:0;padding-bottom:0}
.names{min-width:6.5rem}.names .label{margin:0}}
"""
