"""Where licenses can be read: by identifier, in expressions, and none invented."""

import pytest

from mobileclip.lineage import licenses
from mobileclip.lineage.licenses import Terms
from mobileclip.models.published import _LICENSES


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("MIT", ["MIT"]), ("MIT AND (CC0-1.0 OR X)", ["MIT", "CC0-1.0", "X"]), ("", ["unknown"]),
        ("(MIT OR Apache-2.0) AND MIT", ["MIT", "Apache-2.0"]), ("My terms (see site)", ["My terms (see site)"]),
        ("Terms of A and B", ["Terms of A and B"]), ("((A))", ["((A))"]), ("(A OR B) AND (C OR D)", [*"ABCD"]),
        ("((A AND (B OR C)))", [*"ABC"]), ("A OR (B AND C)", [*"ABC"]), ("A (v1) AND B (v2)", ["A (v1)", "B (v2)"]),
    ],
)  # fmt: skip
def test_names_of_an_expression(expression, names):
    assert licenses.names(expression) == names


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("CC-BY-4.0", "https://creativecommons.org/licenses/by/4.0/"),
        ("cc-by-sa-3.0", "https://creativecommons.org/licenses/by-sa/3.0/"),
        ("CC-BY-NC-ND-2.0", "https://creativecommons.org/licenses/by-nc-nd/2.0/"),
        ("CC0-1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
        ("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0"),
        ("MIT", "https://opensource.org/license/mit"),
        ("OFL-1.1", "https://openfontlicense.org/open-font-license-official-text/"),
        ("GPL-3.0-or-later WITH Classpath-exception-2.0", "https://www.gnu.org/licenses/gpl-3.0.html"),
        ("apple-amlr", "https://github.com/apple/ml-mobileclip/blob/main/LICENSE_MODELS"),
    ],
)
def test_canonical_addresses(name, url):
    assert licenses.text(name).url == url


@pytest.mark.parametrize("name", ["unknown", "", "MIT-ish", "CC-BY", "CC-BY-SA-NC-4.0", "Apache", "own"])
def test_no_address_is_invented(name):
    assert licenses.text(name) is None


def test_every_license_of_published_weights_can_be_read():
    assert all(licenses.text(name) for _, name in _LICENSES)


def test_share_alike_and_research_licenses_want_no_other_class():
    """The table and the classes agree: each license with a text has known terms."""
    for name in licenses._TEXTS:
        assert licenses.classify(name) != Terms.UNKNOWN, name


@pytest.mark.parametrize(
    ("expression", "terms"),
    [
        ("MIT OR (Apache-2.0 AND CC-BY-NC-4.0)", Terms.PERMISSIVE),
        ("MIT OR Apache-2.0 AND CC-BY-NC-4.0", Terms.PERMISSIVE),  # AND binds closer
        ("(MIT OR Apache-2.0) AND CC-BY-NC-4.0", Terms.RESEARCH_ONLY),
        ("(CC-BY-NC-4.0 OR GPL-3.0) AND (MIT OR X)", Terms.SHARE_ALIKE),
        ("CC-BY-NC-4.0 OR X AND MIT", Terms.UNKNOWN),
        ("Apache-2.0 and CC-BY-NC-4.0", Terms.RESEARCH_ONLY),
        ("MIT or CC-BY-NC-4.0", Terms.RESEARCH_ONLY),  # prose: no permission is read into it
        ("(MIT)", Terms.PERMISSIVE),
        ("(MIT", Terms.PERMISSIVE),
    ],
)
def test_classes_of_expressions(expression, terms):
    assert licenses.classify(expression) == terms


@pytest.mark.parametrize(
    ("expressions", "whole"),
    [
        (["MIT OR X", "CC-BY-4.0"], "CC-BY-4.0 AND (MIT OR X)"),
        (["(MIT OR X) AND A", "A AND B"], "A AND B AND (MIT OR X)"),
        (["MIT OR X", "(MIT OR X)"], "MIT OR X"),
        (["A AND B OR C", "D"], "(A AND B OR C) AND D"),
        (["My terms (see site)", "A"], "A AND My terms (see site)"),
        ([], ""),
        ([""], ""),
    ],
)
def test_what_inherits_all_of_them_is_no_freer_than_any(expressions, whole):
    assert licenses.together(expressions) == whole
    assert licenses.together([whole]) == whole
    if expressions:
        assert licenses.classify(whole) == max(map(licenses.classify, expressions))


@pytest.mark.parametrize(
    ("expression", "allowed", "is_allowed"),
    [
        ("MIT", ["MIT"], True),
        ("MIT AND CC-BY-4.0", ["MIT"], False),
        ("MIT AND CC-BY-4.0", ["CC-BY-4.0", "MIT"], True),
        ("MIT OR GPL-3.0", ["MIT"], True),
        ("A AND (B OR C)", ["A", "C"], True),
        ("A AND (B OR C)", ["B", "C"], False),
        ("A AND B", ["A AND B"], True),
        ("", ["MIT"], False),
    ],
)
def test_a_list_covers_expressions(expression, allowed, is_allowed):
    assert licenses.is_allowed(expression, allowed) == is_allowed
