"""The page of a sweep in a real browser: what moves, what the keyboard does, what must not run."""

import json
import math

import pytest
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait
from sweep_rows import COUNTS, SIZES, point_rows, sweep_rows

from snnet_vitdet.evaluation import pareto_front
from snnet_vitdet.report import (
    SampleColumn,
    SamplePicture,
    SampleRow,
    Samples,
    TrainingCurve,
    write_report,
)

pytestmark = pytest.mark.slow

HOSTILE = "</script><img src=x onerror=\"document.title='run'\">"
FEWER = range(20, 40)
TRAINING = TrainingCurve(
    {"total_loss": [(0, 3.0), (500, 1.0)], "loss_cls": [(0, 1.0), (500, 0.2)]},
    [(0, 3.0), (500, 1.0)],
    [(0, 1e-4), (500, 1e-5)],
)


@pytest.fixture(scope="module")
def rows():
    rows = sweep_rows(on_fewer_images=FEWER, without_ap=[50])
    # The costliest in GFLOPs, fastest: its place differs from axis to axis.
    costliest = max(rows, key=lambda row: row["gflops"])
    costliest["latency_ms"] = 1.0
    return rows


@pytest.fixture(scope="module")
def open_page(browser, rows, tmp_path_factory):
    """Writes and opens the page, of these rows if none are given; gives the browser."""
    folder = tmp_path_factory.mktemp("page")

    def open_it(page_rows=rows, title="output/a sweep", **parts):
        write_report(folder / "report.html", page_rows, title=title, training=TRAINING, **parts)
        for kind in ("browser", "performance"):
            browser.get_log(kind)
        browser.get((folder / "report.html").as_uri())
        # On a busy machine, the driver goes on while a page of thousands of points is still read.
        WebDriverWait(browser, 60).until(
            lambda page: page.execute_script("return document.readyState") == "complete"
        )
        return browser

    return open_it


@pytest.fixture
def page(open_page):
    return open_page()


@pytest.fixture(scope="module")
def many():
    return point_rows()


@pytest.fixture
def page_of_points(open_page, many):
    return open_page(many)


def points(page, selector=".point"):
    """Place of each point of the plot, by name."""
    return page.execute_script(
        "return Object.fromEntries([...document.querySelectorAll('#chart ' + arguments[0])]"
        ".map(p => { const t = p.transform.baseVal[0].matrix; "
        "return [p.dataset.name, [t.e, t.f]]; }))",
        selector,
    )


def shown_names(page):
    return page.execute_script(
        "return [...document.querySelectorAll('#results tbody tr')].filter(r => !r.hidden)"
        ".map(r => r.cells[0].textContent)"
    )


def chosen(page):
    """The names of what is selected in plot, table and details."""
    return page.execute_script(
        "return [document.querySelector('.point[aria-selected=true]').getAttribute('aria-label')"
        ".split(',')[0], document.querySelector('#results tr.chosen').cells[0].textContent,"
        "document.querySelector('#details h3').textContent]"
    )


def expected_front(rows, x, y):
    full = [row for row in rows if row["num_images"] == 5000]
    on = pareto_front([row[x] for row in full], [row[y] for row in full])
    return {row["name"] for row, is_on in zip(full, on, strict=True) if is_on}


def choose(page, element_id, value):
    Select(page.find_element(By.ID, element_id)).select_by_value(value)


@pytest.mark.parametrize("y", ["bbox_AP", "segm_APs"])
@pytest.mark.parametrize("x", ["gflops", "params_m", "latency_ms", "memory_mb"])
def test_points_and_frontier_are_those_of_the_chosen_axes(page, rows, x, y):
    choose(page, "x-axis", x)
    choose(page, "y-axis", y)
    places = points(page)
    scored = [row for row in rows if row["stitch_id"] != 50]
    assert set(places) == {row["name"] for row in scored}
    for axis, key, sign in ((0, x, 1), (1, y, -1)):
        low, high = (choice(scored, key=lambda row: row[key]) for choice in (min, max))
        start, end = (places[row["name"]][axis] for row in (low, high))
        for row in scored:
            share = (row[key] - low[key]) / (high[key] - low[key])
            place = start + share * (end - start)
            # Places are written with two decimals of a pixel.
            assert places[row["name"]][axis] == pytest.approx(place, abs=0.02)
        assert sign * (end - start) > 200
    front = expected_front(rows, x, y)
    assert set(points(page, ".point.on-front")) == front
    marked = page.execute_script(
        "return [...document.querySelectorAll('#results tr.front')].map(r => +r.dataset.row)"
    )
    assert {rows[i]["name"] for i in marked} == front
    assert set(points(page, ".point.pale")) == {rows[i]["name"] for i in FEWER}


def test_leaving_a_kind_out_gives_the_frontier_of_the_others(page, rows):
    for button in page.find_elements(By.CSS_SELECTOR, "#legend button"):
        if button.get_attribute("data-kind") not in ("S", "L", "FS"):
            button.click()
            assert button.get_attribute("aria-pressed") == "false"
    # SN-Netv1's space.
    rest = [row for row in rows if row["kind"] in ("S", "L", "FS")]
    assert set(points(page)) == {row["name"] for row in rest}
    assert set(points(page, ".point.on-front")) == expected_front(rest, "gflops", "bbox_AP")


def test_the_table_is_sorted_by_a_click_and_back_by_another(page, rows):
    head = page.find_element(By.CSS_SELECTOR, "th[data-key=bbox_AP]")
    scored = sorted(
        (row for row in rows if row["stitch_id"] != 50), key=lambda row: -row["bbox_AP"]
    )
    names = [row["name"] for row in scored]
    (without,) = {row["name"] for row in rows} - set(names)
    head.find_element(By.TAG_NAME, "button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert shown_names(page) == [*names, without]
    # What has no score stays last.
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "ascending"
    assert shown_names(page) == [*names[::-1], without]
    others = page.find_elements(By.CSS_SELECTOR, "th[aria-sort]:not([data-key=bbox_AP])")
    assert {other.get_attribute("aria-sort") for other in others} == {"none"}


def test_the_table_is_filtered_by_kind_name_and_frontier(page, rows):
    choose(page, "filter-kind", "SFS")
    assert shown_names(page) == [row["name"] for row in rows if row["kind"] == "SFS"]
    page.find_element(By.ID, "filter-name").send_keys("-11")
    assert shown_names(page) == [f"SFS-{cut}-11" for cut in range(1, 11)]
    page.find_element(By.ID, "filter-name").clear()
    choose(page, "filter-kind", "")
    page.find_element(By.ID, "filter-front").click()
    front = expected_front(rows, "gflops", "bbox_AP")
    assert shown_names(page) == [row["name"] for row in rows if row["name"] in front]
    choose(page, "x-axis", "latency_ms")
    front = expected_front(rows, "latency_ms", "bbox_AP")
    assert shown_names(page) == [row["name"] for row in rows if row["name"] in front]


def test_arrow_keys_go_from_point_to_point_in_plot_and_table(page, rows):
    scored = [row for row in rows if row["stitch_id"] != 50]
    by_cost = [row["name"] for row in sorted(scored, key=lambda row: row["gflops"])]
    by_ap = [row["name"] for row in sorted(scored, key=lambda row: row["bbox_AP"])]
    start = page.find_element(By.CSS_SELECTOR, "#chart [tabindex='0']")
    # Reached as by Tab: one stop for all points.
    assert len(page.find_elements(By.CSS_SELECTOR, "#chart [tabindex='0']")) == 1
    page.execute_script("arguments[0].focus()", start)
    expected = by_cost.index(chosen(page)[0])
    for key, step in ((Keys.HOME, None), (Keys.ARROW_RIGHT, 1), (Keys.ARROW_RIGHT, 1)):
        page.switch_to.active_element.send_keys(key)
        expected = 0 if step is None else expected + step
        assert chosen(page) == [by_cost[expected]] * 3
    at = by_ap.index(by_cost[expected])
    page.switch_to.active_element.send_keys(Keys.ARROW_UP)
    assert chosen(page) == [by_ap[at + 1]] * 3
    page.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert chosen(page) == [by_ap[at]] * 3
    page.switch_to.active_element.send_keys(Keys.END, Keys.ARROW_RIGHT)
    assert chosen(page) == [by_cost[-1]] * 3


def test_a_click_selects_and_hovering_shows_without_selecting(page, rows):
    page.find_element(By.CSS_SELECTOR, "#results tr[data-row='7'] td").click()
    assert chosen(page) == [rows[7]["name"]] * 3
    cheapest = min(rows, key=lambda row: row["gflops"])
    point = page.find_element(By.CSS_SELECTOR, f".point[data-name='{cheapest['name']}']")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(page).move_to_element(point).perform()
    name = cheapest["name"]
    assert chosen(page) == [rows[7]["name"], rows[7]["name"], name]
    details = page.find_element(By.ID, "details").text
    for text in (f"{cheapest['gflops']:.1f}", f"{cheapest['segm_APl']:.1f}", f"--stitch {name}"):
        assert text in details
    ActionChains(page).move_to_element(point).click().perform()
    assert chosen(page) == [name] * 3


def corners(page, selector):
    """Number of points that a stepped line goes through; 0 if it is not drawn."""
    return page.execute_script(
        "const d = document.querySelector('#chart ' + arguments[0]).getAttribute('d');"
        "return d && (d.split(/[ML]/).length) / 2",
        selector,
    )


def test_thousands_of_points_have_their_frontier_and_that_of_stitches_alone(page_of_points, many):
    page = page_of_points
    stitches = [row for row in many if "@" not in row["name"]]
    assert (len(points(page)), len(many), len(stitches)) == (2010, 2010, 134)
    front, alone = (expected_front(rows, "gflops", "bbox_AP") for rows in (many, stitches))
    assert set(points(page, ".point.on-front")) == front
    assert corners(page, ".front:not(.alone)") == len(front)
    assert corners(page, ".front.alone") == len(alone) != len(front)
    assert "stitches alone, as trained" in page.find_element(By.ID, "front-legend").text
    # Two large stars with their names, not one for each size.
    assert set(points(page, ".point.anchor")) == {"S", "L"}
    assert len(page.find_elements(By.CSS_SELECTOR, "#chart .label")) == 2
    # Nothing lies above the frontier but its own points and the anchors.
    above = page.execute_script(
        "let node = document.querySelector('#chart .front:not(.alone)'); const above = [];"
        "while (node = node.nextElementSibling) above.push(node.dataset.name); return above"
    )
    assert set(above) == front | {"S", "L"}


def test_points_are_filtered_by_size_proposals_and_kind(page_of_points, many):
    page = page_of_points
    choose(page, "plot-filters-image_size", "512")
    part = [row for row in many if row["image_size"] == 512]
    assert set(points(page)) == {row["name"] for row in part}
    assert set(points(page, ".point.on-front")) == expected_front(part, "gflops", "bbox_AP")
    assert not page.find_element(By.ID, "front-legend").is_displayed()
    choose(page, "plot-filters-num_proposals", "300")
    assert len(points(page)) == 134
    # The table has filters of its own.
    assert page.find_element(By.ID, "filter-count").text == "2010 of 2010 shown"
    choose(page, "filter-image_size", "384")
    choose(page, "filter-num_proposals", "100")
    choose(page, "filter-kind", "FS")
    assert shown_names(page) == [f"FS-{cut}@384/100" for cut in range(1, 12)]


def test_sizes_and_proposals_are_offered_where_they_differ(open_page):
    page = open_page(point_rows((512, 1024), (1000,)))
    found = page.find_elements(By.CSS_SELECTOR, "select[id*='-']")
    assert {each.get_attribute("id") for each in found} >= {
        *("plot-filters-image_size", "band-filters-image_size", "filter-image_size", "filter-kind")
    }
    assert not [each for each in found if "proposals" in each.get_attribute("id")]
    page = open_page(sweep_rows((4, 8))[:1])
    assert not page.find_elements(By.CSS_SELECTOR, "[id^='filter-kind'], [id$='image_size']")
    assert not page.find_element(By.ID, "legend").is_displayed()


def test_a_long_table_is_complete_sorted_and_searched(page_of_points, many):
    page = page_of_points
    page.find_element(By.CSS_SELECTOR, "th[data-key=bbox_AP] button").click()
    names = [row["name"] for row in sorted(many, key=lambda row: -row["bbox_AP"])]
    # Further lines come when they are scrolled to.
    for _ in range(4):
        shown = shown_names(page)
        assert shown == names[: len(shown)]
        page.execute_script(
            "const frame = document.querySelector('.tall'); frame.scrollTop = frame.scrollHeight;"
            "frame.dispatchEvent(new Event('scroll'))"
        )
    assert shown_names(page) == names
    page.find_element(By.ID, "filter-name").send_keys("FS-3@640/3")
    expected = [name for name in names if "FS-3@640/3" in name]
    assert shown_names(page) == expected and "FS-3@640/300" in expected


def test_a_point_is_selected_by_its_own_name(page_of_points, many):
    """All points of a stitch have its id."""
    page = page_of_points
    page.find_element(By.ID, "filter-name").send_keys("SFS-3-9@640/300")
    page.find_element(By.CSS_SELECTOR, "#results tbody td").click()
    assert chosen(page) == ["SFS-3-9@640/300"] * 3
    assert len(page.find_elements(By.CSS_SELECTOR, ".point[aria-selected=true]")) == 1
    details = page.find_element(By.ID, "details").text
    assert "--stitch SFS-3-9@640/300" in details and "image size\n640" in details
    # From the plot to a line that the table has not shown yet.
    page.find_element(By.ID, "filter-name").send_keys(Keys.CONTROL, "a", Keys.DELETE)
    page.find_element(By.CSS_SELECTOR, "th[data-key=gflops] button").click()
    start = page.find_element(By.CSS_SELECTOR, "#chart [tabindex='0']")
    page.execute_script("arguments[0].focus()", start)
    start.send_keys(Keys.END)
    costliest = max(many, key=lambda row: row["gflops"])["name"]
    assert chosen(page) == [costliest] * 3


def test_bands_compare_the_stitches_as_trained_and_other_points_on_demand(page_of_points):
    page = page_of_points
    summary = page.find_element(By.ID, "band-summary")
    chosen_points = [
        Select(page.find_element(By.ID, f"band-filters-{key}"))
        for key in ("image_size", "num_proposals")
    ]
    said = [each.first_selected_option.text for each in chosen_points]
    assert said == [str(SIZES[-1]), str(COUNTS[-1])]
    assert summary.text.startswith("The costs of 132 operating points")
    chosen_points[0].select_by_value("640")
    table = page.find_element(By.ID, "band-table").text
    assert table.startswith("GFLOPs")
    for each in chosen_points:
        each.select_by_value("")
    assert summary.text.startswith("The costs of 1980 operating points")
    assert page.find_element(By.ID, "band-table").text != table


def test_kinds_are_compared_within_bands_of_cost(page, rows):
    """Eight bands of equal width; the first row of the table is counted here again."""
    full = [row for row in rows if row["cuts"] and row["num_images"] == 5000]
    full = [row for row in full if row["stitch_id"] != 50]
    low, high = (choice(row["gflops"] for row in full) for choice in (min, max))
    for value, take in (("mean", lambda aps: sum(aps) / len(aps)), ("best", max)):
        choose(page, "band-value", value)
        table = page.find_element(By.ID, "band-table")
        kinds = [cell.text for cell in table.find_elements(By.CSS_SELECTOR, "thead th")][1:]
        lines = table.find_elements(By.CSS_SELECTOR, "tbody tr")
        assert kinds == ["FS", "SF", "SFS", "FSF"] and len(lines) == 8
        first = {}
        for kind, cell in zip(kinds, lines[0].find_elements(By.TAG_NAME, "td"), strict=True):
            limit = low + (high - low) / 8
            rest = [row for row in full if row["gflops"] < limit and row["kind"] == kind]
            if not rest:
                assert cell.text == "–"
                continue
            score = take([row["bbox_AP"] for row in rest])
            assert float(cell.text.split()[0]) == pytest.approx(score, abs=0.051)
            assert f"n = {len(rest)}" in cell.text
            first[kind] = score
        winner = lines[0].find_element(By.CSS_SELECTOR, "td.first").text.split()[0]
        assert float(winner) == pytest.approx(max(first.values()), abs=0.051)


def test_nothing_is_asked_of_a_network_and_nothing_complains(open_page):
    picture = SamplePicture(b"", 4, 4, "nothing")
    page = open_page(
        samples=Samples([SampleColumn("S", "")], [SampleRow("a.png", [picture])]), title="t"
    )
    asked = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [
        each["params"]["request"]["url"]
        for each in asked
        if each["method"] == "Network.requestWillBeSent"
    ]
    assert urls and {url.partition(":")[0] for url in urls} <= {"file", "data"}
    assert [url for url in urls if url.startswith("file:")] == [page.current_url]
    assert page.get_log("browser") == []
    # Every chart of the page is drawn.
    assert len(page.find_elements(By.CSS_SELECTOR, ".chart svg")) == 4


def test_a_hostile_name_is_shown_and_not_run(open_page):
    rows = sweep_rows((4, 8))
    costliest = max(range(14), key=lambda i: rows[i]["gflops"])
    rows[costliest] |= {"name": HOSTILE, "kind": HOSTILE, "bbox_AP": 99.0}
    column = SampleColumn(HOSTILE, HOSTILE, HOSTILE)
    picture = SamplePicture(b"", 4, 4, HOSTILE)
    page = open_page(
        rows, title=HOSTILE, samples=Samples([column], [SampleRow(HOSTILE, [picture])])
    )
    assert chosen(page)[1:] == [HOSTILE, HOSTILE]
    page.find_element(By.CSS_SELECTOR, ".pictures img").click()
    assert HOSTILE in page.find_element(By.ID, "enlarged").text
    assert page.title == f"{HOSTILE}: stitches"
    assert not page.find_elements(By.CSS_SELECTOR, "img[src=x]")


@pytest.mark.parametrize(
    "odd_rows",
    [
        sweep_rows((4, 8))[:1],
        [sweep_rows((4, 8), measured=False)[1] | {"kind": "baseline", "name": "baseline"}],
        sweep_rows((4, 8), without_ap=range(14)),
        sweep_rows((24, 24), on_fewer_images=range(100, 300)),
    ],
    ids=["one stitch", "a baseline", "no score", "554 stitches"],
)
def test_odd_sweeps_are_shown_without_an_error(open_page, odd_rows):
    page = open_page(odd_rows)
    assert page.get_log("browser") == []
    assert len(shown_names(page)) == len(odd_rows)
    with_ap = sum(not math.isnan(row["bbox_AP"]) for row in odd_rows)
    assert len(points(page)) == with_ap


def test_without_javascript_table_and_pictures_are_there(open_page, browser):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        picture = SamplePicture(b"", 4, 4, "2 nuts")
        samples = Samples([SampleColumn("S", "")], [SampleRow("a.png", [picture])])
        page = open_page(samples=samples)
        text = page.find_element(By.TAG_NAME, "body").text
        assert "FSF-10-11" in text and "The charts need JavaScript" in text and "a.png" in text
        # Nothing is offered that would not work.
        assert not page.find_element(By.ID, "x-axis").is_displayed()
        assert not page.find_element(By.ID, "filter-name").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("width", [320, 360, 390])
@pytest.mark.parametrize("of_points", [False, True], ids=["stitches", "points"])
def test_a_phone_scrolls_down_and_not_sideways(open_page, browser, rows, many, width, of_points):
    size = {"width": width, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        title = "output/a_folder_with_a_name_that_is_far_longer_than_a_phone_is"
        page = open_page(many if of_points else rows, title=title)
        assert (
            page.execute_script(
                "return document.documentElement.scrollWidth <= innerWidth && innerWidth"
            )
            == width
        )
        # A finger does not hit the middle of a point.
        point = page.find_element(By.CSS_SELECTOR, ".point[data-name='S'] use")
        page.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
        box = page.execute_script(
            "const r = arguments[0].getBoundingClientRect(); return [r.x - 6, r.y + 18]", point
        )
        tap = [{"x": box[0], "y": box[1]}]
        for kind, touched in (("touchStart", tap), ("touchEnd", [])):
            event = {"type": kind, "touchPoints": touched}
            browser.execute_cdp_cmd("Input.dispatchTouchEvent", event)
        assert len(set(chosen(page))) == 1
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


CONTRAST = """
const ratio = (a, b) => {
  const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (c) => c.map((v) => linear(v / 255)).reduce(
    (sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const [hi, lo] = [light(a), light(b)].sort((x, y) => y - x);
  return (hi + 0.05) / (lo + 0.05);
};
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgba = (text) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
  if (node.closest("script, style, .skip, noscript")) continue;
  let ground = node;
  while (rgba(getComputedStyle(ground).backgroundColor)[3] < 255) ground = ground.parentElement;
  const style = getComputedStyle(node);
  const ink = node instanceof SVGElement ? style.fill : style.color;
  const back = rgba(getComputedStyle(ground).backgroundColor);
  found.push([ratio(rgba(ink).slice(0, 3), back.slice(0, 3)), walker.currentNode.data]);
}
return found.sort((a, b) => a[0] - b[0]);
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(open_page, browser, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        found = open_page().execute_script(CONTRAST)
        assert len(found) > 1000
        assert found[0][0] >= 4.5, found[:5]
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
