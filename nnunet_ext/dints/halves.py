"""Two halves of the training cases: one trains the weights of a supernet, the other its architecture (section 3.6)."""

import os
import random
from collections.abc import Callable, Sequence

from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import read_json, write_json


def split_in_halves(keys: Sequence[str], seed: int) -> tuple[list[str], list[str]]:
    """The cases shuffled by the seed and cut in two, each half sorted; the first has one more of an odd number.

    Raises:
        ConfigurationError: fewer than two cases.
    """
    if len(keys) < 2:
        raise ConfigurationError(
            f"A search needs at least two training cases, one for the weights and one for the architecture; "
            f"this fold has {len(keys)}."
        )
    shuffled = sorted(keys)
    random.Random(seed).shuffle(shuffled)
    middle = (len(shuffled) + 1) // 2
    return sorted(shuffled[:middle]), sorted(shuffled[middle:])


def kept_halves(
    path: str | os.PathLike,
    keys: Sequence[str],
    seed: int,
    *,
    continued: bool,
    write: bool,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[str], list[str]]:
    """The halves that the file at `path` says, where a search is continued; else new ones.

    Where the cases of the fold have changed since, those that are still there stay in their half, and `say` tells it.
    `write`: new halves are written there.
    """
    halves = split_in_halves(keys, seed)
    if continued and os.path.isfile(path):
        saved = read_json(path)
        known = {*saved["train1"], *saved["train2"]}
        if known == set(keys):
            return saved["train1"], saved["train2"]
        first, second = (sorted(set(half) & set(keys)) for half in (saved["train1"], saved["train2"]))
        for key in sorted(set(keys) - known):
            (first if len(first) <= len(second) else second).append(key)
        if first and second:  # else there is nothing to keep
            halves = sorted(first), sorted(second)
        say(
            f"The cases of this fold have changed since the search began: {len(set(keys) - known)} are new, "
            f"{len(known - set(keys))} are gone. The others stay in the half in which they were."
        )
    if write:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_json(path, {"train1": halves[0], "train2": halves[1]})
    return halves
