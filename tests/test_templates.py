"""Templates of pages: each value is escaped, and an unknown name is an error."""

import pytest
from jinja2 import UndefinedError

from eir.templates import page_templates


@pytest.fixture
def template(tmp_path):
    (tmp_path / "page.html").write_text("<p title='{{ name }}'>{{ name }}</p>\n")
    return page_templates(str(tmp_path / "module.py")).get_template("page.html")


def test_each_value_is_escaped(template):
    escaped = "&lt;b&gt;&#39;&amp;"
    assert template.render(name="<b>'&") == f"<p title='{escaped}'>{escaped}</p>"


def test_an_unknown_name_is_an_error(template):
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        template.render(title="x")
