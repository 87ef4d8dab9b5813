"""Pages of HTML that hold everything themselves: no script, nothing from elsewhere, every text escaped."""

from collections.abc import Iterable
from html import escape

__all__ = ["bar", "document", "listing", "table"]

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c1c1e; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
.good { color: #14713d } .bad { color: #a8201a } .quiet { color: #6b6b70 }
figure { margin: 1rem 0 } figure img { width: 31%; min-width: 8rem; margin-right: 1.5%; image-rendering: auto }
.bar { background: #3b6ea8; height: .7rem; display: inline-block; vertical-align: middle }
.float .bar { background: #b9852b }
svg { width: 100%; height: auto; font-size: 11px }
"""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, body: str, style: str = "") -> str:
    """The whole page around `body`, which is HTML already; `style` is added to the common one."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of plain texts."""
    return listing(head, ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows))


def listing(head: Iterable[str], rows: Iterable[str]) -> str:
    """A table whose rows are cells of HTML already."""
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    return f"<table><tr>{titles}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def bar(share: float) -> str:
    """A bar as long as `share` of the largest."""
    return f'<span class="bar" style="width:{6 * share:.2f}rem"></span> '
