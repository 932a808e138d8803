"""What every network must do. A method subclasses `NetworkContract` and names its network and tiny arch_kwargs."""

import contextlib
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from contract.on_request import OnRequest
from torch import nn

from nnunet_ext.errors import ConfigurationError

# Patches as nnU-Net plans them, with their strides.
PLANNED = {
    (40, 56, 40): [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
    (20, 320, 256): [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]],
    (28, 96, 112): [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]],
    (20, 80, 64): [[1, 1, 1], [1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
}
CUBE, CUBE_STRIDES = (128, 128, 128), [[1, 1, 1]] + [[2, 2, 2]] * 5
FLAT, FLAT_STRIDES = (512, 512), [[1, 1]] + [[2, 2]] * 7
# Patches that their strides do not divide.
ODD = {
    (41, 55, 39): PLANNED[40, 56, 40],
    (19, 83, 61): PLANNED[20, 80, 64],
    (9, 17, 13): [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    (10, 20, 14): [[1, 1, 1], [1, 3, 3], [2, 2, 2]],
}
PATCH, STRIDES = (8, 16, 16), [[1, 1, 1], [1, 2, 2], [2, 2, 2]]


def patches(table):
    return pytest.mark.parametrize(("patch", "strides"), table.items(), ids=["x".join(map(str, p)) for p in table])


def tensors(network):
    """All parameters and buffers by name (a network may store them in another form than it uses them)."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def heads(output):
    return output if isinstance(output, (list, tuple)) else [output]


def loss_of(outputs):
    """A loss over all heads, halved from each to the next as nnU-Net's is."""
    outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    # Not a plain mean: behind a normalisation that one has no gradient.
    return sum((output.sin() + output.square()).mean() / 2**k for k, output in enumerate(outputs))


def target_shapes(patch, strides):
    """The shapes to which nnU-Net's own transform samples the targets of these strides down, highest first."""
    scales = [list(scale) for scale in 1 / np.cumprod(np.vstack(strides), axis=0)][:-1]
    targets = DownsampleSegForDSTransform(scales)(segmentation=torch.zeros(1, *patch, dtype=torch.int16))
    return [tuple(target.shape[1:]) for target in targets["segmentation"]]


# Inductor: E2ENet trains with it in a test of its topology; the trainers' contract counts graphs without it.
MINUTES = ("test_the_compiled_network_computes_the_same",)


class NetworkContract(OnRequest):
    """Inherit, set `network_class`, and return tiny arch_kwargs for given strides (JSON values) in `arch_kwargs`."""

    network_class: type[nn.Module]
    older_torch: dict[str, str] = {}  # backend of torch.compile -> why torch 2.6 cannot train with it
    training_tolerance = 0.0  # of the largest logit, for one that compiled adds up in another order
    prediction_tolerance = 0.0  # of the largest logit, for a network that predicts with another order of summation

    @classmethod
    def arch_kwargs(cls, strides):
        raise NotImplementedError

    def build(self, strides=STRIDES, input_channels=2, num_classes=3, deep_supervision=False, seed=0):
        arch_kwargs = json.loads(json.dumps(self.arch_kwargs(strides)))  # as they come out of a plans file
        assert arch_kwargs["strides"] == strides, "nnU-Net reads the strides from the arch_kwargs"
        torch.manual_seed(seed)
        return self.network_class(input_channels, num_classes, deep_supervision=deep_supervision, **arch_kwargs)

    def image(self, patch=PATCH, channels=2, batch=1, seed=1):
        return torch.randn(batch, channels, *patch, generator=torch.Generator().manual_seed(seed))

    def needs_deep_supervision(self):
        if not self.network_class.supports_deep_supervision:
            pytest.skip("the network has one output")

    # shapes

    @patches(PLANNED)
    def test_logits_have_the_shape_of_a_planned_patch(self, patch, strides):
        with torch.no_grad():
            assert self.build(strides)(self.image(patch)).shape == (1, 3, *patch)

    @patches(ODD)
    def test_logits_have_the_shape_of_a_patch_that_the_strides_do_not_divide(self, patch, strides):
        with torch.no_grad():
            assert self.build(strides)(self.image(patch)).shape == (1, 3, *patch)

    def test_a_cube_of_128_keeps_its_shape_without_being_computed(self):
        with torch.device("meta"):
            network = self.build(CUBE_STRIDES)
        assert network(torch.empty(2, 2, *CUBE, device="meta")).shape == (2, 3, *CUBE)

    def test_2d_works_or_is_refused_in_words(self):
        if self.network_class.supports_2d:
            with torch.no_grad():
                assert self.build(FLAT_STRIDES)(self.image(FLAT)).shape == (1, 3, *FLAT)
        else:
            with pytest.raises(ConfigurationError, match="3D"):
                self.build(FLAT_STRIDES)

    @pytest.mark.parametrize("channels", range(1, 6))
    def test_images_have_one_to_five_channels(self, channels):
        outputs = self.build(input_channels=channels)(self.image(channels=channels, batch=2))
        assert outputs.shape == (2, 3, *PATCH)
        assert outputs.isfinite().all()

    @pytest.mark.parametrize("classes", range(1, 17))
    def test_logits_have_one_to_sixteen_channels(self, classes):
        with torch.no_grad():
            assert self.build(num_classes=classes)(self.image()).shape == (1, classes, *PATCH)

    # gradients

    @pytest.mark.parametrize("channels", [1, 4])
    @pytest.mark.parametrize("patch", [PATCH, (9, 17, 13)], ids=["divisible", "odd"])
    def test_every_trainable_parameter_gets_a_finite_gradient(self, channels, patch):
        network = self.build(input_channels=channels, deep_supervision=self.network_class.supports_deep_supervision)
        loss_of(network(self.image(patch, channels))).backward()
        trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
        assert trainable
        assert [name for name, p in trainable.items() if p.grad is None] == []
        assert [name for name, p in trainable.items() if not p.grad.isfinite().all()] == []

    # deep supervision

    @patches({(40, 56, 40): PLANNED[40, 56, 40], (20, 80, 64): PLANNED[20, 80, 64], PATCH: STRIDES, **ODD})
    def test_deep_supervision_gives_the_shapes_of_nnunets_targets_highest_resolution_first(self, patch, strides):
        self.needs_deep_supervision()
        with torch.no_grad():
            outputs = self.build(strides, deep_supervision=True)(self.image(patch))
        assert isinstance(outputs, (list, tuple))
        shapes = [tuple(output.shape[2:]) for output in outputs]
        assert shapes[0] == patch
        assert shapes == target_shapes(patch, strides)[: len(shapes)]
        assert {tuple(output.shape[:2]) for output in outputs} == {(1, 3)}

    def test_deep_supervision_is_an_attribute_that_switches_the_list_on_and_off(self):
        self.needs_deep_supervision()
        network = self.build(deep_supervision=True).eval()
        with torch.no_grad():
            first = network(self.image())[0]
            network.deep_supervision = False
            self.assert_predicted(network(self.image()), first)

    def assert_predicted(self, prediction, listed):
        assert (prediction - listed).abs().max() <= self.prediction_tolerance * listed.abs().max()

    # state

    def test_state_dicts_load_strictly_between_training_and_prediction(self):
        self.needs_deep_supervision()
        training = self.build(deep_supervision=True, seed=0).eval()
        prediction = self.build(deep_supervision=False, seed=1).eval()
        prediction.load_state_dict(training.state_dict(), strict=True)
        with torch.no_grad():
            self.assert_predicted(prediction(self.image()), training(self.image())[0])
        training.load_state_dict(prediction.state_dict(), strict=True)

    def test_the_state_dict_holds_all_that_prediction_needs(self):
        trained, fresh = self.build(seed=0).eval(), self.build(seed=1).eval()
        with torch.no_grad():
            assert not torch.equal(trained(self.image()), fresh(self.image()))
            fresh.load_state_dict(trained.state_dict(), strict=True)
            assert torch.equal(trained(self.image()), fresh(self.image()))

    def test_only_heads_depend_on_the_number_of_classes(self):
        """nnU-Net's -pretrained_weights skips keys with ".seg_layers." and wants all others in the same shape."""
        three, five = (self.build(num_classes=classes).state_dict() for classes in (3, 5))
        assert three.keys() == five.keys()
        differ = {key for key in three if three[key].shape != five[key].shape}
        assert differ
        assert differ == {key for key in three if ".seg_layers." in key}

    # outputs

    def test_outputs_can_be_edited_in_place(self):
        """nnU-Net's predictor does."""
        network, x = self.build().eval(), self.image()
        before = x.clone()
        with torch.inference_mode():
            first = network(x)
            kept = first.clone()
            first.mul_(0).add_(7)
            assert torch.equal(x, before)
            assert torch.equal(network(x), kept)

    def test_outputs_share_no_memory_with_each_other_or_the_input(self):
        network, x = self.build(deep_supervision=self.network_class.supports_deep_supervision), self.image()
        with torch.no_grad():
            outputs = network(x)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        taken = {tensor.untyped_storage().data_ptr() for tensor in (x, *tensors(network).values())}
        for output in outputs:
            assert output.untyped_storage().data_ptr() not in taken
            taken.add(output.untyped_storage().data_ptr())

    # determinism

    def test_one_seed_gives_one_network(self):
        one, same, other = self.build(seed=3), self.build(seed=3), self.build(seed=4)
        assert all(torch.equal(a, b) for a, b in zip(tensors(one).values(), tensors(same).values(), strict=True))
        with torch.no_grad():
            assert torch.equal(one.eval()(self.image()), same.eval()(self.image()))
            assert not torch.equal(one(self.image()), other.eval()(self.image()))

    def test_two_passes_over_one_image_are_equal(self):
        network = self.build().eval()
        with torch.no_grad():
            assert torch.equal(network(self.image()), network(self.image()))

    def test_building_on_the_meta_device_draws_no_random_numbers(self):
        """So that a check of the plans leaves the training's random numbers as they were."""
        torch.manual_seed(0)
        before = torch.get_rng_state()
        with torch.device("meta"):
            network = self.network_class(2, 3, deep_supervision=False, **self.arch_kwargs(STRIDES))
        assert {tensor.device.type for tensor in tensors(network).values()} == {"meta"}
        assert torch.equal(torch.get_rng_state(), before)

    # planning

    def test_feature_maps_are_what_a_training_step_keeps(self):
        """Measured: all that autograd saves, in elements of 4 bytes; within 5 %, for statistics and the like."""
        strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
        for patch in ((8, 32, 32), (16, 32, 48)):
            network = self.build(strides, deep_supervision=self.network_class.supports_deep_supervision).train()
            own = {tensor.untyped_storage().data_ptr() for tensor in tensors(network).values()}
            saved = {}

            def keep(tensor, own=own, saved=saved):
                if tensor.untyped_storage().data_ptr() not in own:
                    saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                outputs = network(self.image(patch))
            measured = sum(storage.nbytes() for storage in saved.values()) / 4
            assert network.compute_conv_feature_map_size(patch) == pytest.approx(measured, rel=0.05)
            del outputs

    # torch.compile

    def compiles_equally(self, backend, tolerance):
        """Outputs and gradients of the compiled network equal the plain one's, also after deep supervision changed."""
        deep = self.network_class.supports_deep_supervision
        torch._dynamo.reset()
        plain, other = self.build(deep_supervision=deep), self.build(deep_supervision=deep)
        compiled = torch.compile(other, backend=backend)
        expected, found = plain(self.image()), compiled(self.image())
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)
        loss_of(expected).backward()
        loss_of(found).backward()
        gradients = [{name: p.grad for name, p in network.named_parameters()} for network in (other, plain)]
        torch.testing.assert_close(*gradients, atol=tolerance, rtol=tolerance)
        if deep:
            other.deep_supervision = False
            with torch.no_grad():
                torch.testing.assert_close(compiled(self.image()), expected[0].detach(), atol=tolerance, rtol=tolerance)

    @pytest.mark.slow
    def test_dynamo_captures_the_network(self):
        if not self.network_class.supports_compile:
            pytest.skip("not claimed")
        self.compiles_equally("eager", tolerance=1e-4 if self.training_tolerance else 0)

    @pytest.mark.parametrize(
        ("backend", "training", "mode", "cast"),
        [
            ("eager", True, contextlib.nullcontext, True),  # a step on a GPU
            ("eager", False, torch.no_grad, True),  # its validation
            ("eager", False, torch.inference_mode, False),  # prediction
            pytest.param("aot_eager", True, contextlib.nullcontext, False, marks=pytest.mark.slow),
            pytest.param("aot_eager", False, torch.no_grad, False, marks=pytest.mark.slow),
        ],
    )
    def test_the_network_is_one_graph_as_nnunet_compiles_it(self, backend, training, mode, cast):
        if not self.network_class.supports_compile:
            pytest.skip("not claimed")
        if backend in self.older_torch and training and torch.__version__ < "2.7":
            pytest.skip(self.older_torch[backend])
        deep = self.network_class.supports_deep_supervision and mode is not torch.inference_mode
        torch._dynamo.reset()
        network, x = self.build(deep_supervision=deep).train(training), self.image()
        compiled = torch.compile(network, backend=backend, fullgraph=True)
        results = []
        for call in (compiled, network):
            with mode(), torch.autocast("cpu", torch.bfloat16, enabled=cast), torch.random.fork_rng():
                torch.manual_seed(0)
                results.append(heads(call(x)))
        limit = max(
            0.0 if backend == "eager" else 1e-5, self.training_tolerance if training else self.prediction_tolerance
        )
        for ours, theirs in zip(*results, strict=True):
            assert (ours.float() - theirs.float()).abs().max() <= limit * theirs.float().abs().max()
        if training:
            network.zero_grad()
            loss_of(results[0]).backward()
            assert all(p.grad is not None for p in network.parameters() if p.requires_grad)

    @pytest.mark.slow
    def test_steps_and_validations_in_turns_compile_once_each(self):
        if not self.network_class.supports_compile:
            pytest.skip("not claimed")
        torch._dynamo.reset()
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph

        network, x = self.build(deep_supervision=self.network_class.supports_deep_supervision), self.image()
        compiled = torch.compile(network, backend=backend)
        for _ in range(3):
            network.train()
            loss_of(compiled(x)).backward()
            network.eval()
            with torch.no_grad():
                compiled(x)
        assert len(graphs) == 2

    @pytest.mark.slow
    def test_the_compiled_network_computes_the_same(self):
        if not self.network_class.supports_compile:
            pytest.skip("not claimed")
        # Inductor fuses and reorders float32 sums; gradients of biases before a normalisation are pure rounding.
        self.compiles_equally("inductor", tolerance=1e-4)

    # distributed training

    def test_two_ranks_make_one_identical_step(self):
        """Each rank has its own data and its own start; find_unused_parameters is off, as in nnU-Net."""
        with tempfile.TemporaryDirectory() as folder:
            arguments = (folder, self.network_class, self.arch_kwargs(STRIDES))
            torch.multiprocessing.spawn(_two_steps_on_one_rank, arguments, nprocs=2)
            before, first, second = (torch.load(Path(folder, name)) for name in ("before0", "after0", "after1"))
        assert first.keys() == second.keys()
        assert [key for key in first if not torch.equal(first[key], second[key])] == []
        assert any(not torch.equal(first[key], before[key]) for key in first)


def _two_steps_on_one_rank(rank, folder, network_class, arch_kwargs):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(rank)
    deep = network_class.supports_deep_supervision
    network = network_class(2, 3, deep_supervision=deep, **arch_kwargs).train()
    parallel = nn.parallel.DistributedDataParallel(network, find_unused_parameters=False)
    torch.save(tensors(network), f"{folder}/before{rank}")
    trainable = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, 0.01, momentum=0.99, nesterov=True)
    for _ in range(2):  # the second forward pass is the one that complains about parameters unused in the first
        optimizer.zero_grad()
        loss_of(parallel(torch.randn(1, 2, *PATCH))).backward()
        optimizer.step()
    torch.save(tensors(network), f"{folder}/after{rank}")
    torch.distributed.destroy_process_group()
