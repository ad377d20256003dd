"""Training on the array: exact products, straight-through gradients, torch's own customs."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fsim
from fsim.accel_models.load import load_accel
from fsim.errors import ConfigError, MappingError
from fsim.fault_models.bit_errors import BitErrors
from fsim.fault_models.network import Explicit
from fsim.fault_models.upsets import SingleFault
from fsim.simulator.bridge import operators
from fsim.simulator.bridge.session import Session
from fsim.simulator.bridge.site import conv_site, linear_site
from tests.test_exact import naive_convolution

ACCEL = load_accel("systolic-8x8")


class Net(nn.Module):
    """Strided, dilated, grouped and depthwise convolutions, a bias, BN, a shared module."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.depth = nn.Conv2d(6, 6, 3, stride=2, padding=2, dilation=2, groups=6)
        self.twice = nn.Conv2d(6, 6, 1, groups=2)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.first(x)))
        x = F.relu(self.depth(x))
        x = self.twice(F.relu(self.twice(x)))
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(3)
    return Net().eval()


@pytest.fixture
def images():
    noise = torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(5))
    return noise + torch.linspace(-1, 1, 16).reshape(-1, 1, 1, 1)


def session(*sites, model=None):
    made = Session(ACCEL, sites)
    made.model = model
    return made


def conv_arguments(held, *, signed=True, bias=True, trial=-1, seed=0, **change):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 4, 7, 6, generator=generator)
    x = (x if signed else x.relu()).requires_grad_()
    weight = torch.randn(6, 2, 3, 2, generator=generator, requires_grad=True)
    b = torch.randn(6, generator=generator, requires_grad=True) if bias else None
    scale = operators.activation_scale(x, signed)
    return (x, weight, b, scale, [2, 1], [1, 2], [1, 2], 2, signed, held.handle, 0, trial)


def conv_of(signed=True):
    return conv_site(0, "c", ACCEL, (4, 7, 6), (6, 2, 3, 2), signed, (2, 1), (1, 2), (1, 2), 2)


def fake_quantised(x, weight, scale):
    """Activations and weights on their grids, gradients straight through; w's scale by channel."""
    top = weight.detach().abs().flatten(1).amax(1) / 127
    top = top.reshape(-1, *[1] * (weight.ndim - 1))
    grid = (x / scale).round() * scale, (weight / top).round() * top
    return tuple(v + (g - v).detach() for v, g in zip((x, weight), grid))


# --- the operators


@pytest.mark.parametrize("signed", [True, False])
def test_convolution_is_that_of_the_integer_codes(signed):
    held = session(conv_of(signed))
    x, weight, bias, scale, *rest = conv_arguments(held, signed=signed)
    out, codes = torch.ops.fsim.conv2d(x, weight, bias, scale, *rest)
    lo, hi = (-128, 127) if signed else (0, 255)
    step = weight.detach().abs().flatten(1).amax(1) / 127
    x_codes = np.clip(np.rint((x.detach() / scale).numpy()), lo, hi).astype(np.int64)
    w_codes = np.rint((weight.detach() / step.reshape(-1, 1, 1, 1)).numpy()).astype(np.int64)
    units = np.rint((bias.detach().double() / (scale.double() * step.double())).numpy())
    x_codes = x_codes.transpose(0, 2, 3, 1)
    want = naive_convolution(x_codes, w_codes, (2, 1), (2, 2, 1, 1), (1, 2), 2) + units
    real = want.astype(np.float32) * (scale * step).numpy()
    np.testing.assert_array_equal(out.detach().permute(0, 2, 3, 1).numpy(), real)
    np.testing.assert_array_equal(codes.numpy(), x_codes)
    assert codes.dtype == (torch.int8 if signed else torch.uint8)


@pytest.mark.parametrize("function", [torch.ops.fsim.conv2d, operators.ArrayConv2d.apply])
def test_gradients_are_those_of_the_quantised_convolution(function):
    held = session(conv_of())
    x, weight, bias, scale, *rest = conv_arguments(held)
    out = function(x, weight, bias, scale, *rest)[0]
    (out * torch.arange(out.numel()).reshape(out.shape) / 100).sum().backward()
    got = [v.grad.clone() for v in (x, weight, bias)]
    for v in (x, weight, bias):
        v.grad = None
    plain = F.conv2d(*fake_quantised(x, weight, scale), bias, (2, 1), (1, 2), (1, 2), 2)
    (plain * torch.arange(out.numel()).reshape(out.shape) / 100).sum().backward()
    for mine, v in zip(got, (x, weight, bias)):
        torch.testing.assert_close(mine, v.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", [torch.ops.fsim.linear, operators.ArrayLinear.apply])
@pytest.mark.parametrize("shape", [(5, 9), (2, 3, 9)])
def test_linear_and_its_gradients(function, shape):
    torch.manual_seed(1)
    x = torch.randn(shape, requires_grad=True)
    weight, bias = torch.randn(4, 9, requires_grad=True), torch.randn(4, requires_grad=True)
    held = session(linear_site(0, "fc", ACCEL, shape[1:], 4, True))
    scale = operators.activation_scale(x, True)
    out = function(x, weight, bias, scale, True, held.handle, 0, -1)[0]
    plain = F.linear(*fake_quantised(x, weight, scale), bias)
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-2)  # the bias is rounded as well
    out.square().sum().backward()
    got = [v.grad.clone() for v in (x, weight, bias)]
    for v in (x, weight, bias):
        v.grad = None
    plain.square().sum().backward()
    for mine, v in zip(got, (x, weight, bias)):
        torch.testing.assert_close(mine, v.grad, rtol=1e-2, atol=0.1)


def test_operators_pass_torch_s_own_check():
    held = session(conv_of(), linear_site(1, "fc", ACCEL, (20,), 7, True),
                   model=BitErrors(1e-3, 1e-3, 1e-3))  # fmt: skip
    for bias in (True, False):
        torch.library.opcheck(torch.ops.fsim.conv2d.default, conv_arguments(held, bias=bias))
    x, w = torch.randn(4, 20, requires_grad=True), torch.randn(7, 20, requires_grad=True)
    arguments = (x, w, None, torch.tensor(0.02), True, held.handle, 1, 3)
    torch.library.opcheck(torch.ops.fsim.linear.default, arguments)


def test_operators_compile_as_one_graph():
    held = session(conv_of(), model=BitErrors(1e-3, 1e-3, 1e-3))
    x, weight, bias, scale, *rest = conv_arguments(held, trial=2)

    def step(x, weight, bias):
        return torch.ops.fsim.conv2d(x, weight, bias, scale, *rest)[0].relu().sum()

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        loss = function(x, weight, bias)
        results.append((loss.detach(), *torch.autograd.grad(loss, (x, weight, bias))))
    for one, other in zip(*results):
        assert torch.equal(one, other)


def test_a_fault_of_each_memory_is_in_the_product():
    """Flips written by hand into the codes of an integer convolution."""
    held = session(conv_of())
    x, weight, _, scale, *rest = conv_arguments(held, bias=False)
    codes = torch.ops.fsim.conv2d(x, weight, None, scale, *rest)[1].numpy().astype(np.int64)
    step = weight.detach().abs().flatten(1).amax(1) / 127
    w = np.rint((weight.detach() / step.reshape(-1, 1, 1, 1)).numpy()).astype(np.int64)

    def product(codes, w):
        return naive_convolution(codes, w, (2, 1), (2, 2, 1, 1), (1, 2), 2)

    changed_x, changed_w = codes.copy(), w.copy()
    changed_x[1].reshape(-1)[17] ^= 4
    changed_w.reshape(-1)[29] ^= 2
    whole = product(codes, w)
    final = whole.copy()
    final[2].reshape(-1)[3] ^= 1 << 6  # in the last of two folds (k = 12, 8 rows)
    for fault, want in (
        (fsim.Fault("acts", word=17, bit=2, cycle=0, image=1, layer="c"), product(changed_x, w)),
        (fsim.Fault("weights", word=29, bit=1, cycle=0, layer="c"), product(codes, changed_w)),
        (fsim.Fault("psums", word=3, bit=6, cycle=1, image=2, layer="c"), final),
    ):
        held.model = Explicit((fault,))
        got = torch.ops.fsim.conv2d(x, weight, None, scale, *rest[:-1], 0)[0]
        if fault.component != "acts":  # a wrong sum stays in the range of its channel
            want = np.clip(want, whole.min((0, 1, 2)), whole.max((0, 1, 2)))
        real = want.astype(np.float32) * (scale * step).numpy()
        np.testing.assert_array_equal(got.detach().permute(0, 2, 3, 1).numpy(), real)
        assert (want != whole).any()


def test_threads_and_the_number_of_images_change_nothing():
    held = session(conv_of(), model=BitErrors(1e-3, 1e-3, 1e-3))
    arguments = conv_arguments(held, trial=4)
    before = torch.get_num_threads()
    try:
        outs = []
        for count in (1, 2):
            torch.set_num_threads(count)
            outs.append(torch.ops.fsim.conv2d(*arguments)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*outs)


# --- a network


def losses(model, images, steps=25, rate=0.05):
    labels = (images.mean((1, 2, 3)) > 0).long()
    optimiser = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    found = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimiser.step()
        found.append(float(loss.detach()))
    return found


def test_training_learns_under_faults(net, images):
    model = fsim.attach(net, ACCEL, calibration=images, rates=1e-4).train()
    found = losses(model, images, steps=40, rate=0.1)
    assert found[-1] < 0.1 * found[0]
    assert model.trial == 40  # one draw of faults each step


def test_training_without_faults_is_quantisation_aware_training(net, images):
    class FakeQuantised(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func in (F.conv2d, torch.conv2d, F.linear):
                x, weight, *rest = args
                top = 255 if float(x.detach().amin()) >= 0 else 127
                x, weight = fake_quantised(x, weight, x.detach().abs().amax() / top)
                args = (x, weight, *rest)
            return func(*args, **(kwargs or {}))

    model = fsim.attach(copy.deepcopy(net), ACCEL, calibration=images).train()
    mine = losses(model, images, steps=5)
    net.train()
    with FakeQuantised():
        theirs = losses(net, images, steps=5)
    np.testing.assert_allclose(mine, theirs, rtol=0.02)


def test_parameters_names_and_hooks_stay_those_of_the_network(net, images):
    calls = []
    net.first.register_forward_hook(lambda *a: calls.append(1))
    model = fsim.attach(net, ACCEL, calibration=images)
    assert list(model.state_dict()) == list(Net().state_dict())
    assert [id(p) for p in model.parameters()] == [id(p) for p in net.parameters()]
    calls.clear()
    model.train()(images)
    assert calls
    other = Net()
    model.load_state_dict(other.state_dict())
    assert torch.equal(net.fc.weight, other.fc.weight)
    assert type(net.first) is nn.Conv2d


def test_evaluation_follows_the_parameters(net, images):
    model = fsim.attach(net, ACCEL, calibration=images)
    before = model(images)
    losses(model.train(), images, steps=3)
    model.eval()
    after = model(images)
    assert not torch.equal(before, after)
    fresh = fsim.attach(copy.deepcopy(net), ACCEL, calibration=images)
    assert torch.equal(after, fresh(images))
    assert torch.equal(after, model(images))


def test_evaluation_is_near_training_and_leaves_parameters_alone(net, images):
    """Folding BN and 8-bit codes between layers move logits by a few per cent of their range."""
    model = fsim.attach(net, ACCEL, calibration=images)
    state = copy.deepcopy(model.state_dict())
    folded = model(images)
    model.train()
    net.eval()  # running statistics, as evaluation folds
    unfolded = model(images).detach()
    assert (folded - unfolded).abs().max() < 0.05 * (unfolded.max() - unfolded.min())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_faults_are_fresh_each_step_or_epoch_or_never(net, images):
    def outs(fresh):
        net.eval()
        model = fsim.attach(net, ACCEL, calibration=images, rates=1e-3, fresh=fresh)
        found = []
        for _ in range(2):
            model.train()
            net.eval()
            found += [model(images).detach() for _ in range(2)]
        return [torch.equal(found[0], other) for other in found[1:]]

    assert outs("step") == [False, False, False]
    assert outs("epoch") == [True, False, False]
    assert outs("chip") == [True, True, True]
    with pytest.raises(ConfigError, match="fresh must be one of"):
        outs("week")


def test_a_copy_and_a_pickle_are_networks_of_their_own(net, images):
    model = fsim.attach(net, ACCEL, calibration=images, rates=1e-3).train()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        net.eval(), twin.module.eval()
        twin.trial = model.trial = 7
        want = model(images).detach()
        assert torch.equal(twin(images), want)
        with torch.no_grad():
            twin.module.fc.bias += 1
        model.trial = 7
        assert torch.equal(model(images), want)


def test_autocast_leaves_the_codes_as_they_are(net, images):
    model = fsim.attach(net, ACCEL, calibration=images).train()
    net.eval()
    plain = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        cast = model(images)
    torch.testing.assert_close(cast.float(), plain, rtol=0.05, atol=0.05)
    cast.float().sum().backward()
    assert net.first.weight.grad.dtype == torch.float32


def test_one_dimensional_convolutions_run_on_the_array(images):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv1d(3, 5, 3, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(60, 2)
    )
    x = torch.randn(4, 3, 12)
    model = fsim.attach(net, ACCEL, calibration=x).train()
    assert [site.name for site in model._trained.session.sites] == ["0", "3"]
    torch.testing.assert_close(model(x), net(x), rtol=0.1, atol=0.05)


def test_a_way_that_calibration_did_not_take_is_refused(net, images):
    model = fsim.attach(net, ACCEL, calibration=images).train()
    with pytest.raises(MappingError, match="must be one of the calibration pass"):
        model(torch.randn(2, 2, 10, 10))


def test_shared_modules_have_a_site_for_each_call(net, images):
    model = fsim.attach(net, ACCEL, calibration=images).train()
    names = [site.name for site in model._trained.session.sites]
    assert names == ["first", "depth", "twice", "twice#1", "fc"]


@pytest.mark.parametrize("kind", ["seu", "stuck1"])
def test_registers_can_be_struck_in_training(net, images, kind):
    model = fsim.attach(net, ACCEL, calibration=images, faults=SingleFault(kind)).train()
    net.eval()
    with model.faults(None):
        clean = model(images)
    struck = [model(images) for _ in range(6)]  # many upsets are masked
    assert any(not torch.equal(out, clean) for out in struck)
    struck[0].sum().backward()
    assert net.first.weight.grad.isfinite().all()


@pytest.mark.slow
def test_batches_of_worker_processes_train_as_any(net, images):
    labels = (images.mean((1, 2, 3)) > 0).long()
    model = fsim.attach(net, ACCEL, calibration=images, rates=1e-4).train()
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, labels), 8, num_workers=1,
        multiprocessing_context="spawn",
    )  # fmt: skip
    before = net.first.weight.clone()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    for batch, wanted in loader:
        optimiser.zero_grad()
        F.cross_entropy(model(batch), wanted).backward()
        optimiser.step()
    assert model.trial == 2 and not torch.equal(before, net.first.weight)
