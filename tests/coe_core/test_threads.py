"""The number of threads: what is allowed, what is measured, what the user says."""

import math
import time

import pytest
import torch

from coe_core import threads
from coe_core.threads import Threads, allowed_processors, choose_threads

LARGE = 1e10  # multiply-adds: worth measuring


@pytest.fixture
def four(monkeypatch):
    """Four processors, four threads, and nobody has chosen."""
    for name in threads.FIXED_BY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "allowed_processors", lambda: 4.0)
    with threads.restored_threads():
        torch.set_num_threads(4)
        yield


def work(seconds):
    """Takes so long with so many threads."""
    return lambda: time.sleep(seconds[torch.get_num_threads()])


def test_more_where_they_are_faster(four):
    chosen = choose_threads(work({1: 0.03, 4: 0.005}), LARGE, "a batch")
    assert chosen.count == 4
    assert str(chosen).startswith("4 threads (a batch takes 3")
    assert torch.get_num_threads() == 4


def test_one_where_others_wait(four):
    chosen = choose_threads(work({1: 0.01, 4: 0.03}), LARGE)
    assert chosen.count == 1
    assert "with 1 and 3" in chosen.reason


@pytest.mark.parametrize(("share", "count"), [(0.5, 4), (0.95, 1), (1.0, 1), (2.0, 1)])
def test_one_where_more_gain_little(four, monkeypatch, share, count):
    monkeypatch.setattr(threads, "_measure", lambda *_: {1: 1.0, 4: share})
    assert choose_threads(lambda: None, LARGE).count == count


def test_small_work_is_not_measured(four):
    def fails():
        raise AssertionError

    chosen = choose_threads(fails, 1e6, "a step")
    assert str(chosen) == "1 thread (a step of 0.001 G multiply-adds is too short to be shared)"


def test_as_many_as_are_allowed_for_each_process(four, monkeypatch):
    assert choose_threads(lambda: None, LARGE, processes=4).count == 1
    monkeypatch.setattr(threads, "allowed_processors", lambda: 1.5)
    assert choose_threads(lambda: None, LARGE) == Threads(1, "1.5 processors for 1 process(es)")


@pytest.mark.parametrize("name", threads.FIXED_BY)
def test_the_users_number_stays(four, monkeypatch, name):
    monkeypatch.setenv(name, "3")
    torch.set_num_threads(3)
    assert choose_threads(lambda: None, LARGE) == Threads(3, "")


def test_affinity_and_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    (tmp_path / "cpu").mkdir()
    limits = [("cpu.max", "50000 100000", 0.5), ("cpu.max", "max 100000", math.inf)]
    limits += [("cpu.max", "damaged", math.inf)]
    for file, content, expected in limits:
        (tmp_path / file).write_text(content)
        assert threads._quota() == expected
        (tmp_path / file).unlink()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("150000")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000")
    assert threads._quota() == 1.5
    assert allowed_processors() <= 1.5
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1")
    assert threads._quota() == math.inf
