"""The design's table of targets: what jobs leave behind is collected, judged and written, whatever becomes of a job."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRITES = (
    "import json, os, pathlib; pathlib.Path(os.environ['SANA_BENCH_RESULTS'], '{}.json').write_text(json.dumps({}))"
)


@pytest.fixture
def bench(monkeypatch):
    """A function that imports a script of bench/."""
    monkeypatch.syspath_prepend(ROOT / "bench")
    return importlib.import_module


@pytest.fixture
def table(bench):
    return bench("design_table")


@pytest.fixture
def setting(bench, tmp_path):
    return bench("design_jobs").Setting(tmp_path / "work")


def race(**seconds):
    """Figures as `cpu_race.report` writes them; each contender's rounds."""
    results = {name.replace("_", " "): {"runs": {"wall": times}} for name, times in seconds.items()}
    return {"results": results, "depth": 28, "size": 512}


def done(**figures):
    figures = {name.replace("_", "-"): found for name, found in figures.items()}
    when = {"commit": "abc", "at": "2030-01-02 03:04 UTC", "seconds": 60.0, "load": [0.0, 1.0]}
    return {"state": "done", "commands": ["python x"], **when, "figures": figures}


def document(jobs):
    machine = {"processor": "P", "cores": 2, "instructions": ["avx512f"], "busy": [0, 0, 0]}
    about = {"command": "python x", "date": "2030-01-02", "commit": "abc", "quick": False}
    return {**about, "machine": machine, "versions": {"torch": "2"}, "jobs": jobs}


def row(page, begins):
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {begins}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_target_is_met_if_medians_and_shortest_runs_meet_it(table):
    kinds = {"diffusers_fp32": [4.0, 6.0, 5.0], "diffusers_bf16": [2.6, 2.6, 1.2], "ours_bf16": [1.0, 2.0, 1.0]}
    page = table.table(document({"step": done(cpu_step=race(**kinds))}))
    *_, measured, met, job = row(page, "DiT step, bf16 products")
    assert measured == "diffusers fp32 5 (4) times; diffusers bf16 2.6 (1.2) times"
    assert (met, job) == ("yes; by medians only", "step")


def test_the_share_of_the_best_product_takes_the_best_of_both_races(table):
    step = race(int8_products_alone=[0.28, 0.56], ours_int8=[0.4, 0.4])
    limits = race(int8_products_alone=[0.02, 0.03])
    page = table.table(document({"step": done(cpu_step=step), "limits": done(cpu_limits=limits)}))
    assert row(page, "INT8 throughput")[2:4] == ["everything between products included 70 (70) %", "yes"]


def test_the_fastest_form_of_a_peer_comes_first_and_counts(table):
    forms = {"optimum-intel a": [3.0], "optimum-intel b": [1.4], "ours int8": [1.0]}
    page = table.table(document({"optimum": done(cpu_step_optimum=race(**forms))}))
    measured, met = row(page, "… against optimum-intel")[2:4]
    assert measured.startswith("optimum-intel b 1.4 (1.4) times")
    assert met == "no; yes"


def test_a_row_whose_job_did_not_run_or_failed_says_why(table):
    contender = {"results": {"diffusers fp32": {"error": "MemoryError: no | none"}}}
    jobs = {
        "build": {"state": "not run", "why": "give --model"},
        "decode": {"state": "failed", "why": "cpu_parts.py ended with 1"},
        "step": done(cpu_step=contender),
    }
    page = table.table(document(jobs))
    assert row(page, "build")[2:4] == ["not run: give --model", "-"]
    assert row(page, "decode 512², bf16")[2:4] == ["failed: cpu_parts.py ended with 1", "-"]
    assert row(page, "DiT step, bf16")[2:4] == ["failed: diffusers fp32: MemoryError: no / none", "-"]
    assert row(page, "start-up |")[2:4] == ["not run: left out", "-"]


def test_every_job_is_in_some_row_and_every_row_has_known_jobs(bench):
    named = {name for each in bench("design_rows").ROWS for name in each.jobs}
    assert named == set(bench("design_jobs").JOBS)


def test_every_script_that_a_job_runs_is_there(bench, tmp_path):
    jobs = bench("design_jobs")
    for job in jobs.JOBS.values():
        for command in job.commands(jobs.Setting(tmp_path, tmp_path / "model")):
            assert (ROOT / command[1]).is_file() or command[0].endswith("sana-export")


def test_a_job_leaves_figures_that_do_not_tell_where_folders_lie(table, bench, setting):
    jobs = bench("design_jobs")
    setting = jobs.Setting(setting.work, model=Path("/some/where"))
    program = WRITES.format("found", {"from": "/some/where/tokenizer", "at": str(ROOT / "out")})
    job = jobs.Job("found", lambda _: [(sys.executable, "-c", program, "/some/where")], ("found",))
    record = table.run(job, setting)
    assert record["state"] == "done", record["why"]
    assert record["figures"] == {"found": {"from": "MODEL/tokenizer", "at": "out"}}
    assert record["commands"][0].startswith("python")
    assert "/some/where" not in json.dumps(record)


def test_a_job_that_ends_badly_tells_its_last_line(table, bench, setting):
    job = bench("design_jobs").Job("bad", lambda _: [(sys.executable, "-c", "raise SystemExit('no room')")], ("x",))
    record = table.run(job, setting)
    assert record["state"] == "failed"
    assert record["why"].endswith("ended with 1: no room")


def test_a_job_that_leaves_no_figures_failed(table, bench, setting):
    job = bench("design_jobs").Job("silent", lambda _: [(sys.executable, "-c", "pass")], ("x",))
    assert table.run(job, setting)["state"] == "failed"


def test_what_was_done_today_on_this_machine_is_kept(table, tmp_path):
    now = {**done(), "at": table._now()}
    jobs = {"step": now, "text": now, "limits": done(), "decode": {"state": "failed", "why": "x"}}
    known = document(jobs)
    table.write(known, tmp_path)
    file = tmp_path / "design-table.json"
    busy = {**known["machine"], "busy": [9, 9, 9]}
    assert set(table.kept(file, busy, again=["text"])) == {"step"}  # "limits" is of another day
    assert table.kept(file, {**busy, "cores": 64}, again=[]) == {}
    assert (tmp_path / "design-table.md").read_text() == table.table(known)
