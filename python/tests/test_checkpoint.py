"""Checkpoint files: whole or not there, checked before anything is believed."""

import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import outboard
import pytest
import torch
from support import SIMULATED, assert_same, make_parameters, snapshot, train

PACKAGE = Path(outboard.__file__).parents[1]


def run_python(code, **options):
    """A process that has the package; the code finds its arguments in sys.argv."""
    arguments = [str(a) for a in options.pop("arguments", ())]
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        **options,
    )


@pytest.fixture
def trained(tmp_path):
    """An optimizer after two steps, its parameters, and the file it was saved to."""
    p = make_parameters(dtype=torch.bfloat16)
    optimizer = SIMULATED.optimizer(p)
    train(optimizer, p, 2)
    optimizer.save(tmp_path / "state.pt")
    return optimizer, p, tmp_path / "state.pt"


def test_file_is_readable_by_torch_with_weights_only(trained):
    optimizer, _, path = trained
    read = torch.load(path, weights_only=True)
    assert_same(read["state"], optimizer.state_dict()["state"])
    assert_same(outboard.load(path)["state"], optimizer.state_dict()["state"])


def test_file_holds_the_state_and_little_else(trained):
    optimizer, _, path = trained
    bytes_needed = sum(
        t.numel() * t.element_size() for e in optimizer.state.values() for t in e.values()
    )
    assert bytes_needed < path.stat().st_size < bytes_needed * 1.05 + 10000


def test_saving_replaces_the_old_file_and_leaves_nothing_else(trained):
    optimizer, p, path = trained
    old = path.stat().st_ino
    (path.parent / f".{path.name}.0badcafe.partial").write_bytes(b"left by a killed process")
    train(optimizer, p, 1)
    optimizer.save(path)
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_ino != old
    assert_same(outboard.load(path)["state"], optimizer.state_dict()["state"])


@pytest.mark.parametrize("keep", [0, 1, 100, 0.25, 0.5, 0.9, -1])
def test_truncated_file_is_refused(trained, keep):
    optimizer, p, path = trained
    content = path.read_bytes()
    length = int(len(content) * keep) if 0 < keep < 1 else keep
    path.write_bytes(content[:length])
    before = snapshot(optimizer, p)
    with pytest.raises(ValueError, match=r"state\.pt"):
        optimizer.load(path)
    assert_same(snapshot(optimizer, p), before)


def test_no_flipped_bit_goes_through(trained):
    _, _, path = trained
    content = path.read_bytes()
    whole = outboard.load(path)["state"]
    refused = 0
    positions = [len(content) * i // 150 + i % 7 for i in range(149)]
    for number, position in enumerate(positions):
        damaged = bytearray(content)
        damaged[position] ^= 1 << number % 8
        path.write_bytes(damaged)
        try:
            read = outboard.load(path)["state"]
        except ValueError:
            refused += 1
        else:  # the bit was padding
            assert_same(read, whole)
    assert refused > 100


def test_other_files_are_refused(tmp_path):
    for name, content in (("empty", b""), ("text", b"hello"), ("pickle", b"\x80\x02K\x01.")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            outboard.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        outboard.load(tmp_path / "nothing")


class Evil:
    def __reduce__(self):
        return os.system, ("exit 1",)


def test_nothing_in_a_file_is_executed(tmp_path):
    torch.save({"state": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt"):
        outboard.load(tmp_path / "evil.pt")


def test_file_that_would_grow_when_read_is_refused(trained):
    _, _, path = trained
    bomb = path.with_name("bomb.pt")
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(ValueError, match="compressed"):
        outboard.load(bomb)


def test_full_disk_keeps_the_old_file(trained):
    _, _, path = trained
    old = path.read_bytes()
    process = run_python(
        """
        import resource, signal, sys, torch, outboard
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            outboard.save({"x": torch.zeros(1 << 20)}, sys.argv[1])
        except OSError as error:
            print("refused", error)
        """,
        arguments=[path],
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=60)
    assert output.startswith("refused") and str(path) in output
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


def test_saving_keeps_links_and_permissions(trained):
    optimizer, _, path = trained
    path.chmod(0o600)
    link = path.with_name("latest[1].pt")
    link.symlink_to(path.name)
    (path.parent / f".{path.name}.0badcafe.partial").write_bytes(b"left by a killed process")
    optimizer.save(link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(path.parent)) == [link.name, path.name]
    assert_same(outboard.load(link)["state"], optimizer.state_dict()["state"])


def test_folder_that_does_not_exist_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        outboard.save({}, tmp_path / "nowhere" / "x.pt")


def test_process_killed_during_save_leaves_a_whole_file(tmp_path):
    code = """
        import os, signal, sys, time, torch, outboard
        torch.set_num_threads(1)  # threads do not survive a fork
        path = sys.argv[1]
        start = time.monotonic()
        outboard.save({"x": torch.zeros(1 << 19)}, path)
        seconds = time.monotonic() - start
        for delay in range(12):
            ready, write_end = os.pipe()
            child = os.fork()
            if child == 0:
                for number in range(10**6):
                    outboard.save({"x": torch.arange(1 << 19) * 0 + number}, path)
                    os.write(write_end, b".")
            os.read(ready, 1)
            time.sleep(seconds * delay / 6)  # somewhere inside a later save
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            value = outboard.load(path)["x"]
            assert (value == value[0]).all()
        """
    path = tmp_path / "state.pt"
    assert run_python(code, arguments=[path]).wait(timeout=120) == 0
    outboard.save({"x": 1}, path)
    assert os.listdir(tmp_path) == ["state.pt"]


def test_savers_do_not_disturb_each_other(tmp_path):
    code = """
        import os, sys, torch, outboard
        torch.set_num_threads(1)
        child = os.fork()
        for number in range(40):
            outboard.save({"x": torch.full((1 << 12,), float(number))}, sys.argv[1])
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """
    path = tmp_path / "state.pt"
    assert run_python(code, arguments=[path]).wait(timeout=120) == 0
    assert (outboard.load(path)["x"] == 39).all()


def test_import_without_the_library_says_how_to_build_it(tmp_path):
    from outboard._library import load_library

    with pytest.raises(ImportError, match="pip install"):
        load_library(tmp_path / "liboutboard.so")
    (tmp_path / "broken.so").write_bytes(b"no library")
    with pytest.raises(ImportError, match="does not load"):
        load_library(tmp_path / "broken.so")
