"""What all statistical models have in common: configurations, generators, no effect at 0."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fsim.errors import ConfigError
from fsim.fault_models.statistical import (
    COMPAT,
    MODELS,
    AdSAF,
    FixedPoint,
    MiBB,
    config_of,
    load_models,
    model_from_config,
)
from tests.rates import assert_rate, seed_for

RATE = {
    "mibb": "p_m", "ibb": "r", "ibf": "r", "adsaf": "p", "adsaf-bits": "p",
    "log-normal": "sigma", "reciprocal-normal": "sigma", "bitflip-awnas": "p",
}  # fmt: skip
"""The parameter of each model that is 0 without faults."""


def configs(rate: float) -> list[dict]:
    """Every model and every mode of the reference implementation whose rate can be set."""
    found = [{"model": name, parameter: rate} for name, parameter in RATE.items()]
    for mode, fixed in COMPAT.items():
        if RATE[fixed["model"]] not in fixed:
            found.append({"compat": mode, RATE[fixed["model"]]: rate})
    return found


def named(config: dict) -> str:
    return config.get("compat", config.get("model"))


def generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_for(name) >> 1)


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator("tensor"))


def test_the_tests_know_every_model():
    assert set(RATE) == set(MODELS)


@pytest.mark.parametrize("config", configs(0.0), ids=named)
def test_without_faults_the_result_is_the_quantised_tensor(config):
    model, x = model_from_config(config), tensor(6, 5, 7)
    y = model(x, macs=9, generator=generator("0"))
    expected = FixedPoint(bits=model.bits, grid=model.grid).quantise(x).value
    np.testing.assert_array_equal(y.numpy(), expected.numpy())


@pytest.mark.parametrize("config", configs(1.0), ids=named)
def test_at_rate_1_every_value_is_faulty(config):
    model, x = model_from_config(config), tensor(4000)
    faults = model.draw(x.shape, macs=9, generator=generator("1"))
    if model.name == "adsaf-bits":
        assert (faults[:, 0] == 255).all()
        other = model.apply(-x, faults) / FixedPoint().quantise(x).step
        np.testing.assert_array_equal(
            (model.apply(x, faults) / FixedPoint().quantise(x).step).numpy(), other.numpy()
        )
    elif model.name == "ibf":
        assert (faults == 255).all()
        codes = FixedPoint(grid="hardware").quantise(x).codes
        y = model.apply(x, faults) / FixedPoint(grid="hardware").quantise(x).step
        np.testing.assert_array_equal(y.numpy(), (-1 - codes).numpy())
    elif model.name.endswith("normal"):
        assert (faults != 1).float().mean() > 0.999
    elif model.name == "ibb":
        assert (faults % 2 != 0).all()  # +-1 is in every sum
    else:
        assert (faults != 0).all()


@pytest.mark.parametrize("config", configs(0.3), ids=named)
def test_the_same_seed_gives_the_same_faults_and_another_one_others(config):
    model = model_from_config(config)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    maps = [model.draw((5000,), macs=1, generator=generator(name)) for name in ("a", "a", "b")]
    np.testing.assert_array_equal(maps[0].numpy(), maps[1].numpy())
    assert not torch.equal(maps[0], maps[2])
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator was used"


@pytest.mark.parametrize("config", configs(0.3), ids=named)
def test_drawing_again_from_one_generator_gives_new_faults(config):
    model, source = model_from_config(config), generator("again")
    first, second = (model.draw((5000,), macs=1, generator=source) for _ in range(2))
    assert not torch.equal(first, second)


class Waits(TorchDispatchMode):
    """Fails on operations that a GPU cannot answer without stopping the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique"), (
            f"{name} waits for the device"
        )
        if name in ("index", "index_put", "index_put_"):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            assert not masks, f"{name} by a bool mask waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", configs(0.3), ids=named)
def test_nothing_waits_for_the_device(config):
    model, x, source = model_from_config(config), tensor(8, 3), generator("wait")
    x.requires_grad_()
    with Waits():
        model(x, macs=3, generator=source).sum().backward()
    with pytest.raises(AssertionError, match="waits"), Waits():
        x[x > 0].sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("config", configs(0.3), ids=named)
def test_dtype_and_shape_stay(config, dtype):
    x = tensor(2, 3, 4).to(dtype).requires_grad_()
    y = model_from_config(config)(x, macs=3, generator=generator("dtype"))
    assert y.dtype == dtype and y.shape == x.shape
    y.sum().backward()
    assert x.grad.dtype == dtype


@pytest.mark.parametrize("config", configs(0.3), ids=named)
def test_empty_tensors_pass(config):
    y = model_from_config(config)(torch.zeros(0, 4), macs=3, generator=generator("empty"))
    assert y.shape == (0, 4)


@pytest.mark.parametrize("config", configs(0.3), ids=named)
def test_a_tensor_with_nan_stays_visibly_broken(config):
    x = tensor(100)
    x[3] = torch.nan
    y = model_from_config(config)(x, macs=3, generator=generator("nan"))
    assert y.isnan().all()


@pytest.mark.parametrize("config", configs(0.25), ids=named)
def test_configurations_come_back_complete(config, tmp_path):
    model = model_from_config(config)
    whole = config_of(model)
    assert model_from_config(whole) == model
    (tmp_path / "fault.json").write_text(json.dumps(whole))
    assert load_models(tmp_path / "fault.json") == (model,)
    assert pickle.loads(pickle.dumps(model)) == model == copy.deepcopy(model)


def test_a_generator_on_another_device_is_refused():
    x = torch.empty(3, device="meta")
    with pytest.raises(ConfigError, match="must be on the device of the tensor, meta, got"):
        AdSAF(p=0.1)(x, generator=torch.Generator())


def test_a_file_can_hold_several_models(tmp_path):
    path = tmp_path / "fault.toml"
    path.write_text('[[models]]\nmodel = "mibb"\np_m = 1e-4\n[[models]]\nmodel="adsaf"\np = 0.08\n')
    assert load_models(path) == (MiBB(p_m=1e-4), AdSAF(p=0.08))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "must have the key 'model'"),
        ([1], "must be a table"),
        ({"model": "mib", "p_m": 0.1}, "model must be one of .* did you mean mibb"),
        ({"model": ["mibb"]}, "model must be one of"),
        ({"model": "mibb"}, "mibb must be given p_m"),
        ({"model": "mibb", "pm": 0.1}, "got 'pm'; did you mean p_m"),
        ({"model": "mibb", "p_m": -1e-9}, r"p_m must be a number in \[0, 1\], got -1e-09"),
        ({"model": "mibb", "p_m": 1.1}, "p_m must be"),
        ({"model": "mibb", "p_m": float("nan")}, "p_m must be"),
        ({"model": "mibb", "p_m": "1e-4"}, "p_m must be"),
        ({"model": "mibb", "p_m": True}, "p_m must be"),
        ({"model": "mibb", "p_m": 0.1, "bits": 1}, "bits must be a whole number in 2..16, got 1"),
        ({"model": "mibb", "p_m": 0.1, "target": "weights"}, "target must be one of features"),
        ({"model": "mibb", "p_m": 0.1, "clamp": "no"}, "clamp must be one of grid, max-abs"),
        ({"model": "ibf", "r": 0.1, "grid": "paper"}, "grid must be one of hardware"),
        ({"model": "ibb", "r": 0.1, "per_mac": 1}, "per_mac must be true or false"),
        ({"model": "adsaf-bits", "p": 0.1, "grid": "paper"}, "grid with cells 'twos-complement'"),
        ({"model": "adsaf", "p": 0.1, "mode": "awnas", "sa1_share": 0.2}, "sa1_share must be"),
        ({"model": "log-normal", "sigma": -0.1}, "sigma must be a finite number >= 0"),
        ({"model": "log-normal", "sigma": float("inf")}, "sigma must be"),
        ({"model": "reciprocal-normal", "sigma": 0.1, "least_resistance": 0}, "least_resistance"),
        ({"compat": "mibb-awnas-28"}, "compat must be one of"),
        ({"compat": "mibb-awnas", "p_m": 0.1, "bias": "largest"}, "bias must be 'uniform' in mibb"),
        ({"compat": "adsaf-awnas-bit", "p": 0.2}, "p must be 0.1 in adsaf-awnas-bit, got 0.2"),
    ],
)
def test_bad_configurations_are_refused_in_one_line(config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        model_from_config(config)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "", "must be a .toml or .json file"),
        ("a.toml", None, "must be a file that exists"),
        ("a.toml", "model = ", "must be TOML"),
        ("a.json", '{"model": "mibb", "model": "ibf"}', "must be JSON, got a key given twice"),
        ("a.json", "[" * 100_000, "must be JSON"),
        ("a.json", "[]", "must be a table"),
        ("a.json", '{"models": []}', "must have a list of tables"),
        ("a.json", '{"models": [{"model": "mibb", "p_m": 0.1}], "seed": 1}', "no other key"),
        ("a.json", '{"models": [{"model": "mibb", "p_m": NaN}]}', "p_m must be"),
    ],
)
def test_bad_files_are_refused_and_named(name, text, message, tmp_path):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_models(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# The modes of the reference implementation: fact sheet, sections 2.2 to 2.4 and 7.


def test_the_papers_commit_gives_every_fault_the_same_positive_bias():
    model = model_from_config({"compat": "mibb-awnas-27d1aeb", "p_m": 1e-4})
    drawn = model.draw((1_500_000,), macs=720, generator=generator("27d"))
    assert set(drawn.tolist()) == {0, 128}
    exact = 1 - (1 - 1e-4) ** 720
    assert_rate(int((drawn != 0).sum()), drawn.numel(), 1 / 14, mutant=exact, named="the exact p")


def test_the_papers_commit_clamps_to_the_greatest_magnitude_of_the_tensor():
    codes = np.array([-70, -3, 0, 50, 69])
    model = model_from_config({"compat": "mibb-awnas-27d1aeb", "p_m": 0.5})
    y = model.apply(torch.tensor(codes / 128.0), torch.full((5,), 128, dtype=torch.int32))
    np.testing.assert_array_equal(y.numpy() * 128, np.clip(codes + 128, -70, 70))


def test_the_later_commit_has_all_biases_and_the_end_of_the_grid():
    model = model_from_config({"compat": "mibb-awnas", "p_m": 1e-4})
    assert model.p(720) == 1 / 14
    drawn = model.draw((20_000,), macs=72000, generator=generator("head"))
    assert len(set(drawn.tolist()) - {0}) == 16
    y = model.apply(torch.tensor([70 / 128.0]), torch.tensor([128]))
    assert y.item() == 1.0


def test_the_bit_variant_ignores_the_rate_and_stops_the_gradient():
    model = model_from_config({"compat": "adsaf-awnas-bit"})
    assert (model.p, model.sa1_share) == (0.1, 0.16)
    faults = model.draw((200_000,), generator=generator("bit"))
    stuck, ones = faults[:, 0].numpy(), faults[:, 1].numpy()
    # 47.8 % of the arrays have no fault: (1 - 0.1)^7
    assert_rate(int((stuck == 0).sum()), stuck.size, 0.9**7, mutant=0.9**8, named="eight bits")
    cells = int(np.bitwise_count(stuck).sum())
    assert_rate(int(np.bitwise_count(ones).sum()), cells, 0.16, mutant=0.175, named="0.175 ones")
    x = tensor(100).requires_grad_()
    model(x, generator=generator("grad")).sum().backward()
    assert (x.grad == 0).all()


def test_the_reference_bit_flip_works_on_half_steps_and_does_not_touch_the_sign():
    codes, bit = (a.ravel() for a in np.meshgrid(np.arange(-128, 129), np.arange(8)))
    model = model_from_config({"compat": "bitflip-awnas", "p": 0.5})
    y = model.apply(torch.tensor(codes / 128.0), torch.tensor(1 << bit, dtype=torch.int32))
    expected = [(2 * int(c) ^ 1 << int(b)) / 256 for c, b in zip(codes, bit)]
    np.testing.assert_array_equal(y.numpy(), expected)
    drawn = model_from_config({"compat": "bitflip-awnas", "p": 0.7}).draw(
        (1000,), generator=generator("flip")
    )
    assert set(drawn.tolist()) == {1 << b for b in range(8)}  # 1 / floor(1 / 0.7) = 1
