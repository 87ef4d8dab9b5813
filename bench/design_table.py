"""Measure every row of the design's table of targets in one run, and write the table.

    python bench/design_table.py [--model FOLDER] [--rows NAME …] [--skip NAME …] [--resume] [--quick]      make bench

Every job is a script of this folder in a process of its own; names are those of `design_jobs.py`. FOLDER is what
`full_size_folder.py` wrote: without it nothing is built. A job that fails says why, and the others go on. `--resume`
keeps what was measured on this machine today, but for jobs that --rows names. `--quick` tries everything at tiny sizes
and writes to out/bench. Writes docs/measurements/design-table.json and .md. Linux only.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import cpu_race
from design_jobs import JOBS, Command, Job, Setting
from design_rows import ROWS, Row

NAME = "design-table"
WORK = cpu_race.ROOT / "out" / "bench" / NAME
TITLE = """# The design's targets, measured

`{command}` measured this on {date}, commit {commit},
one job after the other. A figure is by medians, and in brackets by the shortest runs; a target is met if it is by both.
What the figures mean stands in [performance.md](../performance.md).

| what | target | measured | met | job |
| --- | --- | --- | --- | --- |
"""
TRIED = "\n**Tried at tiny sizes: these are no measurements.**\n"

Document = dict[str, Any]


def run(job: Job, setting: Setting) -> dict[str, Any]:
    """One job: its figures, or why there are none, and what else is worth knowing."""
    if why := job.missing(setting):
        return {"state": "not run", "why": why}
    commands, began, load = job.commands(setting), time.perf_counter(), os.getloadavg()
    figures, log = setting.work / "figures" / job.name, setting.work / f"{job.name}.log"
    figures.mkdir(parents=True, exist_ok=True)
    for file in figures.iterdir():  # of an earlier run: a script may keep what it finds
        file.unlink()
    record: dict[str, Any] = {
        "commands": [_shown(each, setting) for each in commands],
        "commit": _commit(),
        "at": _now(),
    }
    why = _run_all(commands, log, _environment(setting, figures))
    record |= {"seconds": round(time.perf_counter() - began, 1), "load": [load[0], os.getloadavg()[0]]}
    try:
        found = {name: _figures(figures / f"{name}.json", setting) for name in job.writes}
    except (OSError, ValueError) as error:
        why = why or f"{type(error).__name__}: no figures"
    return {"state": "failed", "why": why, **record} if why else {"state": "done", **record, "figures": found}


def _figures(file: Path, setting: Setting) -> Any:
    return json.loads(_without_places(file.read_text(), setting))


def _run_all(commands: Sequence[Command], log: Path, environment: Mapping[str, str]) -> str:
    """Run commands, what they say into `log`; returns why one failed, or nothing."""
    with log.open("w") as said:
        for command in commands:
            code = subprocess.run(
                command, stdout=said, stderr=subprocess.STDOUT, check=False, env=environment, cwd=cpu_race.ROOT
            ).returncode
            if code:
                last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
                return f"{Path(command[1]).name} ended with {code}: {' '.join(last)[:200]}"
    return ""


def _environment(setting: Setting, figures: Path) -> dict[str, str]:
    """Figures into a folder of the job's own, and caches that are nobody else's."""
    homes = {f"XDG_{kind}_HOME": str((setting.work / kind.lower()).absolute()) for kind in ("CACHE", "DATA")}
    environment = {**os.environ, **homes, "SANA_BENCH_RESULTS": str(figures.absolute())}
    for name in ("SANA_EXPORT_COMPILED", "OMP_NUM_THREADS"):  # each script says for itself what it wants of these
        environment.pop(name, None)
    return environment


def _shown(command: Command, setting: Setting) -> str:
    """A command as one would type it."""
    return _without_places(shlex.join((Path(command[0]).name, *command[1:])), setting)


def _without_places(text: str, setting: Setting) -> str:
    """Text that does not tell where folders lie on this machine."""
    places = ((setting.model, "MODEL"), (setting.tokenizer, "TOKENIZER"), (f"{cpu_race.ROOT}/", ""))
    for place, name in places:
        text = text.replace(str(place), name) if place else text
    return text


def _commit() -> str:
    command = ("git", "rev-parse", "--short", "HEAD")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, cwd=cpu_race.ROOT)
    return done.stdout.strip() or "unknown"


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def kept(file: Path, machine: Mapping[str, Any], again: Sequence[str]) -> dict[str, Any]:
    """Jobs of an earlier run that need no other: done today, on a machine like this, and not asked for `again`."""
    document: Document = json.loads(file.read_text()) if file.is_file() else {}
    if _lasting(document.get("machine", {})) != _lasting(machine):
        return {}
    today = _now().split()[0]
    return {
        name: record
        for name, record in document["jobs"].items()
        if name not in again and record["state"] == "done" and record["at"].startswith(today)
    }


def _lasting(machine: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in machine.items() if name != "busy"}


def cell(row: Row, jobs: Mapping[str, Any]) -> tuple[str, str]:
    """What a row measured, and whether that meets its target."""
    records = [jobs.get(name, {"state": "not run", "why": "left out"}) for name in row.jobs]
    for record in records:
        if record["state"] != "done":
            return f"{record['state']}: {record['why']}", "-"
    try:
        checks = row.read({name: found for record in records for name, found in record["figures"].items()})
    except (KeyError, ValueError, IndexError) as error:
        return f"failed: {error}", "-"
    answers = [check.met for check in checks]
    return "; ".join(check.measured for check in checks), answers[0] if len(set(answers)) == 1 else "; ".join(answers)


def table(document: Document) -> str:
    """The page."""
    jobs, lines = document["jobs"], []
    for row in ROWS:
        measured, met = cell(row, jobs)
        cells = (row.what, row.target, measured, met, ", ".join(row.jobs))
        lines.append(f"| {' | '.join(' '.join(each.replace('|', '/').split()) for each in cells)} |")
    return "\n".join(
        (
            TITLE.format(**document) + "\n".join(lines),
            TRIED if document["quick"] else "",
            _jobs_table(jobs),
            "",
            _machine(document),
            "",
        )
    )


def _jobs_table(jobs: Mapping[str, Any]) -> str:
    head = ("| job | commands | began | seconds | load before, after |", "| --- " * 5 + "|")
    rows = (
        f"| {name} | {'<br>'.join(f'`{each}`' for each in record['commands'])} | {record['at'].split()[1]} "
        f"| {record['seconds']:.0f} | {record['load'][0]:.1f}, {record['load'][1]:.1f} |"
        for name, record in jobs.items()
        if "seconds" in record
    )
    return "\n".join((*head, *rows))


def _machine(document: Document) -> str:
    machine, packages = document["machine"], document["versions"]
    libraries = ", ".join(f"{name} {number}" for name, number in packages.items())
    total = sum(record.get("seconds", 0) for record in document["jobs"].values())
    return (
        f"{machine['processor']}, {machine['cores']} cores, {', '.join(machine['instructions'])}; {libraries}. "
        f"{total / 60:.0f} minutes in all. Load is of the system, over the last minute. "
        f"Every single run stands in [{NAME}.json]({NAME}.json)."
    )


def write(document: Document, folder: Path) -> None:
    """Keep what is known, for programs and as a page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{NAME}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (folder / f"{NAME}.md").write_text(table(document), encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Run what was asked for, and write after each job."""
    chosen = _parsed(arguments)
    setting = Setting(WORK / "quick" if chosen.quick else WORK, chosen.model, chosen.tokenizer, chosen.quick)
    folder = setting.work if chosen.quick else cpu_race.RESULTS
    setting.work.mkdir(parents=True, exist_ok=True)
    machine, again = cpu_race.machine(), chosen.rows or ()
    document: Document = {
        "command": _without_places(shlex.join(("python", "bench/design_table.py", *arguments)), setting),
        "date": _now(),
        "commit": _commit(),
        "quick": chosen.quick,
        "machine": machine,
        "versions": cpu_race.versions(),
        "jobs": kept(folder / f"{NAME}.json", machine, again) if chosen.resume else {},
    }
    for name, job in JOBS.items():
        if name in chosen.skip or (again and name not in again) or name in document["jobs"]:
            continue
        print(f"{_now()} {name} …", flush=True)
        document["jobs"][name] = run(job, setting)
        document["jobs"] = {each: document["jobs"][each] for each in JOBS if each in document["jobs"]}
        told = document["jobs"][name]
        print(f"{name}: {told['state']} {told.get('why', '')} {told.get('seconds', '')}", flush=True)
        write(document, folder)
    print(table(document))


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="Gemma's; the model's unless given")
    parser.add_argument("--rows", nargs="+", choices=JOBS, metavar="NAME")
    parser.add_argument("--skip", nargs="+", choices=JOBS, default=[], metavar="NAME")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
