"""FAULTS 1 to 7, 14 and 17: what a search survives, as far as the run folder is concerned."""

from __future__ import annotations

import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from paretoprune.core.errors import StoreError
from paretoprune.store.files import storage_error
from paretoprune.store.journal import Journal, quarantine_path
from paretoprune.store.run import RunFolder

pytestmark = pytest.mark.fault

SRC = Path(__file__).parents[2] / "src"
IDENTITY: dict[str, dict[str, object]] = {"model": {"name": "tiny", "fingerprint": "ab"}, "recipe": {"budget": 20}}
SEARCH = """
import sys
from paretoprune.core.errors import PruneError
from paretoprune.store.run import RunFolder
path, trials, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
    with RunFolder.open(path, {"model": {"name": "tiny", "fingerprint": "ab"}, "recipe": {"budget": 20}}) as folder:
        print("open", flush=True)
        for n in range(trials):
            if not folder.has("trial", str(n)):
                folder.record("trial", str(n), {"n": n, "kept": "x" * size})
                print(n, flush=True)
except PruneError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_status)
"""


def command(path: Path, trials: int, size: int = 10) -> list[str]:
    return [sys.executable, "-c", SEARCH, str(path), str(trials), str(size)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SRC)}


def trial_keys(path: Path) -> list[str]:
    """The keys of all trial lines in the file, so that a duplicate would show."""
    return [e.record["key"] for e in Journal.read(path / "journal.jsonl").entries if e.record["kind"] == "trial"]


def journal_of(path: Path, records: int) -> bytes:
    journal = Journal.open(path)
    for number in range(records):
        journal.append({"n": number})
    journal.close()
    return path.read_bytes()


def test_01_kill_9_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    trials, rng = 400, random.Random(0)
    acknowledged: set[str] = set()
    for _ in range(14):
        child = subprocess.Popen(
            command(tmp_path, trials, 20_000), stdout=subprocess.PIPE, text=True, env=environment()
        )
        assert child.stdout is not None
        for _ in range(rng.randrange(1, 25)):
            said = child.stdout.readline().strip()
            if said.isdecimal():
                acknowledged.add(said)
        child.send_signal(signal.SIGKILL)
        acknowledged |= {said for said in child.stdout.read().split("\n")[:-1] if said.isdecimal()}
        child.stdout.close()
        child.wait()
        assert acknowledged <= set(RunFolder.read(tmp_path).all("trial"))  # at once, before any repair
    assert 20 < len(acknowledged) < trials
    subprocess.run(command(tmp_path, trials, 20_000), check=True, capture_output=True, env=environment())
    assert trial_keys(tmp_path) == [str(n) for n in range(trials)]
    assert RunFolder.read(tmp_path).quarantined == 0


def test_02_a_last_line_torn_at_any_byte_is_cut_before_the_next_append(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = journal_of(path, 3)
    start = whole[:-1].rindex(b"\n") + 1
    for cut in range(start, len(whole)):
        path.write_bytes(whole[:cut])
        kept = 3 if cut == len(whole) - 1 else 2  # only the newline is missing: the record is whole
        assert len(Journal.read(path).entries) == kept
        journal = Journal.open(path)
        assert path.read_bytes() in (whole, whole[:start])
        journal.append({"n": "next"})
        journal.close()
        again = Journal.read(path)
        assert [entry.record["n"] for entry in again.entries] == [*range(kept), "next"]
        assert again.quarantined == 0


@pytest.mark.parametrize("garbage", [b"not ours", b"", b"\x00\xff\x1b[2J", b"0123456789abcdef {}"])
def test_03_garbage_in_the_middle_is_quarantined_and_counted(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    raw = journal_of(path, 5).splitlines(keepends=True)
    path.write_bytes(b"".join([*raw[:2], garbage + b"\n", *raw[2:]]))
    for _ in range(2):  # found once, reported for ever
        journal = Journal.open(path)
        assert journal.quarantined == 1
        assert [entry.record["n"] for entry in journal.entries] == list(range(5))
        journal.close()
    assert path.read_bytes() == b"".join(raw)
    assert len(quarantine_path(path).read_text("ascii").splitlines()) == 1


def test_03_an_altered_record_is_quarantined_and_the_rest_kept(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, IDENTITY) as folder:
        for number in range(5):
            folder.record("trial", str(number), number)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"payload":2', b'"payload":7'))
    assert RunFolder.read(tmp_path).quarantined == 1
    with RunFolder.open(tmp_path, IDENTITY) as folder:
        assert folder.quarantined == 1
        assert folder.all("trial") == {"0": 0, "1": 1, "3": 3, "4": 4}
        assert folder.once("trial", "2", lambda: "again") == "again"
    assert '"payload\\":7' in quarantine_path(path).read_text()


def test_03_a_damaged_first_line_loses_neither_the_run_nor_its_guard(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, IDENTITY) as folder:
        folder.record("trial", "1", 1)
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"#" + path.read_bytes())
    assert RunFolder.read(tmp_path).identity is None
    with pytest.raises(StoreError, match="another search: its first line is damaged"):
        RunFolder.open(tmp_path, {"model": "other"})
    with RunFolder.open(tmp_path, IDENTITY) as folder:
        assert folder.all("trial") == {"1": 1}
        assert folder.identity == IDENTITY


def test_03_a_crash_between_quarantine_and_repair_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    damaged = b"garbage\n" + journal_of(path, 2)
    path.write_bytes(damaged)
    Journal.open(path).close()
    path.write_bytes(damaged)  # as if the repaired journal had not been written
    assert Journal.read(path).quarantined == 1
    journal = Journal.open(path)
    assert journal.quarantined == 1
    journal.close()


def test_04_no_room_stops_cleanly_and_resumes(tmp_path: Path) -> None:
    """The limit on file size cuts a write in the middle, as a full disk does."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n{SEARCH}"
    full = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path), "40", "300"], capture_output=True, text=True, env=environment()
    )
    assert full.returncode == StoreError.exit_status
    assert len(full.stderr.strip().splitlines()) == 1
    assert "limit on the size of a file" in full.stderr
    done = [said for said in full.stdout.split() if said.isdecimal()]
    assert 2 < len(done) < 40
    assert (tmp_path / "journal.jsonl").read_bytes().endswith(b"\n")
    assert trial_keys(tmp_path) == done
    subprocess.run(command(tmp_path, 40, 300), check=True, capture_output=True, env=environment())
    assert trial_keys(tmp_path) == [str(n) for n in range(40)]


def mounted(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script in which `folder` is a file system of 256 kB of its own. Skips where that is not allowed."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("needs unshare (Linux) to mount a small file system")
    mount = f"mount -t tmpfs -o size=256k none '{folder}'"
    if subprocess.run([unshare, "-rm", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow a mount in a namespace of one's own")
    return subprocess.run(
        [unshare, "-rm", "sh", "-c", f"{mount} && cd '{folder}' && {script}"],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )


def test_04_a_full_disk_stops_cleanly_and_resumes(tmp_path: Path) -> None:
    search = f"'{sys.executable}' -c \"$SEARCH\" run 60 2000"
    script = (
        f"export SEARCH={quoted(SEARCH)}; dd if=/dev/zero of=filler bs=1k count=190 2>/dev/null; "
        f"{search}; echo status $?; rm filler; {search}; echo status $?; "
        f"cp run/journal.jsonl '{tmp_path}'.kept"
    )
    result = mounted(tmp_path, script)
    assert "the disk is full" in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    said = result.stdout.split("\n")
    assert [line for line in said if line.startswith("status")] == ["status 4", "status 0"]
    numbers = [line for line in said if line.isdecimal()]
    assert numbers == [str(n) for n in range(60)]  # both runs together: none lost, none twice
    kept = Journal.read(Path(f"{tmp_path}.kept"))
    assert [e.record["key"] for e in kept.entries if e.record["kind"] == "trial"] == numbers


def test_05_a_read_only_file_system_is_refused_before_any_work(tmp_path: Path) -> None:
    search = f"'{sys.executable}' -c {quoted(SEARCH)} run 3 10"
    result = mounted(tmp_path, f"mount -o remount,ro '{tmp_path}'; {search}; echo status $?; ls -A")
    assert result.stdout.split("\n")[0] == "status 4", result.stderr
    assert result.stdout.split("\n")[1:] == [""]
    assert "read-only for this user (Read-only file system)" in result.stderr


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


@pytest.fixture
def unprivileged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of which an ordinary user is the owner; the test runs as that user, also where pytest is root."""
    RunFolder.open(tmp_path_factory.mktemp("warm"), IDENTITY).close()  # lazy imports, while ours can be read
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    if root:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o700)
        shutil.rmtree(folder)


def test_05_a_folder_without_write_permission_is_refused_before_any_work(unprivileged: Path) -> None:
    with RunFolder.open(unprivileged / "old", IDENTITY) as folder:
        folder.record("trial", "1", 1)
    (unprivileged / "old").chmod(0o500)
    unprivileged.chmod(0o500)
    for name in ("new", "old"):
        with pytest.raises(StoreError, match=f"cannot write .*{name}.*read-only for this user.*choose another folder"):
            RunFolder.open(unprivileged / name, IDENTITY)
    assert not (unprivileged / "new").exists()
    assert RunFolder.read(unprivileged / "old").all("trial") == {"1": 1}  # looking still works
    (unprivileged / "old").chmod(0o700)


def test_05_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(StoreError, match="cannot write"):
            RunFolder.open(path, IDENTITY)
    assert (tmp_path / "a").read_text() == "mine"


def test_06_a_second_process_is_refused_and_told_which_one_holds_the_folder(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, IDENTITY) as folder:
        folder.record("trial", "0", 0)
        other = subprocess.run(command(tmp_path, 3), capture_output=True, text=True, env=environment(), check=False)
        assert other.returncode == StoreError.exit_status
        assert f"in use by process {os.getpid()};" in other.stderr
        assert trial_keys(tmp_path) == ["0"]
        with pytest.raises(StoreError, match=f"process {os.getpid()};"):
            RunFolder.open(tmp_path, IDENTITY)
        folder.record("trial", "1", 1)
    subprocess.run(command(tmp_path, 3), capture_output=True, env=environment(), check=True)
    assert trial_keys(tmp_path) == ["0", "1", "2"]


def test_07_the_lock_of_a_killed_process_is_reclaimed(tmp_path: Path) -> None:
    """Also when a child that it forked is still alive."""
    forking = SEARCH.replace(
        'print("open", flush=True)', 'import os; print("open", flush=True); os.fork(); os.read(0, 1)'
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", forking, str(tmp_path), "0", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(StoreError, match=f"in use by process {holder.pid};"):
        RunFolder.open(tmp_path, IDENTITY)
    holder.kill()
    holder.wait()
    assert (tmp_path / "lock.holder").exists()
    with RunFolder.open(tmp_path, IDENTITY) as folder:
        assert folder.record("trial", "1", 1) == 1
    holder.stdin.close()  # lets the forked child end
    holder.stdout.close()


def test_14_another_model_or_recipe_is_refused_with_the_difference(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, IDENTITY) as folder:
        folder.record("trial", "1", 1)
    before = (tmp_path / "journal.jsonl").read_bytes()
    given = {"model": {"name": "tiny", "fingerprint": "cd"}, "recipe": {"budget": 20, "seed": 1}}
    with pytest.raises(StoreError) as refused:
        RunFolder.open(tmp_path, given)
    assert 'model.fingerprint was "ab", is "cd"; recipe.seed was absent, is 1;' in str(refused.value)
    assert "tiny" not in str(refused.value)
    assert "budget" not in str(refused.value)
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    with RunFolder.open(tmp_path, {"recipe": {"budget": 20}, "model": dict(reversed(IDENTITY["model"].items()))}):
        pass  # the order of keys does not matter


def test_14_a_hostile_identity_is_shown_escaped_and_short(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, {"model": "\x1b[2Jx" * 100}).close()
    with pytest.raises(StoreError) as refused:
        RunFolder.open(tmp_path, {f"key{n}\x1b": n for n in range(50)})
    assert str(refused.value).isprintable()
    assert "and 43 more" in str(refused.value)
    assert len(str(refused.value)) < 1200


def wall_clock_uses(source: str) -> list[int]:
    """Lines that read the wall clock other than for a label (`datetime.now(...).isoformat(...)`)."""
    tree = ast.parse(source)
    labels = {
        id(node.func.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("isoformat", "strftime")
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [node.lineno for name in node.names if name.name in ("time", "time_ns")]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time":
            found += [node.lineno] if node.attr in ("time", "time_ns") else []
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and id(node) not in labels:
            found += [node.lineno] if node.func.attr in ("utcnow", "now", "today") else []
    return found


def test_17_durations_never_come_from_the_wall_clock() -> None:
    files = list((SRC / "paretoprune").rglob("*.py"))
    assert len(files) > 10
    assert [f"{file}:{line}" for file in files for line in wall_clock_uses(file.read_text("utf-8"))] == []


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import time\nstart = time.time()", [2]),
        ("from time import time", [1]),
        ("import time\nclock = time.time_ns", [2]),
        ("start = datetime.now(UTC)", [1]),
        ("label = datetime.now(UTC).isoformat()", []),
        ("import time\nstart = time.monotonic() + time.perf_counter()", []),
    ],
)
def test_17_the_check_itself_can_fail(source: str, lines: list[int]) -> None:
    assert wall_clock_uses(source) == lines


def test_storage_errors_are_one_sentence_with_a_remedy() -> None:
    import errno

    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.ENOTDIR):
        text = str(storage_error(Path("runs/a"), OSError(number, os.strerror(number))))
        assert text.startswith("cannot write runs/a: ")
        assert ";" in text
        assert "\n" not in text
