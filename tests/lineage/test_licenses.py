"""Where licenses can be read: by identifier, in expressions, and none invented."""

import pytest

from mobileclip.lineage import licenses
from mobileclip.models.published import _LICENSES


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("MIT", ["MIT"]), ("MIT AND (CC0-1.0 OR X)", ["MIT", "CC0-1.0", "X"]), ("", ["unknown"]),
        ("(MIT OR Apache-2.0) AND MIT", ["MIT", "Apache-2.0"]), ("My terms (see site)", ["My terms (see site)"]),
        ("Terms of A and B", ["Terms of A and B"]), ("((A))", ["((A))"]),
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
        assert licenses.classify(name) != licenses.Terms.UNKNOWN, name
