"""The same work on a real Ray cluster: one of two processors, started by Shard in a process of its own, and reached by
its address from here.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from corpora import altered, content_of, hub_source, prose, text_source
from test_workers import die, is_alive, prepare_or_die, slow_at_first

from shard.data import ray_workers
from shard.data.adapters import BrokenFile
from shard.data.documents import collect_documents
from shard.data.inventory import Inventory
from shard.data.ray_workers import disconnect
from shard.data.settings import AnySource, DataSettings
from shard.data.tokens import tokenize_sources
from shard.data.units import prepare_unit
from shard.data.workers import Workers
from shard.errors import ShardError
from shard.files import temporary_path
from shard.signals import InterruptedRunError, stop_on_sigterm
from shard.tokenizer import train_tokenizer

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")

OWNER = """
import time
from shard.data.workers import Workers
workers = Workers(count=3, ray_address="local")
try:
    assert list(workers.map(abs, [-1, -2])) == [1, 2]
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    list(workers.map(time.sleep, [1e6]))
except KeyboardInterrupt:
    print("stopped", flush=True)
finally:
    workers.close()
"""
"""Keeps one of the three processors itself."""


@dataclass(frozen=True)
class Cluster:
    """A process that started a cluster, and works on it until it is told to stop."""

    owner: subprocess.Popen[str]
    address: str
    log: Path
    """What it and all that it started wrote on stderr."""

    def processes(self) -> list[int]:
        """All that live of the owner and of what it started, however far down."""
        below = {self.owner.pid}
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
        while more := {pid for pid, parent in parents.items() if parent in below} - below:
            below |= more
        return [pid for pid in below if is_alive(pid)]


@pytest.fixture(scope="module", autouse=True)
def token() -> Iterator[None]:
    """Which Ray reads once, before the first connection."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", "5" * 64)
        yield


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    imported_from = filter(None, [os.environ.get("PYTHONPATH")])
    script, log = folder / "owner.py", folder / "log"
    script.write_text(OWNER)
    with log.open("w") as errors:
        owner = subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=folder,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [Path(__file__).parent, *imported_from]))},
        )
        try:
            assert owner.stdout is not None
            address = owner.stdout.readline().strip()
            assert address, log.read_text()
            yield Cluster(owner, address, log)
            disconnect()
        finally:
            if owner.poll() is None:
                os.killpg(owner.pid, signal.SIGKILL)
            owner.wait()


@pytest.fixture
def workers(cluster: Cluster) -> Workers:
    """Connected until the last of the tests."""
    return Workers(ray_address=cluster.address)


def variable(name: str) -> str | None:
    return os.environ.get(name)


def wait_until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# Without a cluster


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "nonsense"])
def test_an_address_where_no_cluster_is(address: str) -> None:
    begun = time.monotonic()
    with pytest.raises(ShardError, match=rf"^--ray {address}: .*`ray start --head`, or use --ray local$") as caught:
        list(Workers(ray_address=address).map(abs, [1]))
    assert time.monotonic() - begun < 10 and "\n" not in str(caught.value)


def test_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ShardError, match=r"^--ray needs Ray: pip install 'shard-lm\[ray\]'$"):
        list(Workers(ray_address="local").map(abs, [1]))


def test_a_machine_that_does_not_share_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"cannot enter .*elsewhere \(No such file.*all must share it$"):
        ray_workers._do(abs, 1, str(tmp_path / "elsewhere"))


# On one


def test_results_come_in_order_and_nothing_is_told_to_anybody(workers: Workers) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    assert list(workers.map(slow_at_first, range(20))) == list(range(20))
    assert list(workers.map(abs, [])) == []
    assert signal.getsignal(signal.SIGTERM) is handler
    assert list(workers.map(variable, ["RAY_USAGE_STATS_ENABLED"])) == ["0"]


def test_documents_and_tokens_are_the_same_bytes_as_in_this_process(workers: Workers, tmp_path: Path) -> None:
    """Which test_tokens.py compares with those of 2 and 4 processes."""
    mirror, tokenizer = tmp_path / "mirror", tmp_path / "tokenizer.json"
    train_tokenizer(prose("text", 50), 400).save(str(tokenizer))
    files: dict[str, list[Any]] = {f"{i}.parquet": [*prose(f"file {i}", 6), None, "short"] for i in range(8)}
    files["3.parquet"] += [files["1.parquet"][0], altered(files["2.parquet"][1]), altered(files["0.parquet"][1])]
    sources: dict[str, AnySource] = {
        "web": hub_source(mirror, files),
        "limited": hub_source(mirror, files | {"0.parquet": prose("other", 9)}, "someone/other", max_documents=20),
        "mine": text_source(tmp_path / "in", [*prose("mine", 12), files["1.parquet"][2]]),
    }
    path = mirror / "datasets/someone/some/2.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    settings = DataSettings(heldout_bytes=1, on_broken_file="skip")
    contents = []
    for name, its_workers in {"here": Workers(), "ray": workers}.items():
        data = tmp_path / name / "data"
        collect_documents(sources, settings, 0, data, its_workers, mirror)
        folders, limits = {name: data / name for name in sources}, {"web": 800, "limited": None, "mine": None}
        tokenize_sources(folders, tokenizer, 400, 0, 1024, limits, its_workers)
        contents.append(content_of(data))
    assert len(contents[0]) > 30
    assert contents[0] == contents[1]


def test_the_units_of_a_worker_that_was_killed_are_done_again(workers: Workers, tmp_path: Path) -> None:
    source = hub_source(tmp_path, {f"{i}.parquet": prose(f"file {i}", 5) for i in range(6)})
    whole, killed = (
        Inventory.take({"web": source}, DataSettings(), 0, tmp_path / name, tmp_path).units["web"]
        for name in ("whole", "killed")
    )
    expected = [prepare_unit(unit) for unit in whole]
    results = list(workers.map(prepare_or_die, killed))
    assert [ledger for _, ledger in results] == expected
    assert content_of(tmp_path / "killed/web") == content_of(tmp_path / "whole/web")
    tries = [int(path.name.partition("-")[2]) for path in (tmp_path / "killed").glob("2-*")]
    assert len(tries) == 2 and results[2][0] in tries


def meet(folder: str) -> str:
    """Wait for another process that does the same."""
    Path(folder, str(os.getpid())).touch()
    wait_until(lambda: len(list(Path(folder).iterdir())) >= 2)
    return temporary_path(Path(folder)).name


def test_two_processes_write_the_same_file_under_different_names(workers: Workers, tmp_path: Path) -> None:
    """A worker that was given up may be alive."""
    names = set(workers.map(meet, [str(tmp_path)] * 2))
    assert len(names) == 2 and all(name[0] == "." and name.endswith(".tmp") for name in names)


def test_relative_paths_are_meant_from_here(workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(workers.map(os.path.abspath, ["a"])) == [str(tmp_path / "a")]


def leave_a_mark(path: str) -> None:
    time.sleep(0.3)
    Path(path).touch()


def test_a_reader_that_stops_early_waits_for_what_was_begun(workers: Workers, tmp_path: Path) -> None:
    paths = [str(tmp_path / str(i)) for i in range(100)]
    results = workers.map(leave_a_mark, paths)
    next(results)
    results.close()  # type: ignore[attr-defined]
    done = len(list(tmp_path.iterdir()))
    assert 2 <= done <= 7
    assert list(workers.map(abs, [-3])) == [3]  # another process may be at work still, if there is any
    time.sleep(0.5)
    assert len(list(tmp_path.iterdir())) == done


def break_at_three(number: int) -> int:
    if number == 3:
        raise BrokenFile(Path("a.parquet"), "zeros", 10, 20)
    return number


def test_what_a_piece_raises_is_raised_as_it_is_after_the_results_before_it(workers: Workers) -> None:
    results = workers.map(break_at_three, range(10))
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(BrokenFile, match=r"^a\.parquet is broken after row 10, 20 of 30 rows") as caught:
        next(results)
    assert type(caught.value) is BrokenFile and caught.value.rows_lost == 20


def test_a_signal_ends_the_work(workers: Workers, tmp_path: Path) -> None:
    paths = [str(tmp_path / str(i)) for i in range(100)]
    results = workers.map(leave_a_mark, paths)
    next(results)
    with stop_on_sigterm(), pytest.raises(InterruptedRunError, match=r"^interrupted; "):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        list(results)
    wait_until(lambda: nothing_changes_in(tmp_path))
    assert len(list(tmp_path.iterdir())) < 100


def nothing_changes_in(folder: Path) -> bool:
    before = len(list(folder.iterdir()))
    time.sleep(0.5)
    return len(list(folder.iterdir())) == before


def test_a_piece_that_kills_every_worker_ends_the_work(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "LOST_WORKERS", 1)
    with pytest.raises(ShardError, match=r"^--ray .*: a worker was lost 2 times at 0 .*--workers 1") as caught:
        list(workers.map(die, [0]))
    assert "\n" not in str(caught.value)


# By the command line

RECIPE = """
name = "ray"
[model]
vocab_size = 300
hidden_size = 32
num_layers = 2
num_heads = 2
head_dim = 16
intermediate_size = 64
max_sequence_length = 128
sliding_window = 8
[tokenizer]
sample_bytes = "50kB"
[data]
heldout_bytes = 300
[sources.web]
kind = "hub"
repository = "someone/some"
files = "*.parquet"
columns = ["text"]
[pretrain]
steps = 1
sequence_length = 32
tokens_per_step = 32
[pretrain.mix]
web = 1
[anneal]
steps = 1
sequence_length = 32
[anneal.mix]
web = 1
"""


def test_the_command_says_and_does_the_same(cluster: Cluster, tmp_path: Path) -> None:
    """In a folder that the cluster was not started in."""
    hub_source(tmp_path / "mirror", {f"{i}.parquet": prose(f"file {i}", 40) for i in range(6)})
    (tmp_path / "ray.toml").write_text(RECIPE)

    def start(run: str, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "shard", "data", "ray.toml", "--mirror", "mirror", "--out", run, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)

    here, there = start("here", "--workers", "1"), start("there", "--ray", cluster.address)
    # How much of the disk is free changes between the two.
    said = [[re.sub(r"[\d.]+ \w+ are free", "free", text) for text in run.communicate()] for run in (there, here)]
    assert said[0] == said[1]
    assert there.returncode == here.returncode == 0
    contents = [content_of(tmp_path / run / "data") for run in ("here", "there")]
    assert contents[0] == contents[1] and "web/tokens.json" in contents[0]
    assert cluster.owner.poll() is None


# The last test: it ends the cluster


def test_ctrl_c_ends_a_cluster_that_shard_started(cluster: Cluster) -> None:
    disconnect()
    started = cluster.processes()
    assert len(started) > 3
    os.killpg(cluster.owner.pid, signal.SIGINT)
    out, _ = cluster.owner.communicate(timeout=60)
    assert (cluster.owner.returncode, out, cluster.log.read_text()) == (0, "stopped\n", "")
    wait_until(lambda: not any(map(is_alive, started)), 30)
