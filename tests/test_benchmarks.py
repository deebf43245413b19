"""The benchmarks run, and what they keep has the shape that readers of `benchmarks/results` rely on."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import catalogue, detect, journal, peers, ray, tools, trial, watch, work
from benchmarks.detect import Case
from benchmarks.peers import Side, Skipped, _reason, compare, environment, figures
from benchmarks.tools import COPIES, TOOLS, Tool, serve
from benchmarks.work import Copy, Work, named
from relume.pace import Pace

KEPT = Path(__file__).parents[1] / "benchmarks" / "results"
TINY = named("tiny MLP 64-64-64-10, batch 32")
RELUME = TOOLS[0]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Benchmarks set torch's threads for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def kept(name: str) -> dict[str, Any]:
    return json.loads((KEPT / name).read_text())


def run(bench: Any, path: Path, *arguments: str) -> dict[str, Any]:
    """What the benchmark writes, were `path` the file of its results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "RESULTS", path)
        bench.main(arguments, standalone_mode=False)
    return json.loads(path.read_text())


# what other tools cost --------------------------------------------------------------------------------------------


def answers(seconds: tuple[float, float, float], steps: int = 10) -> dict[str, Any]:
    return {"steps": steps, **dict(zip(COPIES, seconds, strict=True))}


def test_a_row_out_of_answers_whose_ratios_are_known() -> None:
    """Of 20 steps at 1 s and, under the tool, 3 s in one turn and 5 s in another: 4 times a step; the start counts."""
    turns = [answers((10.0, 10.0, 30.0)), answers((10.0, 12.0, 55.0))]
    row = figures({"version": "1.2", "start": 3.0}, turns)
    assert row["steps"] == 20 and row["step_ms"] == 1000 and row["version"] == "1.2" and row["start_ms"] == 3000
    assert row["with_over_without"] == pytest.approx((30 + 55 + 3) / 21)
    assert row["without_over_without"] == pytest.approx(22 / 20)
    assert figures({"version": "1", "start": 0.0}, turns[:1])["quartiles_of_turns"] == [3.0, 3.0, 3.0]


def test_a_tool_sees_each_step_of_its_copy_and_changes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three copies of a training the tool has one; all take the same steps from one start on the same batches."""
    made: list[Copy] = []
    seen: list[float] = []

    class Kept(Copy):
        def __init__(self, work: Work) -> None:
            super().__init__(work)
            made.append(self)

    def attach(model: nn.Module, optimizer: Any) -> tools.Step:
        step = tools.plain(model, optimizer)
        return lambda x, y: (seen.append(float(x.sum())), step(x, y))

    monkeypatch.setattr(tools, "Copy", Kept)
    process = serve(Tool(name="torch", attach=attach), TINY, ["3", "4"])
    assert set(next(process)) == {"version", "start"}
    for steps in (3, 4):
        answer = next(process)
        assert answer["steps"] == steps and all(answer[name] > 0 for name in COPIES)
    *_, plain, twin, with_tool = made
    alone = Copy(TINY)
    step = tools.plain(alone.model, alone.optimizer)
    for total in seen:
        x, y = alone.batch()
        assert float(x.sum()) == total
        step(x, y)
    assert len(seen) == 7
    for copy in (plain, twin, with_tool):
        assert all(torch.equal(a, b) for a, b in zip(copy.model.parameters(), alone.model.parameters(), strict=True))


def test_relume_beside_tools_that_do_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Processes take turns until all steps are done; a tool that its process does not know is skipped, and why."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = compare([TINY], 30, (RELUME, Tool(name="nobody", attach=tools.plain)))
    row, reason = found["rows"][TINY.name]["relume"], found["rows"][TINY.name]["nobody"]
    assert row["steps"] == 30 and row["step_ms"] > 0 and row["with_over_without"] > 0
    assert reason == {"skipped": "nobody does not run: StopIteration"}
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in printed if line.startswith(f"| {TINY.name} |")]
    assert [line.count("|") for line in rows] == [printed[1].count("|")] * 2
    assert found["installed"] == {}


def test_a_process_that_ends_in_mid_run_is_skipped(tmp_path: Path) -> None:
    """A tool that fails at a later step says so with the error that it printed."""
    side = Side(RELUME, Path(sys.executable), TINY, tmp_path)
    side.take(2)
    assert side.seconds > 0 and [turn["steps"] for turn in side.turns] == [2]
    with pytest.raises(Skipped, match=r"^relume does not run: ValueError: invalid literal"):
        side.take("many")  # type: ignore[arg-type]
    side = Side(RELUME, Path(sys.executable), TINY, tmp_path)
    side._process.kill()
    side._process.wait()
    with pytest.raises(Skipped, match=r"^relume does not run: it ended"):  # to write to it is no error of another kind
        side.take(2)


def test_who_takes_too_long_does_fewer_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process past the limit has no further turn, and its row says of how many steps it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(peers, "LONGEST", 0.0)
    assert compare([TINY], 60, (RELUME,))["rows"][TINY.name]["relume"]["steps"] == peers.TURN


def test_a_package_that_cannot_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is pip's own, and nothing is taken for installed."""
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    absent = Tool(name="absent", attach=tools.plain, package="relume-absent==1")
    with pytest.raises(Skipped, match=r"^relume-absent==1 cannot be installed: ERROR: No matching distribution"):
        environment(absent, tmp_path)
    assert not (tmp_path / "absent" / "made-of").exists()
    assert _reason("") == "it ended" and _reason("one\n  two\n") == "two" and _reason("An Error\nbye") == "An Error"


def test_each_environment_is_of_one_tool_without_its_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip gets torch as it is here with what the tool wants, then the tool alone; once made, it is taken as it is."""
    ran: list[list[str]] = []

    class Done:
        returncode = 0

    def run(command: Any, env: dict[str, str], **rest: Any) -> Done:
        ran.append([str(part) for part in command])
        assert env["PYTHONPATH"] == str(peers.ROOT)
        (tmp_path / "cockpit").mkdir(exist_ok=True)
        return Done()

    monkeypatch.setattr(peers.subprocess, "run", run)
    tool = next(tool for tool in TOOLS if tool.name == "cockpit")
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    python = environment(tool, tmp_path)
    assert python == tmp_path / "cockpit" / "bin" / "python"
    _, first, second = ran
    assert f"torch=={torch.__version__.partition('+')[0]}" in first and set(tool.wants) <= set(first)
    assert first[0] == second[0] == str(python) and second[-2:] == ["--no-deps", tool.package]
    assert not any(tool.package in part for part in first)
    environment(tool, tmp_path)
    assert len(ran) == 3
    environment(replace(tool, package="cockpit-for-pytorch==1.0.3"), tmp_path)
    assert len(ran) == 6
    assert environment(RELUME, tmp_path) == Path(sys.executable) and len(ran) == 6


# what watching costs ----------------------------------------------------------------------------------------------


def test_the_bench_of_watching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One network, alone and on two processes: each row has its figures, and the peers of an earlier run stay."""
    monkeypatch.setattr(watch, "WORKS", (TINY, TINY))
    monkeypatch.setattr(watch, "RANKED", (TINY,))
    monkeypatch.setattr(watch, "PROFILE", tmp_path / "profile.txt")
    (tmp_path / "watch.json").write_text(json.dumps({"rows": {}, "peers": {"rows": {"old": {}}}}))
    found = run(watch, tmp_path / "watch.json", "--steps", "30")
    assert found["command"] == "./dev bench watch --steps 30" and found["peers"] == {"rows": {"old": {}}}
    assert list(found["rows"]) == [TINY.name, f"ddp2: {TINY.name}"]
    for row in found["rows"].values():
        assert row["steps"] == 30 and row["readings"] > 0 and row["watched_sites"] == row["sites"] == 2
        assert row["watched_over_unwatched"] > 0 and row["wall_over_unwatched"] > 0
    assert "recorder.py" in (tmp_path / "profile.txt").read_text()


def test_every_process_of_a_ddp_row_is_one_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are means over the ranks, and what is counted is not averaged."""
    rows = [{"steps": 5, "step_ms": 1.0}, {"steps": 5, "step_ms": 2.0}]

    def spawned(function: Any, args: tuple[int, str, str, int], nprocs: int) -> None:
        assert function is watch._rank and args[0] == nprocs == 2 and args[2:] == (TINY.name, 5)
        for rank in range(nprocs):
            Path(args[1], f"{rank}.json").write_text(json.dumps(rows[rank]))

    monkeypatch.setattr(watch, "spawn", spawned)
    assert watch.measure_ranks(TINY, 5) == {"steps": 5, "step_ms": 1.5}


def test_the_bench_of_journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size in an hour is that of the readings and losses that were measured, as often as the hour has them."""
    monkeypatch.setattr(journal, "WORKS", (replace(TINY, steps=600),))
    row = run(journal, tmp_path / "journal.json")["rows"][TINY.name]
    assert row["units"] == 128 and row["readings"] > 1
    a_reading = row["bytes_per_unit_and_reading"] * row["units"] / 1e6
    losses = round(3.6e6 / row["step_ms"]) * row["bytes_per_step"] / 1e6
    for hour in journal.HOURS:
        expected = row[f"readings_in_hour_{hour}"] * a_reading + losses
        assert row[f"MB_in_hour_{hour}"] == pytest.approx(expected)
    assert set(row) == set(kept("journal.json")["rows"][TINY.name])


def test_the_part_of_a_table_in_a_journal_is_its_rows(tmp_path: Path) -> None:
    """Ten thousand blobs of a thousand bytes take ten megabytes of a file, give or take a page for each few."""
    path = tmp_path / "file"
    file = journal.sqlite3.connect(path)
    file.execute("CREATE TABLE loss (value BLOB)")
    file.execute("CREATE TABLE reading (value BLOB)")
    file.executemany("INSERT INTO loss VALUES (?)", [(bytes(1000),)] * 10_000)
    file.executemany("INSERT INTO reading VALUES (?)", [(bytes(1000),)] * 1000)
    file.commit()
    file.close()
    assert journal.without(path, "loss") == pytest.approx(1e7, rel=0.05)
    assert journal.without(path, "reading") == pytest.approx(1e6, rel=0.05)


def test_readings_of_a_long_run_are_those_that_their_spacing_allows() -> None:
    """Where cost is no matter they are 1/500 of the steps done apart: from s to t there are 500 log(t / s), at most."""
    pace = Pace(1.0)
    pace.ordinary(1.0)
    for _ in range(3):
        pace.read(1.0, 1e-9)
    found, last = journal.follow(pace, 20_000, 800_000, 1e-9, 0.0)
    assert found == pytest.approx(500 * math.log(800_000 / 20_000), rel=0.01)
    assert 798_000 < last <= 800_000
    dear = Pace(0.01)
    dear.ordinary(1.0)
    for _ in range(3):
        dear.read(1.0, 6.0)
    assert journal.follow(dear, 20_000, 120_000, 6.0, 0.0)[0] == pytest.approx(100_000 * 0.006 / 6, rel=0.01)


# the others -------------------------------------------------------------------------------------------------------


def test_the_bench_of_detection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that is killed and one that is not make a row each, and the totals are their sums."""
    some = [Case(way=way, optimizer="Adam", seed=0) for way in ("bias", "none")]
    monkeypatch.setattr(detect, "cases", lambda seeds: some)
    found = run(detect, tmp_path / "detect.json", "--seeds", "1")
    assert found["totals"] == {"runs": 2, "died": 1, "told": 1, "within_60": 1, "false": 0}
    assert set(found) == set(kept("detect.json"))
    assert {frozenset(row) for row in found["rows"]} == {frozenset(row) for row in kept("detect.json")["rows"]}


def test_the_bench_of_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All three means try every arm, and say what became of each."""

    def here(*asked: Any) -> dict[str, Any]:
        trial.one(json.dumps(asked))
        return {"load_before": 0.0, **json.loads(capsys.readouterr().out.splitlines()[-1])}

    monkeypatch.setattr(trial, "timed", here)
    monkeypatch.setattr(trial, "WORKS", {"mlp": (0.01,)})
    monkeypatch.setattr(trial, "CANDIDATES", {**trial.CANDIDATES, "relume": trial.GAINS["one process, in memory"]})
    found = run(trial, tmp_path / "trial.json", "--no-gains", "--seeds", "2", "--steps", "3")
    works, before = found["works"]["mlp, rate 0.01"], kept("trial.json")["works"]["mlp, rate 0.01"]
    for name in ("user", "indexed", "relume"):
        assert set(works[name][0]) == set(before[name][0])
    arms = set(trial.FAMILIES)
    assert set(works["user"][0]["scores"]) == set(works["indexed"][0]["scores"]) <= arms | {"untreated"}
    assert arms <= set(works["relume"][0]["verdicts"])


def test_the_bench_of_ray(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What is timed beside Ray runs, and its verdicts are those of this process. Ray itself: `tests/test_ray.py`."""
    monkeypatch.setattr(ray, "ENGINES", ("processes",))
    ray.main(["--quick"], standalone_mode=False)
    head, row, told = capsys.readouterr().out.splitlines()
    assert "start, s" in head and row.startswith("processes") and told.endswith("True")


def test_the_bench_of_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate of a row has three quartiles, in order, forward and with its backward pass."""
    rows = catalogue.candidates()
    monkeypatch.setattr(catalogue, "candidates", lambda: {name: rows[name] for name in ("relu", "star_relu")})
    monkeypatch.setattr(catalogue, "RESULTS", tmp_path / "catalogue.json")
    monkeypatch.setattr(sys, "argv", ["catalogue", "--elements", "1e4", "--rounds", "3"])
    catalogue.main()
    found, before = json.loads((tmp_path / "catalogue.json").read_text())["1e+04"], kept("catalogue.json")["1e+06"]
    assert set(found) == set(before) and set(found["milliseconds"]) == {"relu", "star_relu"}
    for name, parts in found["milliseconds"].items():
        assert set(parts) == set(before["milliseconds"][name])
        for times in parts.values():
            assert set(times) == {"forward", "both"} and all(t == sorted(t) and t[0] > 0 for t in times.values())


def test_works_are_what_the_issue_names() -> None:
    """The networks of the budget: how many units each watched site has, and how many there are."""
    sizes = {one.name: sum(p.numel() for p in one.model().parameters()) for one in work.WORKS}
    assert sizes[TINY.name] == 2 * (64 * 64 + 64) + 650
    assert list(sizes.values())[1] == 784 * 512 + 3 * 512 * 512 + 4 * 512 + 5130


def test_the_guide_has_what_was_measured_last() -> None:
    """The tables of other tools, of two processes and of journals are those of the results, with date and command."""
    guide = (KEPT.parents[1] / "docs" / "guide" / "cost.md").read_text()
    watched, journals = kept("watch.json"), kept("journal.json")
    others = watched["peers"]
    assert f"Measured on {others['date']} by\n`{others['command']}`" in guide
    for name, row in others["rows"].items():
        for tool in TOOLS:
            assert peers.line(name, tool.name, row[tool.name]) in guide
    assert f"Measured on {journals['date']}\n" in guide and f"`{journals['command']}`" in guide
    for name, row in journals["rows"].items():
        assert f"| {name} | {row['units']} | {row['bytes_per_unit_and_reading']:.0f} bytes |" in guide
        assert (
            f"| {row['readings_in_hour_1']} | {row['MB_in_hour_1']:.3g} MB | {row['MB_in_hour_10']:.3g} MB |" in guide
        )
    for ranked in watch.RANKED:
        row = watched["rows"][f"ddp2: {ranked.name}"]
        assert f"| ddp2: {ranked.name} | {row['steps']} | {row['step_ms']:.3g} ms |" in guide
        assert f"{row['watched_over_unwatched']:.3f} |" in guide and f"{row['wall_over_unwatched']:.3f} |" in guide
