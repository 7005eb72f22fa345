"""A loader goes on inside an epoch, where a training was stopped."""

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.vision.data.noise_images import images, loader, same
from vision.data.images import ImageSet


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("passed", [1, 3])
def test_resume_inside_an_epoch(workers, passed):
    whole = loader()
    whole.epoch_sampler.set_epoch(2)
    expected = list(whole)
    first = loader()
    first.epoch_sampler.set_epoch(2)
    iterator = iter(first)
    for _ in range(passed):
        next(iterator)
    state = first.state_dict()
    assert state["batches"] == passed
    second = loader(workers=workers)
    second.load_state_dict(state)
    assert second.state_dict() == state
    iterator = iter(second)  # Lightning makes the iterator before it sets the epoch
    second.epoch_sampler.set_epoch(2)
    assert len(second) == len(expected) == 5
    same(list(iterator), expected[passed:])
    second.epoch_sampler.set_epoch(3)
    whole.epoch_sampler.set_epoch(3)
    same(list(second), list(whole))


def test_resume_reads_nothing_of_what_was_passed(monkeypatch):
    read = []
    data = images()
    original = ImageSet.__getitems__
    monkeypatch.setattr(
        ImageSet, "__getitems__", lambda s, items: read.append(len(items)) or original(s, items)
    )
    resumed = loader(data)
    resumed.load_state_dict({**resumed.state_dict(), "batches": 3})
    assert len(list(resumed)) == 2
    assert read == [4, 4]


def test_state_is_zero_at_the_end_of_an_epoch():
    data = loader()
    iterator = iter(data)
    assert data.state_dict()["batches"] == 0
    for _ in range(5):
        next(iterator)
    assert data.state_dict()["batches"] == 0  # all yielded, though the iterator does not know yet
    assert next(iterator, None) is None
    assert data.state_dict()["batches"] == 0
    data.load_state_dict(data.state_dict())
    assert len(list(data)) == 5


def test_resume_in_a_later_epoch_starts_it_afresh():
    # Lightning's limit_train_batches ends an epoch before the loader does.
    data = loader()
    data.load_state_dict({**data.state_dict(), "batches": 3, "epoch": 0})
    data.epoch_sampler.set_epoch(1)
    assert len(list(data)) == 5


def test_resume_on_another_number_of_processes():
    single = list(loader(batch_size=8))
    first = loader(batch_size=8)
    next(iter(first))
    ranks = [loader(batch_size=8, rank=r, world_size=2) for r in (0, 1)]
    for rank in ranks:
        rank.load_state_dict(first.state_dict())
    rest = [list(rank) for rank in ranks]
    joined = [{k: torch.cat([a[k], b[k]]) for k in a} for a, b in zip(*rest, strict=True)]
    same(joined, single[1:])


@pytest.mark.parametrize("key", ["batch_size", "num_samples", "seed"])
def test_resume_of_something_else_is_an_error(key):
    data = loader()
    state = {**data.state_dict(), "batches": 1}
    state[key] += 1
    with pytest.raises(ValueError, match=f"behind batch 1 of an epoch: {key} was"):
        data.load_state_dict(state)
    data.load_state_dict({**state, "batches": 0})  # between epochs anything goes


@pytest.mark.process
def test_an_abandoned_iteration_leaves_nothing_behind():
    data = loader(workers=2)
    expected = list(loader())
    next(iter(data))
    same(list(data), expected)


class Record(lightning.LightningModule):
    """Notes which samples it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append(batch["index"].tolist())
        return self.weight * 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_resumes_inside_an_epoch_and_at_its_end(tmp_path, workers):
    def fit(**options):
        module = Record()
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=3,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)],
        )
        trainer.fit(module, loader(workers=workers), **options)
        return module.seen

    expected = []
    for epoch in range(3):
        plain = loader()
        plain.epoch_sampler.set_epoch(epoch)
        expected += [batch["index"].tolist() for batch in plain]
    assert fit() == expected
    for step in (3, 5, 7, 14):
        checkpoint = tmp_path / f"step={step}.ckpt"
        assert fit(ckpt_path=checkpoint, weights_only=True) == expected[step:]
