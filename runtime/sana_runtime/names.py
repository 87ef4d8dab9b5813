"""Names that files of a bundle may have: the few that mean the same, and nothing else, on every system.

A name is at most one folder deep and made of ASCII letters, digits, dot, dash and underscore. That leaves out, without
naming each: absolute paths, drive letters, network shares, backslashes, `..`, hidden files, NUL, trailing dots and
spaces, alternate streams, letters that exist in two encodings. Windows' device names are left out by a list. The last
part of a name says what is inside; nothing that a program could execute is among them.
"""

from sana_runtime.rules import Text

__all__ = ["DATA", "FILE", "GRAPH", "LICENCE", "LICENCES"]

LICENCES = "LICENSES"

STEM = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"
# NUL.data and even con.tar.json are devices on Windows, wherever they lie.
NO_DEVICE = r"(?!(?:[cC][oO][nN]|[pP][rR][nN]|[aA][uU][xX]|[nN][uU][lL]|(?:[cC][oO][mM]|[lL][pP][tT])[0-9])(?:\.|$))"
NO_MANIFEST = r"(?![mM][aA][nN][iI][fF][eE][sS][tT]\.[jJ][sS][oO][nN]$)"

IN_ROOT = rf"{NO_DEVICE}{NO_MANIFEST}{STEM}\.(?:onnx|data|json|html|txt)"
IN_LICENCES = rf"{LICENCES}/{NO_DEVICE}(?:[A-Za-z0-9_-]{{1,100}}|{STEM}\.(?:txt|md|html))"

GRAPH = Text(rf"{NO_DEVICE}{STEM}\.onnx", "the name of a graph, such as decoder.onnx")
DATA = Text(rf"{NO_DEVICE}{STEM}\.data", "the name of a data file, such as decoder.data")
LICENCE = Text(IN_LICENCES, f"the name of a text in {LICENCES}/")
FILE = Text(
    rf"{IN_ROOT}|{IN_LICENCES}",
    f"a plain file name that ends in .onnx, .data, .json, .html or .txt, or a text in {LICENCES}/",
)
