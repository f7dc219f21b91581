"""The look of the evaluation's page, and its tables, marks and pictures as HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

from edge_app import learn_report

JPEG_QUALITY = 82

# Of the page about what was learnt, so that the two look alike, and what this one has more.
STYLE = (
    learn_report.STYLE
    + """
:root { --held: #6b7684; --amber: #fff3d6; --red: #fde3e3; }
@media (prefers-color-scheme: dark) {
  :root { --held: #9aa7b5; --amber: #46380f; --red: #4d2326; } }
.plots { display: grid; gap: .5rem 1.5rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
svg.plot { margin: 0; height: auto; max-width: 36rem; }
svg.plot * { stroke-linejoin: round; stroke-linecap: butt; }
svg.plot text { font-family: system-ui, sans-serif !important; }
.shown { display: grid; gap: .75rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr)); }
.views { display: grid; gap: 4px; grid-template-columns: 2fr 1fr; grid-template-rows: auto 1fr;
  margin-bottom: .4rem; }
figure .views img { width: 100%; max-height: 22rem; object-fit: contain; margin: 0; }
figure .views img:first-child { grid-row: span 2; }
td span { display: block; }
td bdi { display: inline-block; vertical-align: middle; max-width: 10rem; white-space: normal;
  overflow-wrap: break-word; }
td img { display: inline-block; vertical-align: middle; margin-right: .4rem; }
figure img.grid { image-rendering: pixelated; margin: 0; }
.mark { border-radius: 6px; padding: .5rem .75rem; max-width: 46rem; background: var(--card); }
.mark.red { background: var(--red); } .mark.amber { background: var(--amber); }
.mark.fine { background: var(--good); }
b.ng { color: var(--limit); }
details { margin: .75rem 0; } summary { cursor: pointer; }
details pre { max-height: 30rem; overflow: auto; max-width: none; }
@media print {
  :root { --ink: #000; --soft: #444; --page: #fff; --card: #f4f6f8; --line: #ccc; --dot: #0a66c2;
    --odd: #b35900; --limit: #b3202c; --good: #e3f2e6; --held: #6b7684; --amber: #fff3d6;
    --red: #fde3e3; }
  body { max-width: none; font-size: 11pt; print-color-adjust: exact; }
  h2, h3 { break-after: avoid; } figure, svg, tr, .mark { break-inside: avoid; }
  .shown { grid-template-columns: 1fr 1fr; } .wide table, .wide .soft { font-size: 8pt; }
  .wide, pre { overflow: visible; }
  pre { white-space: pre-wrap; max-height: none; } }
"""
)


def table(name: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """
    A table that scrolls by itself where the page is narrow; reached by keyboard too.

    Parameters
    ----------
    name : str
        For who cannot see it.
    head : sequence of str
        Text.
    rows : iterable of sequence of str
        Cells as HTML.
    """
    top = "".join(f"<th>{text(cell)}</th>" for cell in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for cells in rows
    )
    return (
        f'<div class="wide" role="region" aria-label="{name}" tabindex="0">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def image(pixels_bgr: np.ndarray, side: int, name: str, lossless: bool = False) -> str:
    """
    A picture inside the page.

    Parameters
    ----------
    pixels_bgr : ndarray of uint8, shape (height, width, 3 or 4)
        With a fourth channel, its opacity; only where `lossless`.
    side : int
        Pixels that its longer side has at most.
    name : str
    lossless : bool
        PNG with hard pixels instead of JPEG.
    """
    height, width = pixels_bgr.shape[:2]
    scale = min(1.0, side / max(height, width))
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    if scale < 1:
        pixels_bgr = cv2.resize(pixels_bgr, size, interpolation=cv2.INTER_AREA)
    kind, options = ("png", []) if lossless else ("jpeg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    suffix = ".png" if lossless else ".jpg"
    _, content = cv2.imencode(suffix, np.ascontiguousarray(pixels_bgr), options)
    encoded = base64.b64encode(content).decode("ascii")
    return (
        f'<img{" class=grid" if lossless else ""} src="data:image/{kind};base64,{encoded}" '
        f'width="{size[0]}" height="{size[1]}" alt="{text(name)}" title="{text(name)}">'
    )


def text(value: object) -> str:
    """Any value as text in which nothing is a tag; what is no Unicode as backslash escapes."""
    plain = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return html.escape(plain, quote=True)


def count(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it must be."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def mark(tone: str, sentence: str) -> str:
    """
    A sentence that stands out.

    Parameters
    ----------
    tone : {'red', 'amber', 'fine', ''}
    sentence : str
        Text.
    """
    return f'<p class="mark {tone}">{text(sentence)}</p>'
