"""The report as a page: what fits a telephone, what scrolls within itself, and what it shows of bits and why."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hawq_tvm.core.specs import BitConfig, Bits
from hawq_tvm.ilp.difference import Difference, LayerDifference
from hawq_tvm.ilp.explain import Alternative, BorderReading, BudgetReading, Explanation
from hawq_tvm.ilp.front import Front, FrontPoint
from hawq_tvm.runs.choices import render_allocations, render_explanations
from hawq_tvm.runs.front import render_front, worth
from hawq_tvm.runs.report import render_report
from hawq_tvm.runs.summary import LayerSummary, RunSummary, Totals

PHONE = 390
LONG = "a_very_long_module_name.blocks.11.attention.projection_with_a_name_that_does_not_end"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
W4, W8 = Bits(4, 4), Bits(8, 8)


def explanation(layer: str) -> Explanation:
    choices = (
        Alternative(W4, 0.5, {"size_bytes": 10.0, "bops": 1e9, "latency_us": 2.0, "energy_uj": 7.5}, None),
        Alternative(W8, 0.1, {"size_bytes": 20.0, "bops": 4e9, "latency_us": 3.0, "energy_uj": 9.5}, 0.0),
        Alternative(Bits(4, 8), 0.2, {"size_bytes": 10.0, "bops": 2e9, "latency_us": 2.5, "energy_uj": 8.5}, 0.25),
    )
    reading = BudgetReading("energy_uj", 100.0, 99.5, 0.125, W8)
    borders = (BorderReading(layer, LONG, {"latency_us": 1.25}, (1.0, 1.5), "measured: a copy"),)
    return Explanation(layer, W8, (layer,), False, W8, 0.5, choices, (reading,), 0.1, borders)


def front() -> Front:
    points = tuple(
        FrontPoint(BitConfig({LONG: bits}), {"sensitivity": loss, "size_bytes": size})
        for bits, size, loss in ((W4, 1e6, 9.0), (Bits(4, 8), 2e6, 0.5), (W8, 3e6, 0.01))
    )
    return Front(("size_bytes", "sensitivity"), points, {}, True, "highs")


@pytest.fixture
def summary() -> RunSummary:
    """A run of one layer whose names are as long as they come, with everything that a report may show."""
    layer = LayerSummary(
        name=LONG, kind="conv2d", bits="w8a8", input="u8", output="u8[2048,224,224]", parameters=10**9, macs=10**12,
        size_bytes=1e9, stored_bytes=10**9, bops=10**14, sensitivity=0.1, sensitivity_error=0.1, latency_us=3.0,
        energy_uj=9.5, within_us={}, accumulator_bound=2**30, fidelity=None, kernel={}, declines={},
    )  # fmt: skip
    totals = Totals(
        parameters=10**9, macs=10**12, size_bytes=1e9, stored_bytes=10**9, bops=10**14, latency_us=4.25, energy_uj=9.5,
        sensitivity=0.1, sensitivity_error=0.1, limits={"energy_uj": 100.0}, borders={"latency_us": 1.25},
    )  # fmt: skip
    change = LayerDifference(LONG, (W8, W4), {"sensitivity": 0.4, "size_bytes": -10.0})
    return RunSummary(
        path="/a/path", model="model", weights=f"/weights/{LONG * 2}.safetensors", data=f"imagefolder:{LONG}",
        layers=(layer,), totals=totals, activation_bytes={}, storages={}, launches={}, predictions={}, accuracy=None,
        fidelity=None, verification={}, benchmark={}, notes=(), remarks=(f"raise {LONG * 2}",),
        sources={"latency_us": f"measured by {LONG * 3}"}, versions={"torch": "2"}, front=front(),
        allocations={"small": Difference((change,), {"sensitivity": (0.1, 0.5), "size_bytes": (20.0, 10.0)})},
        explanations=(explanation(LONG),), prices=(f"size binds: 5 bytes more buys 3 less sensitivity: {LONG}",),
    )  # fmt: skip


class Page(HTMLParser):
    """Which tags lie in which, and the attributes of all."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.tags: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        around = [(own.get("class") or "") for _, own in self.open]
        self.tags.append((tag, dict(attrs), around))
        if tag not in ("meta", "path", "circle", "polyline"):
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "path", "circle", "polyline"):
            assert self.open.pop()[0] == tag, f"</{tag}> closes another"


def test_the_page_fits_a_telephone(summary: RunSummary) -> None:
    """Its width is the screen's, tables scroll within themselves, and nothing has a width above the screen's."""
    text = render_report(summary)
    page = Page(text)
    assert not page.open
    views = [own["content"] for tag, own, _ in page.tags if tag == "meta" and own.get("name") == "viewport"]
    assert views == ["width=device-width, initial-scale=1"]
    tables = [around for tag, _, around in page.tags if tag == "table"]
    assert len(tables) > 6 and all("scroll" in around[-1] for around in tables)
    widths = [float(width) for width in re.findall(r"(?<![\w-])(?:min-)?width:\s*([\d.]+)px", text)]
    assert widths and max(widths) < PHONE
    assert not any(tag in ("script", "link", "img", "iframe") for tag, _, _ in page.tags)
    assert all(float(size) >= 12 for size in re.findall(r"font-size: ([\d.]+)px", text))
    assert "prefers-color-scheme: dark" in text


def test_energy_and_borders_stand_with_the_costs(summary: RunSummary) -> None:
    text = render_report(summary)
    assert "<td>energy</td><td>9.5 uJ a sample</td><td>100 uJ a sample</td>" in text
    assert "4.25 us, 1.25 of it between layers" in text
    assert "<th>uJ</th>" in text
    assert f"<p>Size binds: 5 bytes more buys 3 less sensitivity: {LONG}.</p>" in text


def test_allocations_stand_side_by_side(summary: RunSummary) -> None:
    text = render_allocations(summary.allocations)
    assert "<td>small</td><td>1</td><td>0.5 (+400.0%)</td><td>0.01 (-50.0%)</td>" in text
    assert f"<td>{LONG}</td><td>w8a8</td><td>w4a4</td><td>+0.4</td><td>-0.01</td>" in text
    assert render_allocations({}) == ""


def test_each_layer_is_explained() -> None:
    text = render_explanations([explanation("<conv>")])
    row = ("&lt;conv&gt;", "w8a8", "w4a8", "0.25", "50.00%", "yes")
    assert "".join(f"<td>{cell}</td>" for cell in row) in text
    assert "energy: 99.5 of 100 uJ; it binds" in text and "1.25 us (1 to 1.5) at these bits; measured: a copy" in text
    assert "<td>over budget</td>" in text and "<th>energy, uJ</th>" in text
    assert render_explanations(None) == ""


def test_a_front_says_its_axes_units_and_what_steps_buy() -> None:
    text = render_front(front())
    assert ">size, kB<" in text and ">sensitivity, logarithmic<" in text
    assert f"from point 1 to 2, 1,000 kB more size buys 8.5 less sensitivity: {LONG} w4a4 to w4a8" in text
    said = worth(front())
    assert said is not None and said.startswith("A unit buys most and least in these steps: from point 1 to 2, ")
    alone = Front(("size_bytes", "sensitivity"), front().points[:1], {}, True, "highs")
    assert worth(alone) is None and "<table" not in render_front(alone)


@pytest.fixture
def framed(summary: RunSummary, tmp_path: Path) -> Path:
    """The page in a frame as wide as a telephone, with a script beside that notes how wide it came out."""
    frame = tmp_path / "frame.html"
    measured = "const d = this.contentDocument.documentElement; document.title = d.scrollWidth + ' ' + d.clientWidth"
    frame.write_text(
        f"<!doctype html><iframe width={PHONE} height=800 style='border:0' onload='{escape(measured)}' "
        f'srcdoc="{escape(render_report(summary))}"></iframe>'
    )
    return frame


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_finds_nothing_beside_the_page(framed: Path, tmp_path: Path) -> None:
    command = [
        str(BROWSER),
        "--headless=new",
        "--no-sandbox",
        "--hide-scrollbars",
        f"--user-data-dir={tmp_path}/profile",
    ]
    done = subprocess.run([*command, "--dump-dom", framed.as_uri()], capture_output=True, text=True, check=True)
    found = re.search(r"<title>(\d+) (\d+)</title>", done.stdout)
    assert found is not None, done.stdout[:500]
    assert found[1] == found[2] == str(PHONE)
