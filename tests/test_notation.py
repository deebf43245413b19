"""Formulas in TeX, as text and as MathML."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from relume.activations import Activation, activation, activations
from relume.activations.notation import as_mathml, as_text
from relume.errors import ActivationError

each_row = pytest.mark.parametrize("row", activations(), ids=lambda row: row.name)


@each_row
def test_every_formula_is_readable(row: Activation):
    """No TeX is left in a formula's text, its ASCII form is ASCII, and its MathML is well formed."""
    for text in (as_text(row.tex), as_text(row.tex, ascii=True)):
        assert text and not set("\\&") & set(text)
    assert as_text(row.tex, ascii=True).isascii()
    tree = ElementTree.fromstring(as_mathml(row.tex))
    assert tree.tag == "math" and "".join(tree.itertext()).strip()
    assert "\\" not in as_mathml(row.tex)


@pytest.mark.parametrize(
    ("tex", "text", "plain"),
    [
        (r"\frac{1}{1 + e^{-x}}", "1/(1 + e⁻ˣ)", "1/(1 + e^(-x))"),
        (r"\frac{x}{2} (1 + \tanh x)", "(x/2) (1 + tanh x)", "(x/2) (1 + tanh x)"),
        (r"\sqrt{2 / \pi} x^3", "√(2 / π) x³", "sqrt(2 / pi) x^3"),
        (r"\max(-1, x) \cdot 2^{-x}", "max(−1, x) · 2⁻ˣ", "max(-1, x) * 2^(-x)"),
        (r"\left(x - |x|\right)^2", "(x − |x|)²", "(x - |x|)^2"),
        (r"\begin{cases} x & x > 0 \\ 0 & \text{otherwise} \end{cases}", "{x if x > 0; 0 otherwise}",
         "{x if x > 0; 0 otherwise}"),
        (r"\begin{cases} x & x \le 1 \\ 1 & x \ge 1 \end{cases}", "{x if x ≤ 1; 1 if x ≥ 1}",
         "{x if x <= 1; 1 if x >= 1}"),
        (r"\frac{e^{x_i}}{\sum_j e^{x_j}}", "e^(xᵢ)/(∑ⱼ e^(xⱼ))", "e^(x_i)/(sum_j e^(x_j))"),
        (r"-\ln(1 + e^{\beta x})", "−ln(1 + e^(β x))", "-ln(1 + e^(beta x))"),
        (r"a \sigma(b)", "a σ(b)", "a sigma(b)"),
        (r"\sin^2(ax)", "sin²(ax)", "sin^2(ax)"),
    ],
)  # fmt: skip
def test_formulas_as_a_reader_writes_them(tex: str, text: str, plain: str):
    """Fractions, roots, powers, cases and signs come out with the brackets that they need, and no others."""
    assert as_text(tex) == text
    assert as_text(tex, ascii=True) == plain


@pytest.mark.parametrize(
    "name", ["sigmoid", "relu", "elu", "celu", "softplus", "gelu_tanh", "mish", "hardswish", "softsign"]
)
def test_the_text_of_a_formula_computes_the_function(name: str):
    """Read by a computer algebra system, the ASCII form gives the row's own numbers."""
    import sympy
    from sympy.parsing import sympy_parser

    row, text = activation(name), as_text(activation(name).tex, ascii=True)
    text = re.sub(r"\{(.+) if (.+); (.+) if (.+)\}", r"Piecewise((\1, \2), (\3, \4))", text)
    text = re.sub(r"\|x\|", "Abs(x)", text).replace("max(", "Max(").replace("min(", "Min(").replace("ln(", "log(")
    rules = (*sympy_parser.standard_transformations, sympy_parser.implicit_multiplication, sympy_parser.convert_xor)
    x = sympy.Symbol("x", real=True)
    letters = {"x": x, "e": sympy.E, "alpha": sympy.Integer(1), "beta": sympy.Integer(1)}
    read = sympy_parser.parse_expr(text, local_dict=letters, transformations=rules)
    for at in (-3.5, -0.7, 0.4, 2.0, 5.0):
        assert float(read.subs(x, at)) == pytest.approx(float(row.value(np.float64(at))), rel=1e-9)


def test_mathml_has_the_parts_of_the_formula():
    """A fraction over a sum with a power is that in MathML, and functions stand upright."""
    tree = ElementTree.fromstring(as_mathml(r"\frac{1}{1 + e^{-x}} \tanh x"))
    fraction = next(tree.iter("mfrac"))
    assert [child.tag for child in fraction] == ["mn", "mrow"]
    assert "".join(next(fraction.iter("msup")).itertext()) == "e−x"
    upright = [node for node in tree.iter("mi") if node.get("mathvariant") == "normal"]
    assert [node.text for node in upright] == ["tanh"]


@pytest.mark.parametrize(
    ("tex", "message"),
    [
        (r"\wrong x", r"the macro \\wrong is not known.\nAdd it to the tables"),
        (r"\frac{1}", "ends too early; a brace or an argument is missing"),
        (r"{1 + x", "ends too early; a brace"),
        (r"x}", "'}' closes what nothing opened"),
        (r"{x & y}", "a brace is not closed"),
        (r"\mathrm x", "a group in braces is missing"),
        (r"\begin{matrix} x \end{matrix}", "there is 'matrix', but only 'cases' is known"),
        (r"\begin{cases} x } \end{cases}", "'}' does not belong into cases"),
    ],
)
def test_tex_that_is_not_known_is_refused(tex: str, message: str):
    """What the converter cannot read is an error that says what, and never a formula with a piece missing."""
    with pytest.raises(ActivationError, match=message):
        as_text(tex)
    with pytest.raises(ActivationError, match=message):
        as_mathml(tex)
