"""The same work on one or many processes: in order, done again where a worker is lost, ended with its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from corpora import content_of, hub_source, prose

from shard.data import units, workers
from shard.data.adapters import BrokenFile
from shard.data.inventory import Inventory
from shard.data.settings import DataSettings
from shard.data.units import Unit, UnitLedger, prepare_unit
from shard.data.workers import MOST_WORKERS, Workers
from shard.errors import ShardError, UsageError


def square(number: int) -> int:
    return number * number


def slow_at_first(number: int) -> int:
    time.sleep(0.3 if number == 0 else 0)
    return number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise UsageError(f"wrong: {number}")
    return number


def fail_with_a_broken_file(path: str) -> None:
    raise BrokenFile(Path(path), "zeros", 10, 20)


def prepare_or_die(unit: Unit) -> tuple[int, UnitLedger]:
    """At the first try of unit 2, the worker is killed as the kernel does it, between documents and ledger. Every try
    leaves a mark.
    """
    folder = Path(unit.folder).parent
    (folder / f"{unit.number}-{os.getpid()}").touch()
    if unit.number == 2 and len(list(folder.glob("2-*"))) == 1:
        units.write_json = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid(), prepare_unit(unit)


def die(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def note_and_wait(folder: str) -> None:
    Path(folder, str(os.getpid())).write_text("")
    time.sleep(60)


def is_alive(pid: int) -> bool:
    """Neither gone nor a zombie that nobody has asked after yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_one_worker_is_this_process_and_does_a_piece_when_it_is_asked_for() -> None:
    done: list[int] = []
    results = Workers().map(lambda number: done.append(number) or number, range(3))  # which could not be pickled
    assert next(results) == 0 and done == [0]
    assert list(results) == [1, 2]
    assert list(Workers(count=4).map(lambda number: number, [7])) == [7]
    assert list(Workers(count=4).map(square, [])) == []


def test_auto_is_a_process_for_each_processor_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    for processors, expected in ((1, 1), (None, 1), (3, 3), (500, MOST_WORKERS)):
        monkeypatch.setattr(os, "cpu_count", lambda: processors)  # noqa: B023
        assert Workers.auto().count == expected


def test_results_come_in_the_order_of_the_pieces() -> None:
    assert list(Workers(count=2).map(slow_at_first, range(20))) == list(range(20))


def test_what_a_piece_raises_is_raised_after_the_results_before_it() -> None:
    results = Workers(count=2).map(fail_at_three, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UsageError, match=r"^wrong: 3$"):
        next(results)


def test_a_broken_file_is_told_as_it_is() -> None:
    """It has to come through a pipe, with all that it says."""
    with pytest.raises(BrokenFile, match=r"^a\.parquet is broken after row 10, 20 of 30 rows") as caught:
        list(Workers(count=2).map(fail_with_a_broken_file, ["a.parquet", "b.parquet"]))
    assert (caught.value.path, caught.value.rows_read, caught.value.rows_lost) == (Path("a.parquet"), 10, 20)


def test_the_units_of_a_worker_that_was_killed_are_done_again(tmp_path: Path) -> None:
    files = {f"{i}.parquet": prose(f"file {i}", 5) for i in range(6)}
    source = hub_source(tmp_path, files)
    whole, killed = (
        Inventory.take({"web": source}, DataSettings(), 0, tmp_path / name, tmp_path).units["web"]
        for name in ("whole", "killed")
    )
    expected = [prepare_unit(unit) for unit in whole]
    results = list(Workers(count=2).map(prepare_or_die, killed))
    assert [ledger for _, ledger in results] == expected
    assert content_of(tmp_path / "killed/web") == content_of(tmp_path / "whole/web")
    tries = [int(path.name.partition("-")[2]) for path in (tmp_path / "killed").glob("2-*")]
    assert len(tries) == 2 and results[2][0] in tries
    assert os.getpid() not in {pid for pid, _ in results}


def test_a_piece_that_kills_every_worker_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LOST_WORKERS", 1)
    with pytest.raises(ShardError, match=r"lost 2 times, the last one at 0: .*--workers 1") as caught:
        list(Workers(count=2).map(die, range(2)))
    assert "\n" not in str(caught.value)


def own_pid(number: int) -> int:
    time.sleep(0.05)
    return os.getpid()


def test_processes_stay_for_the_next_work_until_they_are_ended() -> None:
    workers = Workers(count=2)
    first, second = set(workers.map(own_pid, range(8))), set(workers.map(own_pid, range(8)))
    assert second <= first and len(first) == 2 and os.getpid() not in first
    workers.close()
    assert not any(map(is_alive, first))
    assert os.getpid() not in set(workers.map(own_pid, range(8)))  # and begin anew where there is more to do
    workers.close()


def test_a_reader_that_stops_early_ends_the_work(tmp_path: Path) -> None:
    """A file of gigabytes is not read to its end first."""
    workers = Workers(count=2)
    begun = time.monotonic()
    results = workers.map(note_then_wait_long, [str(tmp_path / str(i)) for i in range(6)])
    pid = next(results)
    results.close()
    assert time.monotonic() - begun < 30 and not is_alive(pid)
    assert not [path for path in tmp_path.iterdir() if is_alive(int(path.read_text() or 0))]


def note_then_wait_long(path: str) -> int:
    Path(path).write_text(str(os.getpid()))
    if not path.endswith("0"):
        time.sleep(60)
    return os.getpid()


PARENT = """
import sys
sys.path.insert(0, {tests!r})
from test_workers import note_and_wait
from shard.data.workers import Workers
if __name__ == "__main__":
    list(Workers(count=2).map(note_and_wait, [{folder!r}] * 4))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "workers"
    folder.mkdir()
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(tests=str(Path(__file__).parent), folder=str(folder)))
    parent = subprocess.Popen([sys.executable, str(script)])
    try:
        deadline = time.monotonic() + 60
        while len(list(folder.iterdir())) < 2:
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        parent.kill()
        parent.wait()
    pids = [int(path.name) for path in folder.iterdir()]
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline, "they go on without their parent"
        time.sleep(0.02)
    assert len(pids) == 2
