"""Loaders beside nnU-Net's own."""

from nnunet_ext.trainers.loaders import PairedBatches, finish


def test_the_second_batch_comes_only_when_the_architecture_moves():
    joint = iter([False, True])
    made = []

    def second():
        made.append(1)
        return iter([{"data": 10}])

    pairs = PairedBatches(iter([{"data": 1}, {"data": 2}]), second, lambda: next(joint))
    assert next(pairs) == {"data": 1} and made == []
    assert next(pairs) == {"data": 2, "architecture": {"data": 10}} and made == [1]


def test_loaders_with_workers_are_ended():
    class Workers:
        ended = 0

        def _finish(self):
            self.ended += 1

    one, two = Workers(), Workers()
    pairs = PairedBatches(one, lambda: two, lambda: True)
    pairs.architecture = two
    pairs.finish()
    PairedBatches(one, lambda: two, lambda: True).finish()  # the second was never made
    finish(iter([]))
    assert (one.ended, two.ended) == (2, 1)
