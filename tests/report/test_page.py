"""The page of a sweep as text: what is there without JavaScript, and that it is safe."""

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import pytest
from sweep_rows import point_rows, sweep_rows

from snnet_vitdet.errors import InputError
from snnet_vitdet.evaluation.results import on_frontier
from snnet_vitdet.report import (
    SampleColumn,
    SamplePicture,
    SampleRow,
    Samples,
    read_training,
    report_html,
    write_report,
)

HOSTILE = """</script><!--<img src=x onerror=alert(1)>'"&amp;"""


class Page(HTMLParser):
    """Elements with their attributes, the lines of the table, and texts by element."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.lines, self.texts, self._open = [], [], {}, []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "tr":
            self.lines.append([])
        elif tag in ("td", "th"):
            self.lines[-1].append("")

    def handle_endtag(self, tag):
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data):
        if "table" in self._open and self._open[-1] in ("td", "th", "svg"):
            self.lines[-1][-1] += data
        for tag in {*self._open}:
            self.texts[tag] = self.texts.get(tag, "") + data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def data_of(html):
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    return json.loads(text)


def samples(names=("S", "annotated"), file="a.png"):
    picture = SamplePicture(b"webp", 4, 3, f"2 {names[0]}")
    columns = [SampleColumn(name, "score 0.40", "S") for name in names]
    return Samples(columns, [SampleRow(file, [picture] * len(names))])


def test_every_stitch_is_in_the_table_with_its_numbers():
    rows = sweep_rows()
    head, *lines = Page(report_html(rows, title="t")).lines
    assert head[:7] == ["stitch", "id", "kind", "cuts", "GFLOPs", "params, M", "latency, ms"]
    assert head[7:] == ["p90, ms", "memory, MB"] + [
        f"{task} {ap}"
        for task in ("box", "mask")
        for ap in ("AP", "AP50", "AP75", "APs", "APm", "APl")
    ]
    assert len(lines) == len(rows) == 134
    for row, line in zip(rows, lines, strict=True):
        assert line[:2] == [row["name"], str(row["stitch_id"])]
        assert line[3] == (", ".join(map(str, row["cuts"])) or "–")
        # To the decimals that are shown.
        assert float(line[4]) == pytest.approx(row["gflops"], abs=0.051)
        assert float(line[6]) == pytest.approx(row["latency_ms"], abs=0.0051)
        assert float(line[9]) == pytest.approx(row["bbox_AP"], abs=0.051)


def test_columns_without_a_value_are_left_out_and_single_ones_are_dashes():
    rows = sweep_rows((4, 8), measured=False, without_ap=[3])
    head, *lines = Page(report_html(rows, title="t")).lines
    assert "latency, ms" not in head and "memory, MB" not in head and "images" not in head
    assert (
        lines[3][head.index("box AP")] == "–"
        and data_of(report_html(rows, title="t"))["rows"][3]["bbox_AP"] is None
    )
    for row in rows:
        row |= {key: math.nan for key in row if key.startswith("segm_")}
    assert not [name for name in Page(report_html(rows, title="t")).lines[0] if "mask" in name]
    head = Page(report_html(sweep_rows((4, 8), on_fewer_images=[5]), title="t")).lines[0]
    assert "images" in head


def test_no_text_from_outside_becomes_markup():
    rows = sweep_rows((4, 8))
    rows[4] |= {"name": HOSTILE, "kind": HOSTILE}
    html = report_html(
        rows,
        title=HOSTILE,
        facts=[(HOSTILE, HOSTILE)],
        samples=samples((HOSTILE, HOSTILE), HOSTILE),
    )
    page = Page(html)
    # Two sample pictures, and none of the names'.
    assert [image["src"][:16] for image in page.all("img")] == ["data:image/webp;"] * 2
    assert [image["alt"] for image in page.all("img")] == [f"{HOSTILE}: 2 {HOSTILE}"] * 2
    assert len(page.all("script")) == 2 and html.count("</script>") == 2
    assert not any(name.startswith("on") for _, each in page.elements for name in each)
    assert page.lines[5][0] == HOSTILE == data_of(html)["rows"][4]["name"]
    without = report_html(rows, title="t", no_samples=HOSTILE)
    assert not Page(without).all("img") and len(Page(without).all("script")) == 2


def test_the_page_allows_its_own_script_and_style_and_nothing_else():
    html = report_html(sweep_rows((4, 8)), title="t", samples=samples())
    (policy,) = [
        each["content"] for each in Page(html).all("meta") if each.get("http-equiv") is not None
    ]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for rule, pattern in (
        ("style-src", r"<style>(.*?)</style>"),
        ("script-src", r"<script>(.*?)</script>"),
    ):
        (text,) = re.findall(pattern, html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    named = [each.get(key) for _, each in Page(html).elements for key in ("src", "href")]
    assert {re.sub("[^:#]*$", "", name) for name in named if name} == {"data:", "#", ""}
    assert [name for name in named if name and not name.startswith(("data:", "#"))] == [
        "pareto.png"
    ]
    assert set(re.findall(r"https?://[\w./]+", html)) == {"http://www.w3.org/2000/svg"}


def test_facts_are_of_the_stitches_scored_on_all_images():
    rows = sweep_rows((4, 8), on_fewer_images=[5])
    full = [row for row in rows if row["stitch_id"] != 5]
    rows[5]["bbox_AP"] = 99.0
    html = report_html(rows, title="t", facts=[("Device", "a card")])
    assert [row["compared"] for row in data_of(html)["rows"]] == [i != 5 for i in range(14)]
    text = Page(html).texts
    best = max(full, key=lambda row: row["bbox_AP"])
    assert f"{best['bbox_AP']:.1f} ({best['name']})" in text["dd"]
    front = [row for row in full if row["on_pareto"]]
    cheapest = min(front, key=lambda row: row["gflops"])
    assert f"{len(front)} stitches, {cheapest['gflops']:.1f} to" in text["dd"]
    assert "5,000; fewer for 1 of the stitches" in text["dd"] and "1,000 iterations" in text["dd"]
    assert "14 (1 S, 1 L, 3 FS, 3 SF, 3 SFS, 3 FSF)" in text["dd"].replace("\u00a0", " ")
    assert "Device" in text["dt"] and "a card" in text["dd"]


def test_points_show_their_size_and_the_frontier_of_stitches_alone():
    rows = point_rows()
    page = Page(report_html(rows, title="t"))
    head, *lines = page.lines
    assert head[4:7] == ["image size", "proposals", "GFLOPs"] and len(lines) == 2010
    assert ["S@512/300", "0", "S", "–", "512", "300"] in [line[:6] for line in lines]
    facts = page.texts["dd"]
    assert "2,010 (15\u00a0S, 15\u00a0L, 165\u00a0FS" in facts
    front = sum(row["on_pareto"] for row in rows)
    stitches = [row for row in rows if "@" not in row["name"]]
    alone = sum(on_frontier(stitches, "bbox_AP"))
    assert f"{front} operating points, {min(row['gflops'] for row in rows):.1f} to" in facts
    assert f"{alone} stitches, {min(row['gflops'] for row in stitches):.1f} to" in facts
    assert "All operating points" in page.texts["h2"]


@pytest.mark.parametrize(
    "rows",
    [
        sweep_rows((4, 8))[:1],
        [sweep_rows((4, 8), measured=False)[1] | {"kind": "baseline", "name": "baseline"}],
        sweep_rows((4, 8), without_ap=range(14)),
        [row | {"num_images": None, "iteration": None} for row in sweep_rows((4, 8))],
    ],
    ids=["one stitch", "a baseline", "no score", "nothing counted"],
)
def test_little_is_enough_for_a_page(rows):
    page = Page(report_html(rows, title="t"))
    assert len(page.lines) == 1 + len(rows)
    assert "No metrics.json of the training" in page.texts["p"]
    assert "None were made." in page.texts["p"]


def test_the_page_replaces_an_older_one_and_needs_rows(tmp_path):
    path = tmp_path / "sweep" / "report.html"
    for title in ("one", "other"):
        write_report(path, sweep_rows((4, 8)), title=title)
    assert "<h1>other</h1>" in path.read_text(encoding="utf-8")
    with pytest.raises(InputError, match="Sweep at least one stitch first"):
        write_report(path, [], title="t")


def test_a_training_is_read_as_it_went(tmp_path):
    path = tmp_path / "metrics.json"
    lines = [
        {"iteration": 19, "total_loss": 4.0, "loss_cls": 1.0, "lr": 0.1, "S/bbox_AP": 3.0},
        {"iteration": 39, "total_loss": 9.0, "loss_cls": math.nan, "lr": 0.1, "time": 1.0},
        {"iteration": 39, "total_loss": 2.0, "loss_cls": 0.5, "lr": 0.01},
        {"bbox_AP": 1.0},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 59, "total_l')
    training = read_training(path)
    assert training.losses == {
        "total_loss": [(19, 4.0), (39, 2.0)],
        "loss_cls": [(19, 1.0), (39, 0.5)],
    }
    assert training.smoothed == [(19, 4.0), (39, 2.0)]
    assert training.learning_rate == [(19, 0.1), (39, 0.01)]
    assert training.box_ap == {"S": [(19, 3.0)]}
    html = report_html(sweep_rows((4, 8)), title="t", training=training)
    assert "went from 4.00 to 2.00 between iterations 19 and 39" in Page(html).texts["p"]
    assert data_of(html)["training"]["losses"]["loss_cls"] == [[19, 1.0], [39, 0.5]]
    path.write_text('{"iteration": 1, "lr": 1}\n')
    assert read_training(path) is None and read_training(tmp_path / "none.json") is None


def test_a_long_training_is_thinned_and_its_noise_averaged(tmp_path):
    path = tmp_path / "metrics.json"
    lines = [{"iteration": i, "total_loss": 5 - i / 2000 + (-1) ** i} for i in range(5000)]
    path.write_text("\n".join(map(json.dumps, lines)))
    training = read_training(path)
    assert 200 < len(training.losses["total_loss"]) <= 300
    # Groups are of odd size, so a share of the noise is left in each; the mean takes it out.
    for iteration, value in training.smoothed[20:-20]:
        assert value == pytest.approx(5 - iteration / 2000, abs=0.05)
