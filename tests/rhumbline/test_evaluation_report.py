"""The report: files, the page's safety, its numbers, and (slow) the page in a real browser."""

import csv
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import yaml

from rhumbline.errors import StoreError
from rhumbline.evaluation import interactive, plots
from rhumbline.evaluation.card import CardSteering, plain, write_card
from rhumbline.evaluation.evaluate import PolicyEvaluation
from rhumbline.evaluation.headline import say_direction, say_interval, say_number, say_seconds, verdict
from rhumbline.evaluation.health import Finding, check_health
from rhumbline.evaluation.report import ReportInput, summary, write_report
from rhumbline.evaluation.samples import browser, pick
from tests.rhumbline.evaluation_fakes import answer, arc, evaluation, obedient

EVIL = "</script><script>document.title='owned'</script><!-- <img src=x onerror=alert(1)> & \u2028"


def evaluated() -> tuple[list[dict[str, Any]], dict[str, Any], list[dict[str, Any]]]:
    scored = {t: obedient(0.5 + 0.3 * t, quality=50 + 2 * t) for t in (0, 1)}
    scored[1].append(answer("p00-evil", arc()[0], (50, 30), prompt=EVIL, text=EVIL))
    initial = obedient(angles_deg=None, quality=45.0)
    samples = pick(initial, label="initial policy", objectives=["helpfulness", "verbosity"], num_prompts=3)
    for t, answers in scored.items():
        samples += pick(answers, label=f"t={t}", objectives=["helpfulness", "verbosity"], num_prompts=3)
    return [evaluation(t, s).to_json() for t, s in scored.items()], evaluation(None, initial).to_json(), samples


EVALUATIONS, INITIAL, SAMPLES = evaluated()


def report(**changes: Any) -> ReportInput:
    values: dict[str, Any] = {
        "name": "demo <b>run</b>",
        "method": "Directional preference alignment",
        "base_model": "a-model",
        "evaluations": EVALUATIONS,
        "initial_policy": INITIAL,
        "samples": SAMPLES,
        "stages": [
            {"name": "t=1 generate", "seconds": 200.0, "items": 160, "tokens": 8000, "tokens_per_s": 40.0},
            {"name": "t=1 select", "seconds": 0.4, "items": 80, "tokens": None, "tokens_per_s": None},
        ],
        "selected": {"unique": 80, "candidates": 320, "duplicates_dropped": 2, "failed": 1},
        "budget": {"prompts": 1200, "wall clock": "1 h"},
        "recipe": {"samples": 16},
        "health": check_health(EVALUATIONS, initial=INITIAL),
        "notes": ["started from the shipped adapter"],
        "versions": {"torch": "2.13.0"},
        "seed": 7,
        "command": "ray job submit jobs/dpa.py",
    }
    return ReportInput(**(values | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("run") / "report", report()).parent


def test_files_of_a_report(folder: Path) -> None:
    names = ["distributions", "front", "hypervolume", "lengths", "requested_achieved", "reward_kl"]
    assert sorted(p.stem for p in (folder / "figures").iterdir()) == names
    assert sorted(p.stem for p in (folder / "data").iterdir()) == names
    for figure in (folder / "figures").iterdir():
        assert figure.read_bytes().startswith(b"\x89PNG\r\n")
    assert not [p for p in folder.rglob("*") if p.is_file() and p.suffix not in {".png", ".csv", ".html", ".json"}]


def test_summary_has_the_promised_fields(folder: Path) -> None:
    data = json.loads((folder / "summary.json").read_text())
    assert data["objectives"] == ["helpfulness", "verbosity"]
    assert data["reference_point"] == {"helpfulness": 20.0, "verbosity": 95.0}
    assert [iteration["t"] for iteration in data["iterations"]] == [0, 1]
    last = data["iterations"][-1]
    assert set(last["hypervolume"]) == {"value", "low", "high"}
    assert set(last["spearman"]) == {"helpfulness", "verbosity"}
    assert last["own_direction_regret"]["value"] >= 0
    assert {"angle_deg", "vector", "rewards", "length", "kl", "n"} <= set(last["directions"][0])
    assert [d["angle_deg"] for d in last["directions"]] == [0.0, -15.0, -30.0, -45.0]
    assert "per_prompt" not in last
    assert data["initial_policy"]["directions"][0]["vector"] is None
    assert data["stages"][0] == {
        "name": "t=1 generate",
        "seconds": 200.0,
        "items": 160,
        "tokens": 8000,
        "tokens_per_s": 40.0,
    }
    assert data["selected"] == {"unique": 80, "candidates": 320, "duplicates_dropped": 2, "failed": 1}
    assert (data["versions"], data["seed"]) == ({"torch": "2.13.0"}, 7)
    assert data["notes"] == ["started from the shipped adapter"]


def test_gains_stand_beside_what_they_compare() -> None:
    same_prompts = [EVALUATIONS[0], evaluation(1, obedient(0.8, quality=53.0)).to_json()]
    iterations = summary(report(evaluations=same_prompts))["iterations"]
    assert iterations[0]["hypervolume_gain_over_first"] is None
    gain = iterations[1]["hypervolume_gain_over_first"]["value"]
    assert gain == pytest.approx(iterations[1]["hypervolume"]["value"] - iterations[0]["hypervolume"]["value"])


def test_each_csv_holds_the_numbers_of_its_figure(folder: Path) -> None:
    with (folder / "data" / "front.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 + 4 + 1
    expected = EVALUATIONS[0]["directions"][0]["rewards"]["verbosity"]["value"]
    assert float(rows[0]["verbosity_value"]) == pytest.approx(expected)
    assert rows[-1]["label"] == "initial policy"


def test_the_spread_is_of_the_directions_that_ask_for_most_and_least(folder: Path) -> None:
    with (folder / "data" / "distributions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    verbosity = [row for row in rows if row["objective"] == "verbosity" and row["label"] == "t=1"]
    assert [(row["asked"], float(row["angle_deg"])) for row in verbosity] == [("most", 0.0), ("least", -45.0)]
    for row in verbosity:
        entry = next(e for e in EVALUATIONS[1]["directions"] if e["angle_deg"] == float(row["angle_deg"]))
        d, k = EVALUATIONS[1]["directions"].index(entry), 1
        cells = [cell[k] for cell in EVALUATIONS[1]["per_prompt"]["rewards"][d] if cell[k] is not None]
        assert (int(row["prompts"]), float(row["mean"])) == (len(cells), pytest.approx(np.mean(cells)))
        assert float(row["q25"]) == pytest.approx(np.percentile(cells, 25))
        assert float(row["median"]) == pytest.approx(np.median(cells))
    alone = [row for row in rows if row["label"] == "initial policy"]
    assert [(row["objective"], row["asked"]) for row in alone] == [("helpfulness", ""), ("verbosity", "")]


def test_page_is_self_contained_and_allows_nothing_else(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert "default-src 'none'" in page
    own = page.replace(page[page.index("<script>") : page.rindex("<script>")], "")  # without plotly's own source
    assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", own)
    assert "Plotly" in page
    assert page.count("<!doctype html>") == 1


def test_nothing_that_a_model_or_a_person_wrote_becomes_markup(folder: Path) -> None:
    page = (folder / "index.html").read_text()
    assert "document.title='owned'</script>" not in page
    assert "<img src=x" not in page
    assert "demo <b>run</b>" not in page
    assert "demo &lt;b&gt;run&lt;/b&gt;" in page
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert block is not None
    texts = [prompt["text"] for prompt in json.loads(block[1])["samples"]["prompts"]]
    assert EVIL in texts  # and yet it arrives unchanged


def test_page_says_the_headlines(folder: Path) -> None:
    page = html.unescape((folder / "index.html").read_text())
    ratio = EVALUATIONS[-1]["length_ratio"]
    assert f"{ratio['value']:.0%}" in page
    assert say_number(EVALUATIONS[-1]["hypervolume"]["value"]) in page
    assert "started from the shipped adapter" in page
    assert "3 min 20 s" in page


def test_report_without_the_optional_parts(tmp_path: Path) -> None:
    bare = ReportInput(
        name="bare", method="DPA", base_model="m", evaluations=[evaluation(0, obedient(), with_kl=False).to_json()]
    )
    page = write_report(tmp_path / "report", bare).read_text()
    assert 'id="samples"' not in page
    assert not (tmp_path / "report/figures/reward_kl.png").exists()


def test_three_objectives(tmp_path: Path) -> None:
    vectors = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.6, 0.0, 0.8)]
    scored = [
        answer(f"p{p}", v, [40 + 20 * w + 3 * p for w in v], length=20 + p, index=i)
        for p in range(5)
        for i, v in enumerate(vectors)
    ]
    signs = {"a": 1, "b": -1, "c": 1}
    result = PolicyEvaluation.from_scored(
        scored, t=0, label="t=0", signs=signs, reference_point={"a": 0, "b": 100, "c": 0}, bootstrap=30
    ).to_json()
    assert result["length_ratio"] is None
    write_report(tmp_path, report(evaluations=[result], initial_policy=None, samples=(), health=()))
    assert (tmp_path / "figures/front.png").exists()
    go.Figure(interactive.front([result], None)["data"])


def test_a_full_disk_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "report").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="cannot be written"):
        write_report(tmp_path / "report", report())


def test_front_is_a_valid_plotly_figure_with_better_up_and_right() -> None:
    spec = interactive.front(EVALUATIONS, INITIAL, SAMPLES)
    figure = go.Figure(spec)  # plotly validates every key
    assert [trace.name for trace in figure.data] == ["initial policy", "t=0", "t=1"]
    assert figure.layout.xaxis.autorange == "reversed"
    assert figure.layout.yaxis.autorange is None
    first, trace = EVALUATIONS[0]["directions"][0], figure.data[1]
    assert trace.x[0] == first["rewards"]["verbosity"]["value"]
    assert trace.x[0] + trace.error_x.array[0] == pytest.approx(first["rewards"]["verbosity"]["high"])
    assert "asked helpfulness 1.00, verbosity 0.00" in trace.text[0]


def test_hover_escapes_what_the_model_said() -> None:
    sample = SAMPLES[-1] | {"label": "t=1", "vector": EVALUATIONS[1]["directions"][0]["vector"], "text": EVIL}
    texts = interactive.front(EVALUATIONS, None, [sample])["data"][1]["text"]
    assert "<script" not in texts[0]
    assert "&lt;/script&gt;" in texts[0]


def test_drawn_figures_turn_the_axis_of_which_less_is_better() -> None:
    front = plots.draw(EVALUATIONS, INITIAL)[0]
    axes = front.figure.axes[0]
    assert axes.xaxis_inverted()
    assert not axes.yaxis_inverted()
    assert "less is better" in axes.get_xlabel()
    svg = plots.svg(front.figure, 'a "quoted" <alt>')
    assert svg.startswith("<svg")
    assert 'aria-label="a &quot;quoted&quot; &lt;alt&gt;"' in svg
    assert plots.INK not in svg
    assert "currentColor" in svg


def test_samples_are_the_first_ones_and_browse_by_falling_angle() -> None:
    scored = obedient(num_prompts=5)
    samples = pick(scored, label="t=1", objectives=["helpfulness", "verbosity"], num_prompts=2)
    assert {sample["prompt_id"] for sample in samples} == {"p00", "p01"}
    assert len(samples) == 2 * 4
    shown = browser(samples)
    assert [answer["angle_deg"] for answer in shown["answers"]["t=1"]["p00"]] == [0.0, -15.0, -30.0, -45.0]
    first = next(s for s in scored if s.completion.id == "p00/d3/s0")
    assert shown["answers"]["t=1"]["p00"][0]["text"] == first.completion.text


def test_how_numbers_are_said() -> None:
    assert [say_number(x) for x in (2715.4, 271.5, 47.32, 0.953, -0.5, -0.001, 12000, None)] == [
        "2,715",
        "272",
        "47.3",
        "0.95",
        "−0.50",
        "0.00",
        "12,000",
        "—",
    ]
    assert say_interval({"value": 0.52, "low": 0.47, "high": 0.57}) == "0.52 [0.47, 0.57]"
    assert say_interval({"value": 30.0, "low": -1.0, "high": 61.0}, signed=True) == "+30.0 [−1.00, 61.0]"
    assert say_interval(None) == "—"
    assert say_direction({"vector": [0.7, -0.7], "angle_deg": -45.0}) == "−45°"
    assert say_direction({"vector": [0.6, 0.0, -0.8], "angle_deg": None}) == "(0.60, 0.00, −0.80)"
    assert [say_seconds(s) for s in (0.42, 12, 200, 3900, None)] == ["0.4 s", "12 s", "3 min 20 s", "1 h 05 min", "—"]


def test_verdict_follows_the_worst_finding() -> None:
    assert verdict([]).value == "Healthy"
    assert verdict([Finding("note", "x")]).value == "Healthy"
    assert verdict([Finding("note", "x"), Finding("warning", "y")]).value == "With care"
    assert verdict([Finding("error", "x")]).value == "Do not trust"


def test_model_card(tmp_path: Path) -> None:
    steering = CardSteering(
        codec="dpa-int100",
        example="helpfulness=0.8,verbosity=-0.6",
        system_prompt="maximise ```rating``` = helpfulness*80 + verbosity*-60",
        region="angles from -45 to 0 degrees",
        presets={"concise": {"helpfulness": 0.8, "verbosity": -0.6}},
    )
    card = write_card(tmp_path / "README.md", report(), steering, base_model_id="org/model").read_text()
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header)["base_model"] == "org/model"
    assert yaml.safe_load(header)["license"] == "apache-2.0"
    assert "## Steering" in body
    assert "````text\nmaximise ```rating``` = helpfulness*80" in body  # a fence that the prompt cannot close
    assert "| concise | helpfulness 0.80, verbosity −0.60 |" in body
    assert "demo <b>" not in body
    snippet = re.search(r"````python\n(.*?)````", body, re.DOTALL)
    assert snippet is not None
    compile(snippet[1], "card", "exec")


def test_plain_text_means_itself_in_markdown() -> None:
    assert plain("a|b <i>*c*\n_d_ & `e`") == r"a\|b &lt;i>\*c\*" + r" \_d\_ &amp; \`e\`"


CLICKS = """<script>
const out = [], at = (id) => document.getElementById(id);
out.push(at("position").textContent, document.querySelectorAll(".answer").length);
at("next").click(); at("next").click(); at("previous").click();
out.push(at("position").textContent);
const last = at("choose-prompt").length - 1;
at("choose-prompt").selectedIndex = last; at("choose-prompt").dispatchEvent(new Event("change"));
const markup = document.querySelectorAll("#answers img, #answers script").length;
out.push(at("prompt").textContent, markup, at("next").disabled);
at("choose-label").selectedIndex = 0; at("choose-prompt").selectedIndex = 0;
at("choose-label").dispatchEvent(new Event("change"));
out.push(document.querySelector(".answer h3").textContent);
setTimeout(() => {
  out.push(document.querySelectorAll("#front .point").length, document.title);
  const probe = document.createElement("pre");
  probe.id = "probe"; probe.textContent = JSON.stringify(out);
  document.body.append(probe);
}, 1500);
</script></body>"""


@pytest.mark.slow
def test_the_page_in_a_real_browser(folder: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium or google-chrome on this machine")
    page = tmp_path / "page.html"
    page.write_text((folder / "index.html").read_text().replace("</body>", CLICKS))
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
    command = [chromium, *flags.split(), "--disable-sync", "--no-first-run", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=6000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=True)
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    first, columns, second, evil, markup, at_end, no_direction, points, title = json.loads(html.unescape(found[1]))
    assert (first, second) == ("Prompt 1 of 4, 4 answers", "Prompt 2 of 4, 4 answers")
    assert columns == 4
    assert evil.startswith("</script><script>")
    assert (markup, at_end) == (0, True)
    assert no_direction == "No direction"
    assert points == 2 * 4 + 1
    assert "owned" not in title


def test_a_win_rate_stands_in_the_tables_of_report_and_card_with_its_judge(tmp_path: Path) -> None:
    scored = obedient()
    wins = {s.completion.id: float(s.completion.query.prompt.id < "p05") for s in scored}  # 5 of 20 prompts
    judged = PolicyEvaluation.from_scored(
        scored,
        t=1,
        label="t=1",
        signs={"helpfulness": 1, "verbosity": -1},
        reference_point={"helpfulness": 20.0, "verbosity": 95.0},
        wins=wins,
        wins_by="quality & calm",
        bootstrap=100,
    ).to_json()
    with_rate = report(evaluations=[judged], health=())
    page = write_report(tmp_path / "report", with_rate).read_text()
    assert page.count('<th scope="col">win rate, by quality &amp; calm</th>') == 3  # of iterations, of both policies
    assert f"<td>{say_interval(judged['win_rate'])}</td>" in page
    assert '<h2>Win rate over the initial policy</h2><p class="value">25%</p>' in page
    assert "quality &amp; calm is the head of the reward model that says which answer wins" in page
    card = write_card(tmp_path / "README.md", with_rate, None).read_text()
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert table[0].endswith("| tokens | KL, nats | win rate, by quality &amp; calm |")
    assert {line.count("|") for line in table} == {7}
    assert all(line.endswith(f"{say_interval(judged['directions'][0]['win_rate'])} |") for line in table[2:3])
    plain = write_card(tmp_path / "README.md", report(), None).read_text()
    assert {line.count("|") for line in plain.splitlines() if line.startswith("|")} == {6}
    assert "win rate" not in plain
