"""The documents name files, links, commands, overrides and counts that are right."""

import re
import shlex
import sys
from itertools import product
from pathlib import Path

import pytest
from detectron2.config import instantiate
from detectron2.engine import default_argument_parser

import benchmark
import check_device
from snnet_vitdet.engine import load_config
from snnet_vitdet.modeling import anchor_alone, baseline_cost, stitch_costs
from snnet_vitdet.stitching import StitchSpace

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "research/*/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"
)
REPRODUCE = (ROOT / "docs/results.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
SL = "configs/COCO/mask_rcnn_snnet_deit3_s_l_100ep.py"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code_spans(text):
    """Inline code outside fences, on one line each."""
    return [" ".join(s.split()) for s in re.findall(r"`([^`]+)`", FENCE.sub("", text))]


def commands(text):
    """The commands in the fences, each as a list of words."""
    fenced = "\n".join(body for language, body in FENCE.findall(text) if not language)
    lines = fenced.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("python ")]


def alternatives(path):
    """``a_{s,b}.py`` as a_s.py and a_b.py."""
    parts = re.split(r"\{([^}]*)\}", path)
    choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(choice) for choice in product(*choices)]


def table_rows(text, heading):
    """Cells of the rows below the header whose first cell is ``heading``."""
    lines = text.splitlines()
    (start,) = [i for i, line in enumerate(lines) if line.startswith(f"| {heading} |")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_are_there(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(
        r"(?<![\w/.])(?:configs|tools|tests|docs|research)/[\w/{},*.-]*\.(?:py|md)", text
    )
    missing = [path for name in named for path in alternatives(name) if not list(ROOT.glob(path))]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_between_the_documents_lead_somewhere(document):
    text = FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        file, _, anchor = target.partition("#")
        path = (ROOT / document).parent / file if file else ROOT / document
        assert path.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            # As GitHub makes anchors: lower case, no punctuation, dashes for spaces.
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, target


@pytest.mark.parametrize("words", commands(REPRODUCE), ids=" ".join)
def test_a_command_to_reproduce_is_accepted(words):
    _, program, *arguments = words
    assert (ROOT / program).is_file()
    if program != "train_net.py":
        assert program == "tools/list_stitches.py"
    args = default_argument_parser().parse_args(arguments)
    load_config(str(ROOT / args.config_file), args.opts)


@pytest.mark.parametrize("words", commands(PERFORMANCE), ids=" ".join)
def test_a_command_to_measure_is_accepted(words, monkeypatch):
    _, program, *arguments = words
    programs = {"tools/benchmark.py": benchmark, "tools/check_device.py": check_device}
    monkeypatch.setattr(sys, "argv", [program, *arguments])
    args = programs[program].arguments()
    assert args.opts == []
    assert args.config_file is None or (ROOT / args.config_file).is_file()


def test_overrides_to_reproduce_are_accepted():
    with_config = 0
    for span in code_spans(REPRODUCE):
        words = shlex.split(span)
        if words[0].startswith("configs/") and words[0].endswith(".py"):
            load_config(str(ROOT / words[0]), words[1:])
            with_config += 1
        elif re.fullmatch(r"[\w.]+=\S+", words[0]):
            load_config(str(ROOT / SL), words)
    # Or the page is no longer written in a way that is found.
    assert with_config > 15


def test_experiments_of_the_paper_all_have_a_row():
    """Its figures with results and its table; 1 and 2a are drawings."""
    rows = " ".join(re.findall(r"^\| (Figure[^|]*)\|", REPRODUCE, re.MULTILINE))
    figures = {"2b", "12a", "12b", "10a", "10b", "10c"} | {
        str(number) for number in range(3, 18) if number not in (10, 12)
    }
    assert set(re.findall(r"\b(\d+[abc]?)\b", rows)) == figures
    assert "Table 1" in REPRODUCE


# Of all rows a second each.
@pytest.mark.slow
def test_counts_are_those_of_the_configs():
    rows = table_rows(REPRODUCE, "config")
    for name, stitches, groups, mean, share in rows:
        config = load_config(str(ROOT / name.strip("`")))
        costs = stitch_costs(config.model)
        config.sampler.gflops = list(costs.gflops)
        sampler = instantiate(config.sampler)
        pairs = zip(sampler.probabilities(), costs.gflops, strict=True)
        expected = sum(probability * gflops for probability, gflops in pairs)
        large = baseline_cost(anchor_alone(config.model, "large")).gflops
        counted = len(costs.space), getattr(sampler, "groups", "")
        assert (stitches, groups) == (str(counted[0]), counted[1] and str(len(counted[1]))), name
        assert (mean, share) == (f"{expected:.1f}", f"{expected / large:.3f}"), name
    for name, gflops, share in table_rows(REPRODUCE, "baseline"):
        cost = baseline_cost(load_config(str(ROOT / name.strip("`"))).model).gflops
        assert float(gflops) == round(cost, 1), name
        assert float(share) == round(cost / 1807.4, 3), name


def test_figure_3_is_counted_as_written():
    gflops = stitch_costs(load_config(str(ROOT / SL)).model).gflops
    rows = table_rows(REPRODUCE, "sampling of the 134 stitches of S and L")
    config = load_config(str(ROOT / SL)).sampler
    config.gflops = list(gflops)
    uniform, *others = rows
    assert uniform[1:] == ["", f"2/134 = {100 * 2 / 134:.1f} %", "1/134", "1/134"]
    written = [(10, "gap"), (50, "gap"), (10, "round"), (50, "round")]
    for (name, groups, anchors, rarest, commonest), (step, grouping) in zip(
        others, written, strict=True
    ):
        assert f"step {step}" in name and f"`{grouping}`" in name
        config.step, config.grouping = step, grouping
        sampler = instantiate(config)
        assert groups == str(len(sampler.groups))
        probabilities = sampler.probabilities()
        share = probabilities[0] + probabilities[1]
        assert anchors == f"2/{groups} = {100 * share:.1f} %"
        assert rarest == f"1/{round(1 / min(probabilities))}"
        assert commonest == f"1/{round(1 / max(probabilities))}"

    space = StitchSpace((12, 24))
    config.step = 10
    for grouping, alone in (("gap", set()), ("round", {f"FS-{cut}" for cut in (1, 3, 7, 9, 11)})):
        config.grouping = grouping
        members = [ids[0] for ids in instantiate(config).groups if len(ids) == 1]
        assert {space[i].name for i in members} == {"S", "L", *alone}
    listed = re.search(r"alone in their groups \(([^)]*)\)", " ".join(REPRODUCE.split()))[1]
    assert set(listed.split(", ")) == alone
    counts = []
    for shift in range(11):
        config.gflops = [cost + shift for cost in gflops]
        counts.append(len(instantiate(config).groups))
    assert f"from {min(counts)} to {max(counts)} groups" in " ".join(REPRODUCE.split())
