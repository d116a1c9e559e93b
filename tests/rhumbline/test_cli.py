"""The command line: what it prints, its exit codes, and what it must not import."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rhumbline import __version__, config, doctor, probe, recipes, runs
from rhumbline.cli import app, main, user_errors
from rhumbline.errors import ConfigError, RhumblineError, RunError, StoreError, TrainingError, UserError
from rhumbline.store import RunStore

RECIPE = """\
# A recipe
# of the tests: it names rules only. More words.
name: tiny
rewards:
  sources: [{kind: rules, heads: {length: {rule: verbosity}, brief: {rule: verbosity}}}]
  objectives:
    verbosity: {heads: {length: 1.0}}
    brevity: {heads: {brief: -1.0}}
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one recipe; nothing of this machine's checkout or cluster is seen."""
    folder = tmp_path / "jobs/recipes"
    folder.mkdir(parents=True)
    (folder / "tiny.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipes, "_CHECKOUT", tmp_path)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RHUMBLINE_RUNS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def lines(*args: str) -> list[str]:
    result = CliRunner().invoke(app, list(args), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


# --- start-up ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args", [["--help"], ["recipes", "--help"], ["recipes", "ls"], ["runs", "ls"], ["doctor", "--help"]]
)
def test_light_commands_import_no_torch_ray_or_transformers(args: list[str]) -> None:
    code = (
        "import sys\nfrom rhumbline.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as e:\n    assert e.code in (0, None), e.code\n"
        "heavy = {'torch', 'ray', 'transformers', 'vllm', 'datasets', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_help_as_a_program_names_every_command() -> None:
    command = [sys.executable, "-m", "rhumbline.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    for name in ("doctor", "recipes", "data", "runs", "--version"):
        assert name in done.stdout


def test_version() -> None:
    assert lines("--version") == [__version__]


# --- recipes ----------------------------------------------------------------------------------------------------------


def test_recipes_ls_gives_name_and_first_sentence(checkout: Path) -> None:
    (checkout / "jobs/recipes/bare.yaml").write_text("name: bare\n")
    assert [line.split(maxsplit=1) for line in lines("recipes", "ls")] == [
        ["bare"],
        ["tiny", "A recipe of the tests: it names rules only"],
    ]


def test_recipes_show_as_written_and_resolved(checkout: Path) -> None:
    assert "\n".join(lines("recipes", "show", "tiny")) == RECIPE.rstrip("\n")
    resolved = config.validate(yaml.safe_load("\n".join(lines("recipes", "show", "tiny", "samples=3"))), "x")
    assert (resolved.samples, resolved.learner.lr) == (3, config.Learner().lr)


def test_recipes_check_says_ok(checkout: Path) -> None:
    (line,) = lines("recipes", "check", "jobs/recipes/tiny.yaml", "seed=5")
    assert line.startswith("OK")
    assert "verbosity, brevity" in line


def test_recipes_check_looks_at_what_a_search_and_a_soup_run(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "grpo.yaml").write_text(RECIPE + "job: grpo\n")
    (checkout / "search.yaml").write_text(
        "job: sweep\nrecipe: grpo.yaml\nspace: {grpo.advantage: {values: [standardised, centered]}}\n"
    )
    assert "Did you mean 'centred'" in fails(capsys, "recipes", "check", "search.yaml")
    assert lines("recipes", "check", "search.yaml", "space={}", "space={seed: {values: [1, 2]}}")[0].startswith("OK")
    objectives = "{a: {heads: {liked: 1}}, b: {heads: {liked: -1}}}"
    network = f"rewards: {{sources: [{{kind: network, path: rewards/liked}}], objectives: {objectives}}}"
    (checkout / "grpo.yaml").write_text(f"name: tiny\njob: grpo\n{network}\n")
    said = lines("recipes", "check", "search.yaml", "space={}", "space={seed: {values: [1, 2]}}")
    assert said[1:] == lines("recipes", "check", "grpo.yaml")[1:]
    assert said[1:] == ["not on this machine, and needed where the job runs: rewards/liked"]
    (checkout / "grpo.yaml").write_text(RECIPE + "job: grpo\n")
    (checkout / "soup.yaml").write_text(RECIPE + "job: soups\ninitial: {strategy: none}\ntrain: nowhere.yaml\n")
    assert "recipe not found: nowhere.yaml" in fails(capsys, "recipes", "check", "soup.yaml")
    assert lines("recipes", "check", "soup.yaml", "train=grpo.yaml")[0].startswith("OK")


def test_recipes_of_reward_models_are_listed_shown_and_checked(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout / "jobs/recipes/rewards").mkdir()
    (checkout / "jobs/recipes/rewards/liked.yaml").write_text(
        "# What people liked.\nname: liked\nkind: preference\ncomparisons: {x: {path: x.jsonl, licence: CC0}}\n"
    )
    assert [line.split(maxsplit=1)[0] for line in lines("recipes", "ls")] == ["tiny", "rewards/liked"]
    assert lines("recipes", "check", "rewards/liked")[0].endswith("liked, preference, heads preference")
    shown = yaml.safe_load("\n".join(lines("recipes", "show", "rewards/liked", "network.max_tokens=640")))
    assert (shown["network"]["max_tokens"], shown["loss"]["centring"]) == (640, 0.0)
    message = fails(capsys, "recipes", "check", "rewards/liked", "loss.centering=0.1")
    assert "loss.centering" in message
    assert "'centring'" in message
    (checkout / "odd.yaml").write_text("kind: preference\ncomparison: {}\n")
    assert "unknown key comparison" in fails(capsys, "recipes", "check", "odd.yaml", "name=odd")
    rated = "name: r\nkind: absolute\nabsolute: {weights: w9}\nratings: {x: {path: x, licence: CC0, heads: {quality: {}}}}\n"
    (checkout / "rated.yaml").write_text(rated)
    assert "absolute.weights: unknown weighting 'w9'" in fails(capsys, "recipes", "check", "rated.yaml")
    assert "Did you mean 'rewards/liked'" in fails(capsys, "recipes", "check", "rewards/like")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["tiny", "learner.lrr=1e-5"], "learner.lrr.* Did you mean 'lr'"),
        (["tiny", "samples=-1"], "samples"),
        (["tiny", "directions.codec=dpa-int10"], "Did you mean 'dpa-int100'"),
        (["tiny", "directions.codec=signs", "directions.codec_options={high.verbosity: 0.5}"], "lies outside -1..0.5"),
        (["tiny", "rewards.objectives.brevity.heads={breif: -1.0}"], "gives the head 'breif'.* Did you mean 'brief'"),
        (["tiny", "rewards.sources=[{kind: rules, heads: {length: {rule: verbosty}}}]"], "unknown rule 'verbosty'"),
        (["tinny"], "Did you mean 'tiny'"),
        (["nowhere/tiny.yaml"], "recipe not found: nowhere/tiny.yaml"),
    ],
)
def test_recipes_check_refuses_with_one_message(
    checkout: Path, capsys: pytest.CaptureFixture[str], args: list[str], expected: str
) -> None:
    message = fails(capsys, "recipes", "check", *args)
    assert pytest.raises(UserError, match=expected).matches(UserError(message))
    assert message.startswith("error: ")


def test_the_folder_one_stands_in_comes_before_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, title in (("here", "mine"), ("there", "theirs")):
        (tmp_path / name / "jobs/recipes").mkdir(parents=True)
        (tmp_path / name / "jobs/recipes/a.yaml").write_text(f"# {title}\n")
    (tmp_path / "there/jobs/recipes/b.yaml").write_text("# only there\n")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(recipes, "_CHECKOUT", tmp_path / "there")
    assert [(e.name, e.title) for e in recipes.available()] == [("a", "mine"), ("b", "only there")]
    assert recipes.find("b") == tmp_path / "there/jobs/recipes/b.yaml"
    with pytest.raises(ConfigError, match="Known: a, b"):
        recipes.find("zzz")


# --- data -------------------------------------------------------------------------------------------------------------


def test_data_inspect_counts_and_renders(checkout: Path) -> None:
    rows = [{"prompt": "Why?", "response": "Because."}, {"prompt": "Why?", "response": "Because."}]
    (checkout / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = "\n".join(lines("data", "inspect", "d.jsonl", "--tokenizer", "none"))
    assert "rows         2" in text
    assert "duplicates   1" in text
    assert "Because." in text


def test_data_inspect_refuses_a_missing_and_an_empty_file(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "empty.jsonl").write_text("")
    assert "empty.jsonl" in fails(capsys, "data", "inspect", "empty.jsonl", "--tokenizer", "none")
    assert "not found" in fails(capsys, "data", "inspect", "gone.jsonl", "--tokenizer", "none")


# --- runs -------------------------------------------------------------------------------------------------------------


def test_runs_of_every_state(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = config.load("jobs/recipes/tiny.yaml")
    store = RunStore.create("runs", recipe, resume=False)
    store.heartbeat("iterations/t=1/rollouts", done=3, total=10)
    (line,) = lines("runs", "ls")
    assert line.split()[:2] == ["tiny", "running"]
    assert "iterations/t=1/rollouts done=3 total=10" in line
    store.close("failed", "boom")
    text = "\n".join(lines("runs", "show", "tiny"))
    assert "failed: boom" in text
    assert "--resume" in text
    assert "Did you mean 'tiny'" in fails(capsys, "runs", "show", "tinyy")


def test_a_run_whose_heartbeat_stopped_is_stale(checkout: Path) -> None:
    run = checkout / "runs/dead"
    run.mkdir(parents=True)
    (run / "recipe.resolved.yaml").write_text(RECIPE)
    (run / "status.json").write_text(
        json.dumps({"state": "running", "stage": "learn", "heartbeat": time.time() - 7200})
    )
    assert runs.read(run).state == "stale"
    assert lines("runs", "ls")[0].split()[:2] == ["dead", "stale"]
    assert "2 h ago" in lines("runs", "ls")[0]


def test_runs_show_gives_shards_once_and_results(checkout: Path) -> None:
    run = checkout / "runs/r"
    (run / "report").mkdir(parents=True)
    (run / "checkpoints/t=1").mkdir(parents=True)
    (run / "recipe.resolved.yaml").write_text(RECIPE)
    shard = {"stage": "iterations/t=1/scores", "index": 0, "file": "f", "rows": 1000, "sha256": "0"}
    other = {**shard, "index": 1, "rows": 500}
    (run / "ledger.jsonl").write_text("".join(json.dumps(e) + "\n" for e in (shard, other, {**shard, "rows": 900})))
    (run / "report/summary.json").write_text(
        json.dumps(
            {
                "reference_point": {"helpfulness": 40.0, "verbosity": 5.0},
                "iterations": [
                    {
                        "t": 1,
                        "hypervolume": {"value": 1234.5, "low": 1200.0, "high": 1300.0},
                        "directions": [{}, {}, {}],
                        "length_ratio": {"value": None, "low": None, "high": None},
                        "spearman": {"verbosity": {"value": 0.964, "low": None, "high": None}},
                    }
                ],
            }
        )
    )
    text = "\n".join(lines("runs", "show", "r"))
    assert "iterations/t=1/scores: 2 shards, 1,400 rows" in text  # the shard made again counts with its last size
    assert "checkpoints t=1" in text
    assert "t=1         3 directions; hypervolume 1234 [1200, 1300]; Spearman verbosity 0.964" in text
    assert "reference point helpfulness 40, verbosity 5" in text


def test_iterations_are_shown_in_their_order(checkout: Path) -> None:
    run = checkout / "runs/r"
    (run / "evaluation").mkdir(parents=True)
    (run / "recipe.resolved.yaml").write_text(RECIPE)
    for t in (10, 2, 1):
        (run / f"checkpoints/t={t}").mkdir(parents=True)
        (run / f"evaluation/t={t}.json").write_text(json.dumps({"t": t, "directions": []}))
    shards = [{"stage": f"iterations/t={t}/scores", "index": 0, "rows": 1} for t in (10, 2)]
    (run / "ledger.jsonl").write_text("".join(json.dumps(shard) + "\n" for shard in shards))
    text = lines("runs", "show", "r")
    assert "checkpoints t=1, t=2, t=10" in text
    assert [line.split()[1] for line in text if line.startswith("done")] == [
        "iterations/t=2/scores:",
        "iterations/t=10/scores:",
    ]
    assert [line.split()[0] for line in text if line.startswith("t=")] == ["t=1", "t=2", "t=10"]


def test_runs_ls_and_show_where_there_are_none(checkout: Path) -> None:
    assert CliRunner().invoke(app, ["runs", "ls"]).exit_code == 0
    with pytest.raises(RunError, match="no run at runs/x"):
        list(runs.describe(Path("runs/x")))


# --- doctor -----------------------------------------------------------------------------------------------------------


def found(name: str) -> doctor.Finding:
    return next(f for f in doctor.examine() if f.name == name)


def test_doctor_knows_this_environment(checkout: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"], catch_exceptions=False)
    document = json.loads(result.output)
    by_name = {f["name"]: f for f in document["findings"]}
    assert by_name["torch"]["value"] == probe.installed("torch")
    assert by_name["ray"]["level"] == "ok"
    assert document["ok"] is not any(f["level"] == "problem" for f in document["findings"])
    assert result.exit_code == (0 if document["ok"] else 1)


def test_doctor_finds_a_shadowed_platform(checkout: Path) -> None:
    (checkout / "platform").mkdir()
    (checkout / "platform/__init__.py").touch()
    assert found("layout").level == "problem"
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1


def test_doctor_finds_a_version_outside_the_requirements(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = probe.installed
    monkeypatch.setattr(probe, "installed", lambda name: "1.0" if name == "torch" else real(name))
    assert found("torch").level == "problem"
    assert ">=2.13" in found("torch").value


def test_doctor_finds_an_unreachable_cluster_that_was_asked_for(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")  # the discard port: nothing listens
    assert found("ray cluster").level == "problem"
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert found("ray cluster").level == "problem"
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(doctor, "DASHBOARD", "http://127.0.0.1:9")
    assert found("ray cluster").level == "note"  # nobody asked for one


@pytest.mark.parametrize(
    ("version", "level"), [(probe.installed("ray"), "ok"), ("1.0.0", "problem")], ids=["same", "another"]
)
def test_doctor_compares_the_clusters_ray_with_ours(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, version: str, level: str
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://head:8265")
    answers = {
        "http://head:8265/api/version": {"ray_version": version},
        "http://head:8265/api/cluster_status": {
            "data": {"clusterStatus": {"loadMetricsReport": {"usage": {"CPU": [1.0, 8.0], "memory": [0, 1]}}}}
        },
    }
    monkeypatch.setattr(probe, "get_json", answers.__getitem__)
    assert found("ray cluster").level == level
    assert version in found("ray cluster").value
    assert ("8 CPU" in found("ray cluster").value) == (level == "ok")


def test_no_cluster_is_a_users_error_and_a_lost_connection_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, user_errors():
        raise ConnectionError("no Ray cluster answers at 10.0.0.1:6379")
    assert ended.value.code == 2
    assert "no Ray cluster answers" in capsys.readouterr().err
    with pytest.raises(ConnectionResetError), user_errors():
        raise ConnectionResetError("an hour later")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreError("the disk is full"), 1),
        (TrainingError("step 3: the loss of 8 answers is nan. Lower learner.lr"), 1),
        (ConfigError("seed: give an int"), 2),
    ],
    ids=str,
)
def test_a_stop_that_was_meant_is_one_message(
    capsys: pytest.CaptureFixture[str], error: RhumblineError, code: int
) -> None:
    with pytest.raises(SystemExit) as ended, user_errors():
        raise error
    assert ended.value.code == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_what_nobody_foresaw_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), user_errors():
        raise ZeroDivisionError("x")
