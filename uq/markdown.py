"""The part of Markdown that reports use, rendered to HTML without further packages."""

import html
import re

__all__ = ["inline_html", "to_html"]

_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
_BOLD = re.compile(r"\*\*(\S(?:.*?\S)?)\*\*")
_ITALIC = re.compile(r"(?<![\w*])\*(\S(?:[^*]*?\S)?)\*(?![\w*])")
_BULLET = re.compile(r"\s*[-*] +")
_NUMBER = re.compile(r"\s*\d+[.)] +")
_FENCE = re.compile(r"```.*")


def inline_html(text: str) -> str:
    """Render code, links, bold and italics of one line; everything else is escaped.

    Args:
        text: One line of Markdown.

    Returns:
        HTML.

    Example:
        >>> inline_html("**5 %** of `a<b`")
        '<strong>5 %</strong> of <code>a&lt;b</code>'
    """
    parts = _CODE.split(html.escape(text, quote=False))
    # Odd parts are code: their stars and brackets are to be shown, not read.
    return "".join(f"<code>{part}</code>" if i % 2 else _emphasis(part) for i, part in enumerate(parts))


def to_html(text: str) -> str:
    r"""Render paragraphs, bullet and numbered lists, and fenced code blocks.

    Args:
        text: Markdown; blocks are separated by empty lines. Headings, images and tables are not read.

    Returns:
        HTML, one block per line group.

    Example:
        >>> print(to_html("Costs:\n\n- offline\n- per *sample*"))
        <p>Costs:</p>
        <ul><li>offline</li><li>per <em>sample</em></li></ul>
    """
    blocks: list[str] = []
    fenced = False
    lines: list[str] = []
    for line in [*text.strip().splitlines(), ""]:
        if _FENCE.fullmatch(line.strip()):
            blocks.append(_code_block(lines) if fenced else _block(lines))
            fenced, lines = not fenced, []
        elif line.strip() or fenced:
            lines.append(line)
        else:
            blocks.append(_block(lines))
            lines = []
    blocks.append(_code_block(lines) if fenced else _block(lines))
    return "\n".join(block for block in blocks if block)


def _emphasis(text: str) -> str:
    """Links, bold and italics of escaped text without code."""
    text = _LINK.sub(lambda m: f'<a href="{m[2].replace(chr(34), "%22")}">{m[1]}</a>', text)
    return _ITALIC.sub(r"<em>\1</em>", _BOLD.sub(r"<strong>\1</strong>", text))


def _code_block(lines: list[str]) -> str:
    """A fenced block, verbatim."""
    return f"<pre><code>{html.escape(chr(10).join(lines), quote=False)}</code></pre>" if lines else ""


def _block(lines: list[str]) -> str:
    """A paragraph, possibly followed by a list whose items may run over several lines."""
    first = next(
        (i for i, line in enumerate(lines) if _BULLET.match(line) or _NUMBER.match(line)), len(lines)
    )
    result = f"<p>{inline_html(' '.join(line.strip() for line in lines[:first]))}</p>" if first else ""
    if first == len(lines):
        return result
    marker, tag = (_BULLET, "ul") if _BULLET.match(lines[first]) else (_NUMBER, "ol")
    items: list[str] = []
    for line in lines[first:]:
        if marker.match(line):
            items.append(marker.sub("", line, count=1).strip())
        else:
            items[-1] += " " + line.strip()
    return f"{result}<{tag}>{''.join(f'<li>{inline_html(item)}</li>' for item in items)}</{tag}>"
