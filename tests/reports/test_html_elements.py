"""Markup escapes by construction."""

import html

from hypothesis import given
from hypothesis import strategies as st

from mobileclip.reports.html_elements import Markup, element, join


def test_element__escapes_text_and_attributes():
    made = element("p", "<b>&", title='a "quoted" <i>', class_="x")
    assert made == '<p title="a &quot;quoted&quot; &lt;i&gt;" class="x">&lt;b&gt;&amp;</p>'


def test_element__keeps_markup_and_flattens():
    inner = element("b", "x")
    assert element("p", [inner, ["y", None, 3]], id=None) == "<p><b>x</b>y3</p>"


def test_element__void_elements():
    assert element("img", src="a", alt="") == '<img src="a" alt="">'
    assert element("circle", cx=1.5, stroke_width=2) == '<circle cx="1.5" stroke-width="2"/>'


def test_join__a_formatted_string_is_text_again():
    made = element("b", "x")
    assert isinstance(join(made), Markup)
    assert join(f"{made}") == "&lt;b&gt;x&lt;/b&gt;"
    assert join(made + "<i>") == "&lt;b&gt;x&lt;/b&gt;&lt;i&gt;"


@given(st.text())
def test_join__round_trip(text):
    made = join(text)
    assert html.unescape(made) == html.unescape(html.escape(text))
    assert "<" not in made
    assert '"' not in made
