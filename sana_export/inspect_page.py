"""What is in a bundle as one page of HTML: parts and sizes, a map of precisions, every layer and every file."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath
from typing import Any

from sana_export.html_page import bar, document, listing, table
from sana_export.layers import INTEGER_PRODUCT, WIDENED

__all__ = ["inspection_page"]

SMALLEST = 1024  # bytes; layers with less are counted, not listed
NUMBER = r"(?<=[._])\d+(?=\.|$)"  # of a block, in a layer's name
STYLE = """
body { max-width: 76rem } .bar { margin-right: .3rem } td:has(.bar) { white-space: nowrap }
.map td { padding: .1rem .7rem .1rem 0 } .map td:first-child { width: 18rem }
.cell { display: inline-block; min-width: 1.7rem; padding: 0 .2rem; margin: 1px; border-radius: 3px; text-align: center;
  font-size: .72rem; color: #fff; background: #6b6b70 }
.fp32 { background: #8a5a00 } .bf16 { background: #2f5f96 } .fp16 { background: #5b4a9c } .int8 { background: #14713d }
.fp8 { background: #0f6b70 } .int4 { background: #7a2e6b } .widened { opacity: .8; outline: 1px dashed #1c1c1e }
code { font-size: .8rem; overflow-wrap: anywhere }
"""

Described = Mapping[str, Any]


def inspection_page(described: Described) -> str:
    """The page for what `sana_export.inspect.describe` tells."""
    title = f"{described['model']}, {described['precision']}, {_megabytes(described['bytes'])}"
    parts = described["parts"]
    body = "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            _about(described),
            _parts(parts),
            _maps(parts),
            "<h2>Layers</h2>",
            *(_layers(name, part) for name, part in parts.items()),
            _files(described["files"]),
        ]
    )
    return document(title, body, STYLE)


def _about(described: Described) -> str:
    rows = [
        ("bundle", PurePath(described["bundle"]).name),
        ("digest", described["digest"]),
        ("usual picture", "{size}, {solver}, {steps} steps, guidance {guidance}".format(**described["defaults"])),
        ("golden pictures", ", ".join(f"at least {least:g} dB" for least in described["golden"]) or "none"),
        ("licences", ", ".join(sorted({part["licence"] for part in described["parts"].values()}))),
    ]
    waived = "; ".join(described["waived"])
    warning = f'<p class="bad">Published in spite of the quality gate: {escape(waived)}.</p>' if waived else ""
    return warning + table(("", ""), rows)


def _parts(parts: Mapping[str, Described]) -> str:
    largest = max((part["bytes"] for part in parts.values()), default=1)
    head = ("part", "precision", "scheme", "size", "nodes", "most frequent operators")
    rows = (
        _cells(name, part["precision"], part["scheme"])
        + f"<td>{bar(part['bytes'] / largest)}{_megabytes(part['bytes'])}</td>"
        + _cells(str(part["nodes"]), ", ".join(f"{name} {count}" for name, count in [*part["operators"].items()][:4]))
        for name, part in parts.items()
    )
    return f"<h2>Parts</h2>{listing(head, rows)}"


def _maps(parts: Mapping[str, Described]) -> str:
    """One cell for each layer, layers that differ by their numbers alone in one row."""
    used = dict.fromkeys(layer["stored"] for part in parts.values() for layer in _listed(part))
    legend = " ".join(f'<span class="cell {kind}">{escape(kind)}</span>' for kind in map(_class, used))
    maps = "".join(f'<h3>{escape(name)}</h3><div class="map">{_map(part)}</div>' for name, part in parts.items())
    return (
        f"<h2>Precision map</h2><p>{legend}</p><p class=quiet>The type of every layer's weights; dashed: widened where "
        f"they are read. Rounded tokens meet rounded weights where the list below says “{INTEGER_PRODUCT}”.</p>{maps}"
    )


def _map(part: Described) -> str:
    kinds: dict[str, list[Described]] = {}
    for layer in _listed(part):
        kinds.setdefault(re.sub(NUMBER, "*", layer["name"]), []).append(layer)
    rows = (f"{_cells(kind)}<td>{''.join(map(_cell, held))}</td>" for kind, held in kinds.items())
    return listing(("layer", "by number"), rows)


def _cell(layer: Described) -> str:
    kind = _class(layer["stored"]) + (" widened" if layer["read"] == WIDENED else "")
    label = re.sub(r"\D", "", layer["stored"]) or "?"  # bits, for those who do not tell the colours apart
    return f'<span class="cell {kind}" title="{escape(layer["name"])}: {escape(layer["stored"])}">{label}</span>'


def _class(stored: str) -> str:
    return stored if stored.isalnum() else "other"


def _layers(name: str, part: Described) -> str:
    listed = _listed(part)
    largest = max((layer["bytes"] for layer in listed), default=1)
    head = ("layer", "operator", "weights", "stored as", "read", "size", "stays float because")
    rows = (
        _cells(layer["name"], layer["operator"], " x ".join(map(str, layer["shape"])), layer["stored"], layer["read"])
        + f"<td>{bar(layer['bytes'] / largest)}{_size(layer['bytes'])}</td>"
        + _cells(part["kept_float"].get(layer["name"], ""))
        for layer in listed
    )
    rest = [layer["bytes"] for layer in part["layers"] if layer["bytes"] < SMALLEST]
    told = f"<p class=quiet>And {len(rest)} of less than 1 kB, {_size(sum(rest))} in all.</p>" if rest else ""
    return (
        f"<details><summary>{len(listed)} layers of {escape(name)}, {_size(sum(layer['bytes'] for layer in listed))}"
        f"</summary>{listing(head, rows)}{told}</details>"
    )


def _files(files: Mapping[str, Described]) -> str:
    rows = (
        f"{_cells(name, _size(entry['size']))}<td><code>{escape(entry['sha256'])}</code></td>"
        for name, entry in files.items()
    )
    return f"<h2>Files</h2>{listing(('file', 'size', 'sha256'), rows)}"


def _listed(part: Described) -> Sequence[Described]:
    return [layer for layer in part["layers"] if layer["bytes"] >= SMALLEST]


def _cells(*texts: str) -> str:
    return "".join(f"<td>{escape(text)}</td>" for text in texts)


def _size(count: int) -> str:
    return _megabytes(count) if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
