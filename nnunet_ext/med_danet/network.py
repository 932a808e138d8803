"""Med-DANet (arXiv 2206.06575): a bank of 2D candidates and a decision network that chooses one, or none, per slice."""

import copy
import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnunet_ext.costs.complexity import kept_elements
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.med_danet.bank import PAPER_BANK, POSITION_SIZE, read_bank, token_grid
from nnunet_ext.med_danet.candidates import UNet2D, build_candidate
from nnunet_ext.med_danet.decision import SHUFFLENET, DecisionNetwork, build_decision
from nnunet_ext.med_danet.routing import IN_PLANE, choices_of, mean_of_mirrored, mirrored

# Where tiles overlap that decided differently, votes are averaged. A margin of 5 is below that of most pixels which a
# trained candidate calls foreground (medians of 6.5 to 10 were seen): what it has found outweighs as many skips.
SKIP_LOGIT = 2.5
FLIPS: tuple[list[int], ...] = ([], [IN_PLANE[0]], [IN_PLANE[1]], [*IN_PLANE])
FEW_SIZES_ON = ("cuda",)  # devices whose compiled candidates get groups of few sizes


class SkipVote(nn.Module):
    """The logits of a skipped slice, one a class: background."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # Named as a head, because its shape depends on the number of classes.
        self.seg_layers = nn.Module()
        self.seg_layers.register_buffer("logits", torch.full((num_classes,), -SKIP_LOGIT))

    @property
    def logits(self) -> Tensor:
        """`[K]`."""
        logits = self.seg_layers.logits
        assert isinstance(logits, Tensor)
        return logits


class MedDANet(nn.Module):
    """Routes every slice along the first spatial axis to skip or to one candidate; 2D images are one slice.

    Until `decision_trained` is set, the largest candidate (by parameters) predicts all slices. The state dict also
    holds `skip_threshold`, the share of skip (mean softmax over the slice's flips along `mirror_axes`, two bools for
    height and width) above which a slice is skipped if its `skip_neighbours` on either side are above it too.

    Args:
        strides: of the plan; they say whether images are 2D or 3D. The candidates down-sample by their own rules.
        candidates: see `bank.read_bank`; by default the paper's M1 to M4.
        position_size: height and width in pixels for which TransBTS learns positions; other sizes are interpolated.
        decision: the network that chooses, see `decision.build_decision`.
        deep_supervision: accepted, because nnU-Net gives it to every network, and without effect.

    Raises:
        ConfigurationError: bad strides, candidates, position_size or decision.
    """

    supports_2d = True
    supports_compile = False  # the choices are read on the CPU; see compile_candidates
    supports_deep_supervision = False
    no_fixed_graph = "which of its networks a slice takes depends on the slice"  # asked by what converts networks

    decision_trained: Tensor
    skip_threshold: Tensor
    skip_neighbours: Tensor
    mirror_axes: Tensor

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        strides: Sequence[Sequence[int]],
        candidates: Sequence[dict[str, Any]] = PAPER_BANK,
        position_size: Sequence[int] = POSITION_SIZE,
        decision: str = SHUFFLENET,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if not strides or {len(stride) for stride in strides} not in ({2}, {3}):
            raise ConfigurationError(f"'strides' must be lists of two numbers (2D) or three (3D), found {strides!r}.")
        if len(position_size) != 2 or any(type(side) is not int or side < 1 for side in position_size):
            raise ConfigurationError(f"'position_size' must be height and width in pixels, found {position_size!r}.")
        self.input_channels, self.num_classes = input_channels, num_classes
        self.dimensions = len(strides[0])
        grid = token_grid(position_size)
        self.bank = read_bank(candidates)
        self.candidates = nn.ModuleList(build_candidate(c, input_channels, num_classes, grid) for c in self.bank)
        self._new_decision = partial(build_decision, decision, input_channels, len(self.bank) + 1)
        self.decision = self._new_decision()
        self.skip = SkipVote(num_classes)
        self.set_regions(num_classes == 1)
        self.register_buffer("decision_trained", torch.tensor(False))
        self.register_buffer("skip_threshold", torch.tensor(0.5))
        self.register_buffer("skip_neighbours", torch.tensor(0))
        self.register_buffer("mirror_axes", torch.tensor([True, True]))
        sizes = [sum(p.numel() for p in candidate.parameters()) for candidate in self.candidates]
        self.largest = sizes.index(max(sizes))
        # A list here gets what every routed pass chose, one number a slice: 0 for skip, then the candidates.
        self.record: list[list[int]] | None = None
        self._latest: Decided | None = None
        self._for_cpus = False
        self._compiled: list[Any] = []
        self.register_load_state_dict_pre_hook(_without_rules)
        self.register_load_state_dict_post_hook(_say_what_predicts)

    def set_regions(self, regions: bool) -> None:
        """Whether a skipped slice says background by all logits below 0 (regions) or by the first above the others."""
        with torch.no_grad():
            self.skip.logits.fill_(-SKIP_LOGIT)
            if not regions:
                self.skip.logits[0] = SKIP_LOGIT

    @torch.no_grad()
    def restart_decision(self, seed: int) -> None:
        """Gives the decision network new weights, and takes its say; other random numbers are as before."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.decision.load_state_dict(self._new_decision().state_dict())
        self.decision_trained.fill_(False)

    @property
    def routes(self) -> bool:
        """Whether the decision network is trained, so that it may choose."""
        return not self.decision_trained.is_meta and bool(self.decision_trained)

    def fold(self, x: Tensor) -> Tensor:
        """`[B, C, D, H, W]` -> slices `[B * D, C, H, W]`; 2D images as they are."""
        return x if x.ndim == 4 else x.transpose(1, 2).flatten(0, 1)

    def unfold(self, slices: Tensor, x: Tensor) -> Tensor:
        """Slices `[B * D, K, H, W]` of image `x` -> `[B, K, D, H, W]`."""
        return slices if x.ndim == 4 else slices.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """`x [B, C, H, W]` or `[B, C, D, H, W]` -> logits `[B, K, ...]`, routed slice by slice if `routes`."""
        return self._routed(x) if self.routes else self.candidate(self.largest, x)

    def candidate(self, index: int, x: Tensor) -> Tensor:
        """Logits `[B, K, ...]` of one candidate on all slices of `x`."""
        return self.unfold(self._segment(index, self.fold(x)), x)

    def compile_candidates(self, **options: Any) -> list[Any]:
        """Compiles each candidate, once for all numbers of slices; the state dict stays as it is.

        Args:
            **options: of `torch.compile`.
        """
        # Candidates of one class share one function to dynamo, which by default gives it up after eight graphs.
        config = torch._dynamo.config
        config.cache_size_limit = max(config.cache_size_limit, 4 * len(self.candidates))
        self._compiled = [torch.compile(candidate, **options) for candidate in self.candidates]
        return self._compiled

    def _segment(self, index: int, slices: Tensor) -> Tensor:
        count = len(slices)
        if self._compiled and not slices.is_meta:  # costs are counted on the meta device
            if count == 1 and not self.candidates[index].training:
                slices = slices.repeat(2, 1, 1, 1)  # dynamo makes a batch of one a case of its own
            torch._dynamo.maybe_mark_dynamic(slices, 0)
            logits = self._compiled[index](slices)
        else:
            logits = self.candidates[index](slices)
        logits = logits[0] if isinstance(logits, (list, tuple)) else logits
        return logits[:count]

    def shares(self, x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
        """What the decision network gives to skip and to each candidate, `[B, D, choices]` in float32 (2D: D = 1).

        The mean of the softmax over the slices' flips along `axes`, by default `mirror_axes`: mirrored images have the
        same.
        """
        if axes is None:
            axes = [axis for axis, mirrors in zip(IN_PLANE, self.mirror_axes.tolist(), strict=True) if mirrors]
        slices = self.fold(x)
        shares = self.decision(mirrored(slices, axes)).float().softmax(1)
        return mean_of_mirrored(shares, len(slices)).unflatten(0, (len(x), -1))

    def choices(self, x: Tensor) -> list[int]:
        """What each slice gets, in the order of `fold`: 0 for skip, else 1 + the index of a candidate."""
        return self.decided(x).choices

    def decided(self, x: Tensor) -> "Decided":
        """Shares and choices of the slices of `x`.

        nnU-Net predicts an image's flips one after the other: what was decided for one of them a moment ago holds.
        """
        state = torch.cat([value.detach().flatten().float() for value in self._deciding()])
        same = state.new_zeros(len(FLIPS)) if self._latest is None else self._latest.holds_for(x, state)
        # All that the CPU must know comes at once, because it waits for the card each time.
        neighbours, *told = torch.cat([state[-3:], same]).tolist()
        axes = [axis for axis, mirrors in zip(IN_PLANE, told, strict=False) if mirrors]
        holds = any(equal and set(flip) <= set(axes) for flip, equal in zip(FLIPS, told[2:], strict=True))
        if self._latest is None or not holds:
            shares = self.shares(x, axes)
            choices = choices_of(shares, self.skip_threshold, int(neighbours)).flatten().tolist()
            self._latest = Decided(x.detach().clone(), state, shares, choices)
        return self._latest

    def _deciding(self) -> list[Tensor]:
        rules = [self.skip_threshold, self.skip_neighbours, self.mirror_axes]
        return [*self.decision.parameters(), *self.decision.buffers(), *rules]

    @torch.compiler.disable
    def _routed(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":
            self.arrange_for_cpus()
        slices = self.fold(x)
        choices = self.choices(x)
        if self.record is not None:
            self.record.append(choices)
        groups = {choice: [n for n, c in enumerate(choices) if c == choice] for choice in sorted({*choices} - {0})}
        results = []
        with _NoBenchmark(slices):
            for choice, numbers in groups.items():
                size = self._group_size(choice - 1, len(numbers), slices)
                filled = torch.tensor(numbers + numbers[:1] * (size - len(numbers)), device=slices.device)
                logits = self._segment(choice - 1, slices.index_select(0, filled))
                results.append((filled[: len(numbers)], logits[: len(numbers)]))
        dtype = results[0][1].dtype if results else slices.dtype
        shape = (len(slices), self.num_classes, *slices.shape[2:])
        logits = self.skip.logits.to(dtype).view(1, -1, 1, 1).expand(shape).contiguous()
        for where, result in results:
            logits.index_copy_(0, where, result.to(dtype))
        return self.unfold(logits, x)

    def _group_size(self, index: int, count: int, slices: Tensor) -> int:
        """To how many a group is filled up by repeating a slice: CUDA graphs, and guards, are made for each size.

        A power of two, or all slices of the tile. In training every slice counts in the statistics.
        """
        if not self._compiled or self.candidates[index].training or slices.device.type not in FEW_SIZES_ON:
            return count
        return min(1 << (count - 1).bit_length(), len(slices))

    def arrange_for_cpus(self, arranged: bool = True) -> None:
        """Channels last in memory, where torch's convolutions are faster so: U-Nets by a tenth, decisions by half.

        They then round otherwise, and BatchNorm in training by more. The first pass that routes does it, but not with
        compiled candidates; `arranged=False` takes it back.
        """
        if self._for_cpus == arranged or self._compiled:
            return
        form = torch.channels_last if arranged else torch.contiguous_format
        for part in (self.decision, *(candidate for candidate in self.candidates if isinstance(candidate, UNet2D))):
            part.to(memory_format=form)
        self._for_cpus = arranged

    def check_patch_size(self, patch_size: Sequence[int]) -> None:
        """Runs candidates, and decision networks, of other packages on torch's meta device.

        Raises:
            ConfigurationError: one cannot take slices of this patch, or gives another shape.
        """
        size = tuple(patch_size)[-2:]
        strangers = [
            (f"Candidate {number} ({described.type})", network, (1, self.num_classes, *size))
            for number, (described, network) in enumerate(zip(self.bank, self.candidates, strict=True), start=1)
            if not described.is_built_in
        ]
        if not isinstance(self.decision, DecisionNetwork):
            strangers.append(("The decision network", self.decision, (1, len(self.bank) + 1)))
        for name, network, expected in strangers:
            shadow = copy.deepcopy(network).to("meta").eval()
            try:
                logits = shadow(torch.empty(1, self.input_channels, *size, device="meta"))
            except Exception as error:  # whatever a network of others raises
                raise ConfigurationError(f"{name} fails on slices {size}: {error}") from error
            logits = logits[0] if isinstance(logits, (list, tuple)) else logits
            if tuple(logits.shape) != expected:
                raise ConfigurationError(
                    f"{name} gives {list(logits.shape)} for slices {size}, expected {list(expected)}."
                )

    def compute_conv_feature_map_size(self, patch_size: Sequence[int]) -> int:
        """Elements that a training step keeps for one image: those of the candidate that keeps most.

        Candidates are trained one after the other; what autograd saves is counted on torch's meta device.
        """
        slices = math.prod(patch_size[:-2])
        x = torch.empty(max(slices, 2), self.input_channels, *patch_size[-2:], device="meta")
        most = max(kept_elements(candidate, x) for candidate in self.candidates)
        return round(most * slices / len(x))


class Decided(NamedTuple):
    """What was decided for the slices of an image by a state of the decision network and its rules.

    `shares` are those of `MedDANet.shares`, `choices` one number a slice.
    """

    x: Tensor
    state: Tensor
    shares: Tensor
    choices: list[int]

    def holds_for(self, x: Tensor, state: Tensor) -> Tensor:
        """`[4]`, for each of `FLIPS`: 1 where `x` is the image so flipped and nothing that decides has changed."""
        if (x.shape, x.dtype, x.device) != (self.x.shape, self.x.dtype, self.x.device):
            return state.new_zeros(len(FLIPS))
        unchanged = (state == self.state).all()
        return torch.stack([unchanged & (x == self.x.flip(flip)).all() for flip in FLIPS]).to(state.dtype)


class _NoBenchmark:
    """Switches off cuDNN's search for the fastest algorithm, which would run anew for every size of a group."""

    def __init__(self, x: Tensor) -> None:
        self.needed = x.is_cuda and torch.backends.cudnn.benchmark

    def __enter__(self) -> None:
        if self.needed:
            torch.backends.cudnn.benchmark = False

    def __exit__(self, *_: object) -> None:
        if self.needed:
            torch.backends.cudnn.benchmark = True


def _without_rules(network: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Weights that know no rules of skipping get those of a new network."""
    assert isinstance(network, MedDANet)
    for name in ("skip_threshold", "skip_neighbours", "mirror_axes"):
        state.setdefault(prefix + name, getattr(network, name))


def _say_what_predicts(network: nn.Module, _: Any) -> None:
    assert isinstance(network, MedDANet)
    if not network.routes and not network.decision_trained.is_meta:
        largest = network.bank[network.largest].title
        warnings.warn(
            f"The decision network of these weights is not trained yet: {largest} predicts every slice.", stacklevel=3
        )


def arch_kwargs_at(strides: Sequence[Sequence[int]], patch_size: Sequence[int] | None = None) -> dict[str, Any]:
    """The paper's bank for a plan, JSON values only, with positions for slices of the patch (voxels)."""
    return {
        "strides": [list(map(int, stride)) for stride in strides],
        "candidates": copy.deepcopy(PAPER_BANK),
        "position_size": [int(side) for side in (patch_size or POSITION_SIZE)[-2:]],
    }
