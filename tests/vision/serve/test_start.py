"""Before the first request: every network has run, and the threads are chosen."""

import torch

from coe_core import threads
from vision.prediction.predictor import Predictor
from vision.serve.start import serving_threads, warm_up


def test_every_network_has_run(trained):
    predictor = Predictor(trained)
    team, calls = predictor.networks.team, []
    for network in (team.delegator, *team.experts):
        network.register_forward_hook(
            lambda module, inputs, _: calls.append((module, len(inputs[0])))
        )
    warm_up(predictor, 8)
    for network in (team.delegator, *team.experts):
        assert [count for module, count in calls if module is network] == [1, 2]
    calls.clear()
    warm_up(predictor, 1)
    assert {count for _, count in calls} == {1}


def test_small_networks_take_one_thread(predictor, monkeypatch):
    for name in threads.FIXED_BY:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "allowed_processors", lambda: 8.0)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        chosen = serving_threads(predictor, 32)
        assert chosen.count == 1
        assert "a batch of 4 images of " in chosen.reason
        monkeypatch.setattr(threads, "WORTH_MEASURING", 0.0)
        chosen = serving_threads(predictor, 2)
        assert chosen.count in (1, 4)
        assert "a batch of 2 images takes " in chosen.reason
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)


def test_the_users_choice_is_left_alone(predictor, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert serving_threads(predictor, 32).reason == ""


def test_a_network_that_fails_is_told_and_the_server_starts(trained, caplog, monkeypatch):
    predictor = Predictor(trained)
    monkeypatch.setattr(predictor.networks.team.experts[1], "forward", lambda images: 1 / 0)
    monkeypatch.setattr(predictor, "predict_pixels", lambda pixels, budgets: 1 / 0)
    monkeypatch.setattr(threads, "WORTH_MEASURING", 0.0)
    monkeypatch.setattr(threads, "allowed_processors", lambda: 8.0)
    warm_up(predictor, 1)
    assert [record.getMessage() for record in caplog.records] == ["expert 1 fails"]
    assert serving_threads(predictor, 1).count == torch.get_num_threads()
