"""Reports: HTML that needs nothing else, Markdown beside it, numbers for readers."""

import re
from html.parser import HTMLParser

import pytest
import torch
from torch.distributions import Uniform

from uq import FunctionModel, Input, Inputs, Sobol, monte_carlo
from uq.markdown import to_html
from uq.report import Report, format_number
from uq.summary import summarise, summary_table

figures = pytest.importorskip("matplotlib.figure", reason="needs the extra plot")

MODEL = FunctionModel(lambda x: torch.stack([x.sum(-1), x.prod(-1)], -1), input_dim=2, output_shape=(2,))
INPUTS = Inputs([Input("a", Uniform(0.0, 1.0)), Input("b", Uniform(1.0, 2.0))])


class Balanced(HTMLParser):
    """Checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def report():
    page = Report("Cantilever <1>", "under *load*")
    for name in ("Problem", "Result", "Cost"):
        page.heading(name)
    page.text(
        "A **bold** claim, `a < b`.\n\n- one\n- two\n  lines\n\n1. x\n2. y\n\n```\nif a < b:\n\n    c\n```"
    )
    page.table(["what", "value [m]"], [["a|b", 0.00012345], ["c", torch.tensor(3)]], "Numbers.")
    figure = figures.Figure()
    figure.subplots().plot([1, 2])
    page.figure(figure, 'A "line".')
    return page


def test_html_is_self_contained_and_balanced(report, tmp_path):
    path = report.write(tmp_path / "deep" / "report.html")
    page = path.read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert set(re.findall(r'src="([^,"]*)', page)) == {"data:image/png;base64"}
    assert "http" not in page
    assert "Cantilever &lt;1&gt;" in page
    assert "<code>a &lt; b</code>" in page
    assert "<li>two lines</li>" in page
    assert '<td class="number">0.0001234</td>' in page
    assert page.count('href="#') == 3


def test_markdown_stands_beside_with_its_pictures(report, tmp_path):
    report.write(tmp_path / "report.html")
    text = (tmp_path / "report.md").read_text()
    assert r"| a\|b | 0.0001234 |" in text
    picture = re.search(r"!\[Figure 1\]\((.*)\)", text)
    assert picture is not None
    assert (tmp_path / picture[1]).read_bytes().startswith(b"\x89PNG")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["report.html", "report.md", "report_figures"]


def test_same_report_is_the_same_bytes(report, tmp_path):
    first = report.write(tmp_path / "a.html").read_bytes()
    assert report.write(tmp_path / "a.html").read_bytes() == first


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0, "0"),
        (12_345, "12 345"),
        (1.23456789e-9, "1.235e-09"),
        (123456.7, "1.235e+05"),
        (12345.6, "12346"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (True, "True"),
        (torch.tensor(0.5), "0.5"),
    ],
)
def test_numbers_are_written_for_readers(value, text):
    assert format_number(value) == text


def test_markup_is_escaped():
    assert to_html("<script> & *a*") == "<p>&lt;script&gt; &amp; <em>a</em></p>"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: Report(" "), ValueError, "`title` must not be empty"),
        (lambda: Report("a").heading("b", 1), ValueError, "`level` must be 2 or 3; got 1"),
        (lambda: Report("a").table(["x", "y"], [[1, 2], [1]]), ValueError, "2 cells each; got 1 in row 1"),
        (lambda: Report("a").figure("b.png", "c"), TypeError, "must be a matplotlib Figure; got str"),
        (lambda: Report("a").write("b.pdf"), ValueError, "must end in '.html'"),
    ],
)
def test_report_refuses_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_summary_of_a_run_shows_what_is_known(tmp_path):
    page = Report("Run")
    replicated = {"design": Sobol(2, 1), "replications": 4}
    for settings in ({}, replicated, {"design": Sobol(2, 1)}):
        result = monte_carlo(MODEL, INPUTS, seed=1, num_samples=256, progress=False, **settings)
        summarise(page, result, ["sum", "product"], ["m", ""])
    text = page.markdown()
    assert text.count("sum [m]") >= 3
    assert text.count("![Figure") == 6
    assert "95 % interval" in text
    last = summary_table(result)[1][0]
    assert last[2:4] == ["-", "-"]  # points that are neither independent nor replicated: no error is claimed
    page.write(tmp_path / "report.html")


def test_summary_refuses_names_of_other_components():
    result = monte_carlo(MODEL, INPUTS, seed=1, num_samples=8, progress=False)
    with pytest.raises(ValueError, match="`names` must hold 2"):
        summary_table(result, ["sum"])
