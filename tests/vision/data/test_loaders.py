"""Order, views, resuming and data parallelism of the loaders."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from tests.vision.data.noise_images import images, loader, same
from vision.data.augmentation import AUGMENTATIONS, Augmentation, mix_seeds
from vision.data.images import ImageSet
from vision.data.loaders import (
    EpochSampler,
    MixSamples,
    ResumableLoader,
    collate_samples,
    draws_of_classes,
    eval_loader,
    train_loader,
)
from vision.data.section import Data


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        sampler = EpochSampler(50, 10, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(1)
    first = order(0, 0)
    torch.manual_seed(2)
    assert order(0, 0) == first
    assert sorted(index for index, _ in first) == list(range(50))
    assert [i for i, _ in order(0, 1)] != [i for i, _ in first] != [i for i, _ in order(1, 0)]
    assert len({seed for _, seed in first + order(0, 1) + order(1, 0)}) == 150
    assert all(0 <= seed < 2**63 for _, seed in first)


def test_without_shuffling_and_the_last_incomplete_batch():
    sampler = EpochSampler(11, 4, seed=0, shuffle=False)
    assert [index for index, _ in sampler] == list(range(8))
    assert (len(sampler), sampler.num_batches) == (8, 2)


def test_ranks_share_every_global_batch():
    whole = [index for index, _ in EpochSampler(22, 8, seed=3)]
    ranks = [
        [item for item, _ in EpochSampler(22, 8, seed=3, rank=r, world_size=2)] for r in (0, 1)
    ]
    for step in range(2):
        union = [index for rank in ranks for index in rank[4 * step : 4 * step + 4]]
        assert union == whole[8 * step : 8 * step + 8]


def test_parts_of_batches_are_the_batches():
    whole, parts = loader(batch_size=6), ResumableLoader(images(), EpochSampler(22, 6, 0), parts=3)
    assert (len(whole), len(parts)) == (3, 9)
    batches = list(parts)
    joined = [
        {key: torch.cat([part[key] for part in batches[i : i + 3]]) for key in batches[0]}
        for i in range(0, 9, 3)
    ]
    same(joined, list(whole))
    started = iter(parts)
    for _ in range(3):
        next(started)
    state = parts.state_dict()
    assert state["batches"] == 1
    again = ResumableLoader(images(), EpochSampler(22, 6, 0), parts=2)  # in other parts
    again.load_state_dict(state)
    assert (
        torch.cat([b["index"] for b in again]).tolist()
        == torch.cat([b["index"] for b in batches[3:]]).tolist()
    )
    with pytest.raises(
        ValueError, match="a batch of 6 for each of 1 processes does not divide into 4"
    ):
        ResumableLoader(images(), EpochSampler(22, 6, 0), parts=4)


@pytest.mark.parametrize(("balance", "counts"), [(1.0, [12, 12, 12]), (0.5, [18, 12, 6])])
def test_rare_classes_are_drawn_more_often(balance, counts):
    targets = np.repeat([0, 1, 2], [22, 10, 4])
    draws = draws_of_classes(targets, balance)
    assert abs(draws.counts - np.array(counts)).max() <= 1
    assert draws.counts.sum() == 36

    def items(epoch, **options):
        sampler = EpochSampler(36, 12, 0, draws=draws, **options)
        sampler.set_epoch(epoch)
        return list(sampler)

    first, second = items(0), items(1)
    assert first == items(0) != second
    assert len(set(first)) == 36  # a sample that is drawn again has another view
    seen = np.array([index for index, _ in first])
    assert (np.bincount(targets[seen]) == draws.counts).all()
    times = np.bincount(seen, minlength=36)
    for c in range(3):
        of_class = times[targets == c]
        assert of_class.max() - of_class.min() <= 1
    ranks = [items(0, rank=rank, world_size=2) for rank in (0, 1)]
    assert [i for half in range(3) for r in ranks for i in r[6 * half : 6 * half + 6]] == first
    sampler = EpochSampler(36, 12, 0, draws=draws)
    sampler.first_batch = 1
    assert list(sampler) == first[12:]


def test_two_processes_read_what_one_reads():
    single = list(loader(batch_size=8))
    ranks = [list(loader(batch_size=8, rank=r, world_size=2)) for r in (0, 1)]
    joined = [{k: torch.cat([a[k], b[k]]) for k in a} for a, b in zip(*ranks, strict=True)]
    same(joined, single)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 11}, "batch size 11 with 10 training samples .* from 1 to 10"),
        ({"batch_size": 0}, "batch size 0"),
        ({"batch_size": 4, "world_size": 3}, "4 does not divide evenly over 3 processes"),
        ({"batch_size": 4, "world_size": 2, "rank": 2}, "rank 2 is not one of 2"),
    ],
)
def test_sampler_errors(options, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(10, seed=0, **options)


def test_seeds_are_stable():
    # A change of these numbers would break resuming runs of earlier versions.
    assert mix_seeds(0, 1, np.arange(2)).tolist() == [2482289063980384216, 2533777038635110281]
    assert mix_seeds(-1).dtype == np.int64


@pytest.mark.process
@pytest.mark.parametrize("names", [["shift", "flip"], ["randaugment", "random_erasing"]])
def test_views_are_the_same_with_workers_and_again(names):
    data = images(names=names)
    plain = list(loader(data))
    same(list(loader(data)), plain)
    same(list(loader(data, workers=2)), plain)
    other = loader(data)
    other.epoch_sampler.set_epoch(1)
    by_index = {int(i): x for b in plain for i, x in zip(b["index"], b["image"], strict=True)}
    again = {int(i): x for b in other for i, x in zip(b["index"], b["image"], strict=True)}
    common = by_index.keys() & again.keys()
    assert len(common) > 10
    assert sum(not torch.equal(by_index[i], again[i]) for i in common) > len(common) / 2


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_depends_on_its_seed_alone(name, channels):
    data = images(channels=channels, names=[name])
    batch = data.__getitems__([(i, 100 + i) for i in range(8)])
    state = torch.get_rng_state()
    for i in reversed(range(8)):
        assert torch.equal(data[i, 100 + i]["image"], batch[i]["image"])
    assert torch.equal(torch.get_rng_state(), state)
    views = torch.stack([data[3, seed]["image"] for seed in range(40)])
    assert views.dtype == torch.uint8
    assert views.shape == (40, channels, 16, 16)
    assert len({tuple(v.flatten().tolist()) for v in views}) > 1
    assert torch.equal(data[3]["image"], images(channels=channels)[3]["image"])  # no seed, plain


def test_flip_and_shift_by_hand():
    data = images(names=["flip"])
    plain = data[0]["image"]
    views = [data[0, seed]["image"] for seed in range(200)]
    flipped = [torch.equal(v, plain.flip(-1)) for v in views]
    assert all(f or torch.equal(v, plain) for f, v in zip(flipped, views, strict=True))
    assert 70 < sum(flipped) < 130

    data = images(names=["shift"])
    padded = torch.nn.functional.pad(plain, [2] * 4)
    places = {(y, x): padded[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)}
    seen = set()
    for seed in range(400):
        view = data[0, seed]["image"]
        matching = [place for place, crop in places.items() if torch.equal(crop, view)]
        assert len(matching) == 1
        seen.add(matching[0])
    assert len(seen) == 25


def test_flip_does_not_write_into_the_cache():
    data = images(names=["flip"])
    before = data._images.clone()
    for _ in loader(data):
        pass
    assert torch.equal(data._images, before)


def test_global_generator_is_left_alone():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for _ in loader(images(names=["color_jitter"])):
        pass
    for _ in eval_loader(images(), 5):
        pass
    assert torch.equal(torch.get_rng_state(), state)


def test_unknown_augmentation_names_the_nearest():
    with pytest.raises(ValueError, match="'randaugement'; nearest: randaugment"):
        Augmentation(["randaugement"], 16)


def test_batch_layout_and_default_collation():
    data = images()
    batch = next(iter(loader(data)))
    assert batch.keys() == {"image", "target", "index"}
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["target"].dtype == batch["index"].dtype == torch.int64
    assert torch.equal(batch["target"], data.targets[batch["index"]])
    assert next(iter(DataLoader(data, 4)))["image"].shape == (4, 3, 16, 16)


@pytest.mark.process
def test_eval_loader_reads_everything_in_order():
    data = images()
    batches = list(eval_loader(data, 5))
    assert [len(b["index"]) for b in batches] == [5, 5, 5, 5, 2]
    assert torch.cat([b["index"] for b in batches]).tolist() == list(range(22))
    assert torch.equal(torch.cat([b["image"] for b in batches]), data._images)
    part = list(eval_loader(Subset(data, range(1, 22, 2)), 5))
    assert torch.cat([b["index"] for b in part]).tolist() == list(range(1, 22, 2))
    same(list(eval_loader(data, 5, workers=2)), batches)


def test_train_loader_workers(monkeypatch):
    monkeypatch.setattr("vision.data.loaders.num_processors", lambda: 2)
    assert train_loader(Data(), images(), 4, seed=0).num_workers == 0
    costly = images(names=["rotate"])
    assert train_loader(Data(), costly, 4, seed=0).num_workers == 1
    assert train_loader(Data(), costly, 4, seed=0, world_size=4).num_workers == 0
    assert train_loader(Data(), costly, 4, seed=0, world_size=4, per_node=1).num_workers == 1
    assert train_loader(Data(workers=2), images(), 4, seed=0).num_workers == 2
    with pytest.raises(ValueError, match="batch size 23 with 22 training samples"):
        train_loader(Data(), images(), 23, seed=0)


@pytest.mark.process
@pytest.mark.parametrize("alphas", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_mixing(alphas):
    data = images()
    first = list(train_loader(Data(**alphas), data, 4, seed=0))
    torch.manual_seed(99)
    same(list(train_loader(Data(**alphas, workers=2), data, 4, seed=0)), first)
    for batch in first:
        assert batch["image"].dtype == torch.uint8
        assert batch["target"].shape == (4, 3)
        assert batch["target"].dtype == torch.float32
        torch.testing.assert_close(batch["target"].sum(1), torch.ones(4))
    assert any(((b["target"] > 0) & (b["target"] < 1)).any() for b in first)
    assert not any(torch.equal(a["image"], b["image"]) for a, b in itertools.pairwise(first))


@pytest.mark.process
def test_transforms_are_made_before_the_worker_processes_are():
    data = images(names=["rotate"])
    train_loader(Data(), data, 4, seed=0)
    assert data.augmentation._transforms


def test_mixup_equals_torchvisions():
    samples = images(names=None).__getitems__([(i, 7 + i) for i in range(4)])
    mixed = MixSamples(3, mixup=0.4)(samples)
    batch = collate_samples(samples)
    torch.manual_seed(int(mix_seeds(7, 1)[0]))
    choose = v2.RandomChoice([v2.MixUp(num_classes=3, alpha=0.4)])
    image, target = choose(batch["image"].float(), batch["target"])
    assert torch.equal(mixed["target"], target)
    assert (mixed["image"].float() - image).abs().max() <= 0.5


@pytest.mark.process
def test_a_set_and_its_collation_can_be_sent_to_spawned_workers():
    data = images(names=list(AUGMENTATIONS))
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[3, 5]["image"], data[3, 5]["image"])
    mix = MixSamples(3, mixup=0.4)
    samples = data.__getitems__([(0, 1), (1, 2)])
    assert torch.equal(pickle.loads(pickle.dumps(mix))(samples)["target"], mix(samples)["target"])


def test_more_views_leave_the_set_as_it_is():
    data = images()
    several = data.with_views(3)
    assert several[0, 5]["views"].shape == (3, 3, 16, 16)
    assert data.num_views == 1
    assert "views" not in data[0, 5]
    assert torch.equal(several[0, 5]["image"], data[0, 5]["image"])


def test_index_outside_the_set(unchecked):
    with pytest.raises(IndexError, match="index 22 in a set of 22"):
        images()[22]
    with pytest.raises(ValueError, match="images or paths"):
        ImageSet(torch.zeros(1), [], Data().preprocess())


def test_a_number_in_brackets():
    def share_erased(name):
        data = images(names=[name], channels=3)
        plain = data[0]["image"]
        return sum(not torch.equal(data[0, seed]["image"], plain) for seed in range(300)) / 300

    assert 0.4 < share_erased("random_erasing(0.5)") < 0.6
    assert 0.15 < share_erased("random_erasing") < 0.35
    assert share_erased("random_erasing(1)") == 1
    draw = Augmentation(["random_resized_crop(1.0)"], 16)
    assert draw._transforms == {}  # torchvision is imported for training alone
    draw.prepare()
    whole = draw._transforms["random_resized_crop"]
    assert whole.scale == (1.0, 1.0)
    assert Augmentation(["random_resized_crop(0.1)"], 16).crops_originals


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flip(0.5)", r"'flip\(0.5\)' takes no number; those that do: random_resized_crop"),
        ("random_erasing(2)", r"expected a number above 0, at most 1, as in random_erasing\(0.5\)"),
        ("random_erasing(x)", "expected a number above 0"),
        ("random_erasing(0.5", "expected a number above 0"),
        ("random_ersing(0.5)", "unknown augmentation 'random_ersing'; nearest: random_erasing"),
    ],
)
def test_a_number_that_means_nothing(name, message):
    with pytest.raises(ValueError, match=message):
        Augmentation([name], 16)
