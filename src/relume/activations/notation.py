"""Formulas of the catalogue, which are written in TeX, as readable text and as MathML.

One small parser knows the part of TeX that the catalogue uses, and two writers share its tree. What it does not know is
an error, and a test holds every row to that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape

from relume.errors import ActivationError

# --- what the letters of TeX are -------------------------------------------------------------------------------------

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε", "zeta": "ζ", "eta": "η",
    "theta": "θ", "kappa": "κ", "lambda": "λ", "mu": "μ", "nu": "ν", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ",
    "tau": "τ", "phi": "φ", "varphi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω",
    "Gamma": "Γ", "Delta": "Δ", "Theta": "Θ", "Lambda": "Λ", "Sigma": "Σ", "Phi": "Φ", "Psi": "Ψ", "Omega": "Ω",
}  # fmt: skip
_FUNCTIONS = frozenset(
    {"max", "min", "exp", "ln", "log", "sinh", "cosh", "tanh", "coth", "sech", "sin", "cos", "tan", "sgn"}
    | {"arcsin", "arccos", "arctan", "arctanh"}
)
# Signs that stand between two things, with what they become where the output can only hold ASCII.
_BINARY = {
    "+": ("+", "+"), "-": ("−", "-"), "=": ("=", "="), "<": ("<", "<"), ">": (">", ">"),
    "le": ("≤", "<="), "leq": ("≤", "<="), "ge": ("≥", ">="), "geq": ("≥", ">="), "lt": ("<", "<"), "gt": (">", ">"),
    "ne": ("≠", "!="), "neq": ("≠", "!="), "approx": ("≈", "~"), "in": ("∈", "in"), "to": ("→", "->"),
    "cdot": ("·", "*"), "times": ("×", "*"), "odot": ("⊙", "*"),
    "ast": ("∗", "*"), "pm": ("±", "+-"), "sim": ("∼", "~"),
}  # fmt: skip
_SIGNS = {
    "infty": ("∞", "inf"), "lfloor": ("⌊", "floor("), "rfloor": ("⌋", ")"), "lceil": ("⌈", "ceil("),
    "rceil": ("⌉", ")"),
    "dots": ("…", "..."), "ldots": ("…", "..."), "cdots": ("⋯", "..."), "sum": ("∑", "sum"), "prod": ("∏", "prod"),
    "int": ("∫", "int"), "lvert": ("|", "|"), "rvert": ("|", "|"), "vert": ("|", "|"), "mid": ("|", "|"),
    "{": ("{", "{"), "}": ("}", "}"), "|": ("‖", "||"), "prime": ("′", "'"), "top": ("ᵀ", "T"),
}  # fmt: skip
_SPACES = frozenset([",", ";", ":", "!", " ", "quad", "qquad"])
_ROMAN = frozenset(["mathrm", "operatorname", "text", "mathit", "mathbf", "textrm"])
_FRACTIONS = frozenset(["frac", "tfrac", "dfrac"])
_NO_INK = frozenset(["left", "right", "big", "Big", "bigl", "bigr", "Bigl", "Bigr", "displaystyle", "limits"])

_RAISED = dict(zip("0123456789+-−nx", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻ⁿˣ", strict=True))
_LOWERED = dict(zip("0123456789+-−ijnx", "₀₁₂₃₄₅₆₇₈₉₊₋₋ᵢⱼₙₓ", strict=True))

_TOKENS = re.compile(r"\\[A-Za-z]+|\\.|\d+(?:\.\d+)?|\s+|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Node:
    """A piece of a formula: a sign with its spellings, or a form such as a fraction with the pieces it is made of."""

    kind: str  # number, letter, function, word, binary, sign, space, row, frac, sqrt, sup, sub, cases
    text: str = ""
    ascii: str = ""
    parts: tuple[Node, ...] = ()


# --- reading ----------------------------------------------------------------------------------------------------------


def parse(tex: str) -> Node:
    """The tree of a formula. Raises `ActivationError` for TeX that the catalogue's notation does not have."""
    reader = _Reader(tex)
    tree = reader.row(())
    if reader.peek() is not None:
        raise ActivationError(f"formula {tex!r}: {reader.peek()!r} closes what nothing opened.")
    return tree


class _Reader:
    def __init__(self, tex: str) -> None:
        self.tex = tex
        self.tokens: list[str] = _TOKENS.findall(tex)
        self.at = 0

    def peek(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self) -> str:
        if self.at >= len(self.tokens):
            raise ActivationError(f"formula {self.tex!r} ends too early; a brace or an argument is missing.")
        self.at += 1
        return self.tokens[self.at - 1]

    def row(self, ends: tuple[str, ...]) -> Node:
        """Pieces up to one of `ends`, which is left where it is."""
        found: list[Node] = []
        while (token := self.peek()) is not None and token not in ends and token not in ("}", "&", r"\\", r"\end"):
            piece = self.piece()
            if piece.kind == "none":
                continue
            if piece.kind in ("sup", "sub"):
                while found and found[-1].kind == "space":
                    found.pop()
                base = found.pop() if found else Node("row")
                piece = Node(piece.kind, parts=(base, *piece.parts))
            found.append(piece)
        return found[0] if len(found) == 1 else Node("row", parts=tuple(found))

    def argument(self) -> Node:
        """What follows a macro: a group in braces, or one piece."""
        while (self.peek() or "").isspace():
            self.take()
        return self.piece()

    def group(self) -> Node:
        inside = self.row(("}",))
        if self.take() != "}":
            raise ActivationError(f"formula {self.tex!r}: a brace is not closed.")
        return inside

    def plain(self) -> str:
        """The letters of a group, as they are."""
        if self.take() != "{":
            raise ActivationError(f"formula {self.tex!r}: a group in braces is missing.")
        letters = ""
        while (token := self.take()) != "}":
            letters += token
        return letters

    def piece(self) -> Node:
        token = self.take()
        if token == "{":
            return self.group()
        if token in "^_":
            return Node("sup" if token == "^" else "sub", parts=(self.argument(),))
        if token.isspace() or token == "~":
            return Node("space")
        if token[0].isdigit():
            return Node("number", token, token)
        if token in _BINARY:
            return Node("binary", *_BINARY[token])
        if token[0] != "\\":
            return Node("letter" if token.isalpha() else "sign", token, token)
        return self.macro(token[1:])

    def macro(self, name: str) -> Node:
        if name in _FRACTIONS:
            return Node("frac", parts=(self.argument(), self.argument()))
        if name == "sqrt":
            return Node("sqrt", parts=(self.argument(),))
        if name == "begin":
            return self.cases()
        if name in _ROMAN:
            word = self.plain()
            kind = "word" if name == "text" else "function"
            return Node(kind, word, word)
        if name in _NO_INK:
            return Node("none")
        if name in _SPACES:
            return Node("space")
        for kind, table in (("binary", _BINARY), ("sign", _SIGNS)):
            if name in table:
                return Node(kind, *table[name])
        if name in _GREEK:
            return Node("letter", _GREEK[name], name)
        if name in _FUNCTIONS:
            return Node("function", name, name)
        raise ActivationError(
            f"formula {self.tex!r}: the macro \\{name} is not known.\nAdd it to the tables in activations/notation.py."
        )

    def cases(self) -> Node:
        """Each line is a row of cells: the value, and where it holds."""
        if (name := self.plain()) != "cases":
            raise ActivationError(f"formula {self.tex!r}: there is {name!r}, but only 'cases' is known.")
        lines: list[Node] = []
        cells = [self.row(())]
        while (token := self.take()) != r"\end":
            if token == r"\\":
                lines.append(Node("row", parts=tuple(cells)))
                cells = [self.row(())]
            elif token == "&":
                cells.append(self.row(()))
            else:
                raise ActivationError(f"formula {self.tex!r}: {token!r} does not belong into cases.")
        self.plain()
        return Node("cases", parts=(*lines, Node("row", parts=tuple(cells))))


# --- text -------------------------------------------------------------------------------------------------------------


def as_text(tex: str, ascii: bool = False) -> str:
    r"""A formula on one line, in Unicode, or with the names of its letters where only ASCII is to be had.

    Raises `ActivationError` for TeX that is not known.

    >>> as_text(r"\frac{1}{1 + e^{-x}}", ascii=True)
    '1/(1 + e^(-x))'
    """
    text = re.sub(r"\s+", " ", _text(parse(tex), ascii))
    return re.sub(r"(?<=[(\[]) | (?=[),\]])", "", text).strip()


def _text(node: Node, ascii: bool) -> str:
    if node.kind == "space":
        return " "
    if node.kind == "row":
        return "".join(_in_row(node.parts, i, ascii) for i in range(len(node.parts)))
    if node.kind == "frac":
        return "/".join(_text(p, ascii) if p.kind in ("sup", "sub") else _closed(p, ascii) for p in node.parts)
    if node.kind == "sqrt":
        inside = _text(node.parts[0], ascii)
        return f"sqrt({inside})" if ascii else f"√{inside}" if _atom(node.parts[0]) else f"√({inside})"
    if node.kind in ("sup", "sub"):
        base, script = node.parts
        small, mark = (_RAISED, "^") if node.kind == "sup" else (_LOWERED, "_")
        before = _text(base, ascii) if _atom(base) or base.kind in ("sub", "sup") else _closed(base, ascii)
        letters = _text(script, ascii).replace(" ", "")
        if not ascii and all(letter in small for letter in letters):
            return before + "".join(small[letter] for letter in letters)
        return f"{before}{mark}{_closed(script, ascii)}"
    if node.kind == "cases":
        return "{" + "; ".join(_case([_text(cell, ascii).strip() for cell in line.parts]) for line in node.parts) + "}"
    return node.ascii if ascii else node.text


def _case(cells: list[str]) -> str:
    """A line of cases: "x if x > 0", "0 otherwise"."""
    in_words = cells[-1].startswith(("if", "otherwise", "else"))
    return (" " if in_words else " if ").join(cells)


def _in_row(parts: tuple[Node, ...], i: int, ascii: bool) -> str:
    """A piece among its neighbours: room around what stands between two, brackets around fractions that are factors."""
    node, text = parts[i], _text(parts[i], ascii)
    before, after = _neighbour(parts, i, -1), _neighbour(parts, i, 1)
    if node.kind == "binary":
        return text if _is_sign_of_number(node, before) else f" {text} "
    if node.text == ",":
        return ", "
    if node.kind == "frac" and (_ends_factor(before) or _begins_factor(after)):
        return f"({text})"
    if node.kind == "function":
        opened = after is None or after.kind in ("sup", "sub") or after.text in ("(", "[", "|", "‖", ",")
        return f"{' ' if _ends_factor(before) else ''}{text}{'' if opened else ' '}"
    return text


def _neighbour(parts: tuple[Node, ...], i: int, step: int) -> Node | None:
    i += step
    while 0 <= i < len(parts) and parts[i].kind == "space":
        i += step
    return parts[i] if 0 <= i < len(parts) else None


def _is_sign_of_number(node: Node, before: Node | None) -> bool:
    """Whether a minus negates what follows, and does not take it from what stands before."""
    first = before is None or before.kind in ("binary", "function") or before.text in ("(", "[", ",")
    return first and node.ascii in ("+", "-")


_VALUES = ("number", "letter", "function", "word", "row", "frac", "sqrt", "sup", "sub", "cases")


def _ends_factor(node: Node | None) -> bool:
    return node is not None and (node.kind in _VALUES or node.text in (")", "]", "|"))


def _begins_factor(node: Node | None) -> bool:
    return node is not None and (node.kind in _VALUES or node.text in ("(", "[", "|"))


def _atom(node: Node) -> bool:
    return node.kind in ("number", "letter", "function", "word", "sign") or (
        node.kind == "row" and [part.kind for part in node.parts] == ["sign", "row", "sign"]
    )


def _closed(node: Node, ascii: bool) -> str:
    """A piece that holds together next to `/` or `^`."""
    text = _text(node, ascii).strip()
    return text if _atom(node) else f"({text})"


# --- MathML -----------------------------------------------------------------------------------------------------------

_THIN = '<mspace width="0.17em"/>'


def as_mathml(tex: str) -> str:
    r"""A formula as a MathML element, which browsers show without a script.

    Raises `ActivationError` for TeX that is not known.

    >>> as_mathml("x")
    '<math displaystyle="true"><mi>x</mi></math>'
    """
    # not as a block of its own: that would stand in the middle of the page
    return f'<math displaystyle="true">{_mathml(parse(tex))}</math>'


def _mathml(node: Node) -> str:
    return _MATHML[node.kind](node)


def _row(node: Node) -> str:
    pieces = []
    for i, part in enumerate(node.parts):
        before, after = _neighbour(node.parts, i, -1), _neighbour(node.parts, i, 1)
        if part.kind == "function":
            pieces.append(_THIN if _ends_factor(before) else "")
        pieces.append(_mathml(part))
        if part.kind == "function" and after is not None and after.text not in ("(", "["):
            pieces.append(_THIN)
    return f"<mrow>{''.join(pieces)}</mrow>"


def _wrapped(tag: str) -> Callable[[Node], str]:
    return lambda node: f"<{tag}>{''.join(map(_mathml, node.parts))}</{tag}>"


def _sign(node: Node) -> str:
    # Bars are the same sign on both sides; without a word the browser puts the space of a fence that it guesses.
    bar = ' stretchy="false" lspace="0" rspace="0"' if node.text in "|‖" else ""
    return f"<mo{bar}>{escape(node.text)}</mo>"


def _cases(node: Node) -> str:
    lines = "".join(
        "<mtr>" + "".join(f'<mtd style="text-align:left">{_mathml(cell)}</mtd>' for cell in line.parts) + "</mtr>"
        for line in node.parts
    )
    return f'<mrow><mo stretchy="true">{{</mo><mtable columnalign="left">{lines}</mtable></mrow>'


_MATHML: Mapping[str, Callable[[Node], str]] = {
    "number": lambda node: f"<mn>{node.text}</mn>",
    "letter": lambda node: f"<mi>{escape(node.text)}</mi>",
    "function": lambda node: f'<mi mathvariant="normal">{escape(node.text)}</mi>',
    "word": lambda node: f"<mtext>{escape(node.text)}</mtext>",
    "binary": lambda node: f"<mo>{escape(node.text)}</mo>",
    "sign": _sign,
    "space": lambda node: "",
    "row": _row,
    "frac": _wrapped("mfrac"),
    "sqrt": _wrapped("msqrt"),
    "sup": _wrapped("msup"),
    "sub": _wrapped("msub"),
    "cases": _cases,
}
