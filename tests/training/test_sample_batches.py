import numpy as np
import pytest
import torch

from raysim.training.sample_batches import Pool, Samples, batches, draw_order
from raysim.training.transforms import ModelInput, augment, augmentation

IMAGES = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
LABELS = np.arange(10)
CPU = torch.device("cpu")


def epoch_of(indices, clients, batch_size=2, augment="none", budget=0):
    pool = Pool.gather(Samples(IMAGES, LABELS, CPU, budget), [np.array(i) for i in indices])
    order = draw_order(0, "batches", 3, np.array(clients), pool.counts, 2, augmentation(augment), 2, CPU)
    return list(batches(pool, order, 1, batch_size, ModelInput(2), augmentation(augment)))


def test_every_sample_once_per_epoch_padding_masked():
    got = epoch_of([[1, 2, 3, 4, 5], [6, 7]], [10, 11])
    assert [batch.labels.shape for batch, _ in got] == [(2, 2), (2, 2), (2, 1)]
    assert [everyone for _, everyone in got] == [True, False, False]
    seen = [
        sorted(
            label
            for batch, _ in got
            for label, m in zip(batch.labels[k].tolist(), batch.mask[k].tolist(), strict=True)
            if m
        )
        for k in range(2)
    ]
    assert seen == [[1, 2, 3, 4, 5], [6, 7]]
    for batch, _ in got:  # images belong to their labels
        torch.testing.assert_close(batch.images[..., 0, 0, 0], batch.labels * (2 / 255) - 1)


def test_a_clients_order_does_not_depend_on_who_is_beside_it():
    alone = [batch.labels[0].tolist() for batch, _ in epoch_of([[6, 7, 8]], [11])]
    beside = [batch.labels[1].tolist() for batch, _ in epoch_of([[1, 2, 3, 4, 5], [6, 7, 8]], [10, 11])]
    assert alone[0] == beside[0]
    assert alone[1][:1] == beside[1][:1]


def test_samples_are_the_same_on_their_device_and_copied_as_needed():
    copied, resident = (epoch_of([[1, 2, 3], [6, 7]], [10, 11], budget=budget) for budget in (0, 10**6))
    for (a, _), (b, _) in zip(copied, resident, strict=True):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(a, b, strict=True))


def test_samples_are_read_where_they_lie_and_stay_as_they_are():
    frozen = IMAGES.copy()
    frozen.flags.writeable = False
    samples = Samples(frozen, LABELS, CPU, 0)
    images, labels = samples.at(np.array([[3, 4], [5, 3]]))
    assert labels.tolist() == [[3, 4], [5, 3]]
    images.zero_()
    assert frozen[3].max() == 3


def test_epochs_and_rounds_differ():
    counts = np.array([10])
    first = draw_order(0, "batches", 0, np.array([5]), counts, 2, None, 2, CPU).positions
    second = draw_order(0, "batches", 1, np.array([5]), counts, 2, None, 2, CPU).positions
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], second[0])


def test_augment_by_hand():
    image = torch.tensor([[[1], [2]], [[3], [4]]], dtype=torch.uint8)[None]  # rows 1 2 / 3 4
    shift = torch.tensor([[1, 0]])
    still, flipped = torch.tensor([False]), torch.tensor([True])
    assert augment(image, still, torch.zeros_like(shift)).flatten().tolist() == [1, 2, 3, 4]
    assert augment(image, flipped, torch.zeros_like(shift)).flatten().tolist() == [2, 1, 4, 3]
    assert augment(image, still, shift).flatten().tolist() == [0, 0, 1, 2]
    assert augment(image, still, torch.tensor([[0, -1]])).flatten().tolist() == [2, 0, 4, 0]


@pytest.mark.parametrize(("name", "reach"), [("flip", 0), ("crop_flip", 4)])
def test_augmentation_is_drawn_in_range(name, reach):
    flips, shifts = augmentation(name).draw(500, 32, np.random.default_rng(0))
    assert 200 < flips.sum() < 300
    assert (shifts.min(), shifts.max()) == (-reach, reach)


def test_augmentation_is_the_clients_own():
    counts = np.array([4, 6])
    for name in ("crop_flip", "own:brighter"):
        both = draw_order(0, "batches", 0, np.array([1, 2]), counts, 1, augmentation(name), 32, CPU)
        alone = draw_order(0, "batches", 0, np.array([2]), counts[1:], 1, augmentation(name), 32, CPU)
        assert len(both.drawn) == len(alone.drawn) == (2 if name == "crop_flip" else 1)
        for beside, own in zip(both.drawn, alone.drawn, strict=True):
            assert np.array_equal(beside[:, 1], own[:, 0])
    assert len(epoch_of([[1, 2, 3]], [4], augment="flip")) == 2


def test_an_augmentation_of_ones_own():
    plain, bright = epoch_of([[1, 2, 3]], [4]), epoch_of([[1, 2, 3]], [4], augment="own:brighter")
    seen = []
    for (before, _), (after, _) in zip(plain, bright, strict=True):
        assert torch.equal(before.labels, after.labels)
        added = ((after.images - before.images) * 255 / 2).round()
        assert (added >= 0).all()
        assert (added.amax(dim=(2, 3, 4)) == added.amin(dim=(2, 3, 4))).all()  # the same for all pixels of an image
        seen += added.amax(dim=(2, 3, 4)).flatten().tolist()
    assert len(set(seen)) == 3  # but not of all images


def test_model_input_is_normalised_and_resized_on_the_way():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1, 1).expand(2, 3, 4, 4, 1)
    out = ModelInput(8)(images)
    assert out.shape == (2, 3, 1, 8, 8)
    torch.testing.assert_close(out, torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1, 1).expand_as(out))
    x = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    torch.testing.assert_close(ModelInput(16)(x)[0, 0], (x[0, :, :, 0].float() / 255 - 0.5) / 0.5)
