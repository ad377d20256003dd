"""The zoo: architectures against a plain numpy forward pass, checkpoints good and bad."""

from __future__ import annotations

import json
import os
import pickle
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from fsim.errors import ConfigError
from fsim.nas.checkpoint import digest, read_weights
from fsim.nas.data import load_data
from fsim.nas.digits_cnn import DigitsCNN
from fsim.nas.preprocessing import Preprocessing
from fsim.nas.resnet import ResNet8, ResNet20
from fsim.nas.train_digits import main as train_main
from fsim.nas.train_digits import train
from fsim.nas.zoo import ZOO, load_model

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")


# --- a forward pass in numpy, written from the published definitions ---


def conv(x, weight, bias=None, stride=1, padding=(1, 1)):
    """x (n, c, h, w), weight (o, c, k, k); padding: zeros before and after, both axes."""
    k = weight.shape[2]
    x = np.pad(x, ((0, 0), (0, 0), padding, padding))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))
    out = np.einsum("nchwij,ocij->nohw", windows[:, :, ::stride, ::stride], weight, optimize=True)
    return out if bias is None else out + bias[:, None, None]


def same(size, k, stride):
    """TensorFlow's "same" padding: as little as needed, the odd zero behind."""
    total = max((-(-size // stride) - 1) * stride + k - size, 0)
    return total // 2, total - total // 2


def norm(x, w, name, eps):
    scale = w[f"{name}.weight"] / np.sqrt(w[f"{name}.running_var"] + eps)
    shift = w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale
    return x * scale[:, None, None] + shift[:, None, None]


def relu(x):
    return np.maximum(x, 0)


def head(x, w, name):
    return x.mean(axis=(2, 3)) @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def resnet20_numpy(x, w):
    x = relu(norm(conv(x, w["conv1.weight"]), w, "bn1", 1e-5))
    for stage in (1, 2, 3):
        for block in range(3):
            at = f"layer{stage}.{block}."
            stride = 2 if stage > 1 and block == 0 else 1
            y = relu(norm(conv(x, w[at + "conv1.weight"], stride=stride), w, at + "bn1", 1e-5))
            y = norm(conv(y, w[at + "conv2.weight"]), w, at + "bn2", 1e-5)
            if stride == 2:
                zeros = np.zeros_like(x[:, : x.shape[1] // 2, ::2, ::2])
                x = np.concatenate([zeros, x[:, :, ::2, ::2], zeros], axis=1)
            x = relu(y + x)
    return head(x, w, "linear")


def resnet8_numpy(x, w):
    def layer(x, number, stride=1):
        weight = w[f"conv.{number}.weight"]
        padding = same(x.shape[2], weight.shape[2], stride)
        return conv(x, weight, w[f"conv.{number}.bias"], stride, padding)

    def bn(x, number):
        return norm(x, w, f"bn.{number}", 1e-3)

    x = relu(bn(layer(x, 0), 0))
    x = relu(x + bn(layer(relu(bn(layer(x, 1), 1)), 2), 2))
    x = relu(layer(x, 5, 2) + bn(layer(relu(bn(layer(x, 3, 2), 3)), 4), 4))
    x = relu(layer(x, 8, 2) + bn(layer(relu(bn(layer(x, 6, 2), 5)), 7), 6))
    return head(x, w, "fc")


def digits_numpy(x, w):
    x = relu(norm(conv(x, w["conv1.weight"]), w, "bn1", 1e-5))
    x = relu(norm(conv(x, w["conv2.weight"], stride=2), w, "bn2", 1e-5))
    x = relu(norm(conv(x, w["conv3.weight"]), w, "bn3", 1e-5) + x)
    return head(x, w, "fc")


NETWORKS = [
    (ResNet20, resnet20_numpy, (3, 32, 32)),
    (ResNet8, resnet8_numpy, (3, 32, 32)),
    (DigitsCNN, digits_numpy, (1, 8, 8)),
]


def randomised(build):
    """A network whose batch norms do something, in eval mode."""
    torch.manual_seed(7)
    model = build().eval()
    for name, tensor in model.state_dict().items():
        if name.endswith(("running_var", "bn.weight")):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith(("running_mean", "bias")):
            tensor.uniform_(-0.5, 0.5)
    return model


@pytest.mark.parametrize("build, forward, shape", NETWORKS)
def test_network_equals_its_definition_in_numpy(build, forward, shape):
    model = randomised(build)
    x = torch.randn(2, *shape)
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        logits = model.double()(x.double()).numpy()
    assert_allclose(logits, forward(x.double().numpy(), weights), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("build, forward, shape", NETWORKS)
def test_network_can_be_traced(build, forward, shape):
    model = randomised(build)
    x = torch.randn(3, *shape)
    with torch.inference_mode():
        assert_array_equal(torch.fx.symbolic_trace(model)(x).numpy(), model(x).numpy())


# --- the embedded network ---


def share_right(loaded, data):
    with torch.inference_mode():
        logits = torch.cat(
            [
                loaded.model(loaded.preprocessing(data.images[i : i + 500]))
                for i in range(0, len(data), 500)
            ]
        )
    return np.count_nonzero(logits.argmax(1).numpy() == data.labels) / len(data)


def test_committed_digits_weights_have_the_accuracy_they_state():
    loaded, data = load_model("digits-cnn"), load_data("digits")
    with safetensors.safe_open(loaded.weights_path, "pt") as file:
        stated = json.loads(file.metadata()["fsim"])
    share = share_right(loaded, data)
    assert share == stated["test_accuracy"] == ZOO["digits-cnn"].accuracy
    assert share >= 0.98
    assert stated["seed"] == 1 and stated["torch"]


def test_training_the_digits_network_again_reaches_98_percent(tmp_path, capsys):
    out = tmp_path / "w.safetensors"
    assert train_main(["--out", str(out)]) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert share_right(load_model("digits-cnn", out), load_data("digits")) >= 0.98
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_training_is_deterministic_and_leaves_torch_as_it_was():
    torch.manual_seed(3)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first, _ = train(seed=5, epochs=1)
    torch.rand(10)
    second, _ = train(seed=5, epochs=1)
    other, _ = train(seed=6, epochs=1)
    assert digest(first) == digest(second) != digest(other)
    torch.manual_seed(3)
    train(seed=5, epochs=1)
    assert torch.get_num_threads() == threads
    assert_array_equal(torch.get_rng_state().numpy(), state.numpy())


# --- the published networks, where their weights are at hand ---


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name, right", [("resnet20", 9173), ("resnet8", 8719)])
def test_published_network_has_its_float_accuracy_on_cifar10(name, right):
    loaded = load_model(name)
    assert share_right(loaded, load_data(loaded.default_data)) == right / 10_000


@needs_shared
@pytest.mark.parametrize("name", ["resnet20", "resnet8"])
def test_published_checkpoint_fills_every_tensor(name):
    loaded = load_model(name)
    stored = torch.load(loaded.weights_path, weights_only=True)
    own = loaded.model.state_dict()
    assert own.keys() == stored.keys()
    for key, tensor in stored.items():
        assert_array_equal(own[key].numpy(), tensor.numpy())
    assert not loaded.model.training
    assert loaded.input_shape == (3, 32, 32) and loaded.num_classes == 10


def test_missing_weights_name_every_place_and_the_project_they_come_from(tmp_path, monkeypatch):
    monkeypatch.setenv("FSIM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fsim.nas.places._checkout_data", list)
    with pytest.raises(ConfigError) as caught:
        load_model("resnet20")
    text = str(caught.value)
    for part in ("data/models", "cache/models", "akamaster/pytorch_resnet_cifar10", "--weights"):
        assert part in text
    assert "\n" not in text


def test_weights_are_found_in_fsim_data_before_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FSIM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("FSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("fsim.nas.places._checkout_data", list)
    for seed, folder in ((1, tmp_path / "cache" / "models"), (2, tmp_path / "data" / "models")):
        torch.manual_seed(seed)
        folder.mkdir(parents=True)
        torch.save(ResNet8().state_dict(), folder / "resnet8_mlperftiny.pt")
        assert load_model("resnet8").weights_path.parent == folder


# --- preprocessing ---


def test_preprocessing_equals_exact_arithmetic():
    entry = ZOO["resnet20"].preprocessing
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    exact = np.array(
        [
            [float((Fraction(p) / 255 - Fraction(mean)) / Fraction(std)) for p in range(256)]
            for mean, std in zip(("0.485", "0.456", "0.406"), ("0.229", "0.224", "0.225"))
        ]
    )
    out = entry(pixels)
    assert out.dtype == torch.float32 and out.shape == pixels.shape
    assert_allclose(out.numpy().reshape(3, 256), exact, rtol=3e-7, atol=1e-7)


def test_preprocessing_of_digits_and_raw_pixels_is_exact():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    assert_array_equal(ZOO["resnet8"].preprocessing(pixels).numpy(), pixels.astype(np.float32))
    assert_array_equal(ZOO["digits-cnn"].preprocessing(pixels).numpy(), pixels / np.float32(16))


def test_float_images_count_as_network_input_already():
    images = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    out = Preprocessing(1 / 255, 0.5, 0.5)(images).numpy()
    assert_array_equal(out, images.astype(np.float32))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Preprocessing(std=0.0),
        lambda: Preprocessing(mean=(0.1, float("nan"))),
        lambda: Preprocessing(scale="x"),
        lambda: Preprocessing(mean=(1, 2, 3), std=(1, 2)),
        lambda: Preprocessing(mean=(1, 2))(np.zeros((1, 3, 2, 2), np.uint8)),
        lambda: Preprocessing()(np.zeros((1, 3, 2, 2), np.int32)),
        lambda: Preprocessing()(np.zeros((3, 2, 2), np.uint8)),
    ],
)
def test_bad_preprocessing_is_a_config_error(make):
    with pytest.raises(ConfigError):
        make()


# --- checkpoints ---


def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """A module `userfactories` in the current directory; gives its folder."""
    (tmp_path / "userfactories.py").write_text(
        "import torch\n"
        "from fsim.nas.preprocessing import Preprocessing\n"
        "def plain():\n"
        "    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))\n"
        "def told():\n"
        "    model = plain()\n"
        "    model.input_shape, model.num_classes, model.default_data = (1, 8, 8), 2, 'digits'\n"
        "    model.preprocessing = Preprocessing(0.25)\n"
        "    return model\n"
        "def wrong_shape():\n"
        "    model = plain()\n"
        "    model.input_shape = (8, 8)\n"
        "    return model\n"
        "def lazy():\n"
        "    return torch.nn.LazyLinear(3)\n"
        "def fails():\n"
        "    raise RuntimeError('boom')\n"
        "def number():\n"
        "    return 3\n"
        "constant = 5\n"
    )
    (tmp_path / "userbroken.py").write_text("def f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "userfactories", raising=False)
    return tmp_path


def test_factory_of_the_current_directory_with_weights_of_both_kinds(factory):
    model = small()
    model[1].running_mean.uniform_(-1, 1)
    state = model.state_dict()
    torch.save(state, factory / "w.pt")
    safetensors.torch.save_file(state, factory / "w.safetensors")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}},
        factory / "parallel.pth",
    )
    for file in ("w.pt", "w.safetensors", "parallel.pth"):
        loaded = load_model("userfactories:plain", factory / file)
        assert not loaded.stated
        assert loaded.weights_sha256 == digest(model)
        assert not loaded.model.training
        assert loaded.preprocessing == Preprocessing(1 / 255)
        assert (loaded.input_shape, loaded.num_classes, loaded.default_data) == (None, None, None)
        for key, tensor in loaded.model.state_dict().items():
            assert_array_equal(tensor.numpy(), state[key].numpy())
    own = load_model("userfactories:plain")
    assert own.weights_path is None and own.weights_sha256 != digest(model)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
def test_a_published_resnet20_file_is_read_as_it_is(tmp_path, suffix):
    torch.manual_seed(4)
    state = ResNet20().state_dict()
    held = {"state_dict": {f"module.{k}": v for k, v in state.items()}, "best_prec1": 91.73}
    torch.save(held, tmp_path / f"resnet20{suffix}")
    loaded = load_model("resnet20", tmp_path / f"resnet20{suffix}")
    for key, tensor in loaded.model.state_dict().items():
        assert_array_equal(tensor.numpy(), state[key].numpy())
    with pytest.raises(ConfigError, match=r"must be a .pt, .pth, .th or .safetensors file"):
        read_weights(tmp_path / "resnet20.ckpt")


def test_a_seed_makes_a_factory_give_the_same_weights_and_leaves_torch_alone(factory):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = load_model("userfactories:plain", seed=0)
    assert_array_equal(torch.get_rng_state().numpy(), state.numpy())
    torch.rand(3)
    again, other = (load_model("userfactories:plain", seed=seed) for seed in (0, 1))
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert load_model("userfactories:plain").weights_sha256 != first.weights_sha256


def test_the_scale_of_pixels_is_the_data_sets_where_the_network_states_none(factory):
    plain, told = load_model("userfactories:plain"), load_model("userfactories:told")
    digits, pixels = load_data("digits"), np.zeros((2, 1, 8, 8), np.uint8)
    for name, images in (("bytes", pixels), ("floats", pixels.astype(np.float32))):
        np.savez(factory / f"{name}.npz", images=images, labels=np.zeros(2, np.int64))
    bytes_, floats = (load_data(factory / f"{name}.npz") for name in ("bytes", "floats"))
    assert (digits.pixel_max, bytes_.pixel_max, floats.pixel_max) == (16, 255, None)
    assert digits.images.max() == 16
    assert plain.preprocessing_of(digits) == Preprocessing(1 / 16)
    assert plain.preprocessing_of(bytes_) == Preprocessing(1 / 255)
    assert told.preprocessing_of(digits) == told.preprocessing
    assert load_model("digits-cnn").preprocessing_of(bytes_) == Preprocessing(1 / 16)
    given = load_model("userfactories:plain", preprocessing=Preprocessing(0.5))
    assert given.preprocessing_of(digits) == Preprocessing(0.5)
    assert_array_equal(
        plain.preprocessing_of(floats)(floats.images).numpy(), pixels.astype(np.float32)
    )


def test_random_weights_stand_in_only_where_they_may(tmp_path, monkeypatch):
    monkeypatch.setattr("fsim.nas.zoo.model_places", lambda *_: [tmp_path])
    loaded = load_model("resnet8", random_weights=True)
    assert loaded.weights_path is None and loaded.input_shape == (3, 32, 32)
    for arguments in ({}, {"weights": tmp_path / "none.pt", "random_weights": True}):
        with pytest.raises(ConfigError):
            load_model("resnet8", **arguments)


def test_factory_may_tell_its_shape_classes_data_and_preprocessing(factory):
    loaded = load_model("userfactories:told")
    assert (loaded.input_shape, loaded.num_classes, loaded.default_data) == ((1, 8, 8), 2, "digits")
    assert loaded.preprocessing == Preprocessing(0.25)
    given = Preprocessing(0.5)
    assert load_model("userfactories:told", preprocessing=given).preprocessing == given


@pytest.mark.parametrize(
    "spec, part",
    [
        ("resnet-20", "resnet20"),
        ("", "module:factory"),
        (":f", "module:factory"),
        ("userfactories:", "module:factory"),
        ("userfactories:fails", "RuntimeError: boom"),
        ("userfactories:number", "got int"),
        ("userfactories:constant", "has no factory 'constant'"),
        ("userfactories:nothing", "has no factory 'nothing'"),
        ("userfactories:wrong_shape", "got (8, 8)"),
        ("userfactories:lazy", "weight"),
        ("userbroken:f", "SyntaxError"),
        ("no_such_module_here:f", "no_such_module_here"),
        ("..:f", "cannot import"),
    ],
)
def test_bad_model_spec_is_one_config_error(factory, spec, part):
    path = list(sys.path)
    with pytest.raises(ConfigError) as caught:
        load_model(spec)
    assert part in str(caught.value)
    assert sys.path == path


def test_checkpoint_that_does_not_fit_lists_everything_once(tmp_path):
    state = DigitsCNN().state_dict()
    del state["fc.bias"], state["conv1.weight"], state["bn1.num_batches_tracked"]
    state["conv2.weight"] = torch.zeros(32, 16, 5, 5)
    state["bn2.bias"][3] = float("nan")
    state |= {f"extra{i}": torch.zeros(1) for i in range(9)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ConfigError) as caught:
        load_model("digits-cnn", tmp_path / "w.pt")
    assert str(caught.value) == (
        f"the checkpoint {tmp_path / 'w.pt'} does not fit DigitsCNN: "
        "2 missing (conv1.weight, fc.bias); "
        "9 unexpected (extra0, extra1, extra2, extra3 and 5 more); "
        "1 of another shape (conv2.weight (32, 16, 5, 5) instead of (32, 16, 3, 3)); "
        "1 with NaN or infinity (bn2.bias)"
    )


def test_batch_counters_may_be_absent(tmp_path):
    state = load_model("digits-cnn").model.state_dict()
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "w.pt")
    loaded = load_model("digits-cnn", tmp_path / "w.pt")
    for key, tensor in state.items():
        assert_array_equal(loaded.model.state_dict()[key].numpy(), tensor.numpy())


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_whole_module_and_code_in_a_pickle_are_refused_and_not_run(tmp_path):
    torch.save(small(), tmp_path / "module.pt")
    torch.save({"a": Payload(tmp_path / "ran")}, tmp_path / "payload.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    for file in ("module.pt", "payload.pt", "raw.pt"):
        with pytest.raises(ConfigError, match="state_dict|torch file"):
            read_weights(tmp_path / file)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ConfigError, match="module:factory"):
        read_weights(tmp_path / "module.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 200, b"PK\x03\x04" + b"\0" * 99])
def test_file_that_is_no_checkpoint_is_a_config_error(tmp_path, suffix, content):
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(ConfigError, match=f"w{suffix}"):
        read_weights(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, {3: torch.zeros(1)}, torch.zeros(2)])
def test_torch_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="must hold a state_dict"):
        read_weights(tmp_path / "w.pt")


def test_other_weight_files_are_refused(tmp_path):
    (tmp_path / "w.onnx").write_bytes(b"x")
    for path in (tmp_path / "w.onnx", tmp_path / "none.pt", tmp_path / "none.safetensors"):
        with pytest.raises(ConfigError):
            read_weights(path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a torch and a safetensors file, and a folder to damage them in."""
    folder = tmp_path_factory.mktemp("damaged")
    torch.save(small().state_dict(), folder / "w.pt")
    safetensors.torch.save_file(small().state_dict(), folder / "w.safetensors")
    return folder, {s: (folder / f"w{s}").read_bytes() for s in (".pt", ".safetensors")}


@settings(max_examples=80, deadline=None)
@given(
    suffix=st.sampled_from([".pt", ".safetensors"]),
    cut=st.floats(0, 1),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=4),
    shorten=st.booleans(),
)
def test_damaged_checkpoint_gives_tensors_or_a_config_error(whole, suffix, cut, edits, shorten):
    folder, files = whole
    data = bytearray(files[suffix])
    for at, value in edits:
        data[int(at * len(data))] = value
    path = folder / f"damaged{suffix}"
    path.write_bytes(bytes(data[: int(cut * len(data))] if shorten else data))
    try:
        weights = read_weights(path)
    except ConfigError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in weights.values())


def test_digest_sees_every_value_name_and_type():
    model = small()
    before = digest(model)
    assert before == digest(small())
    seen = {before}
    for tensor in model.state_dict().values():
        flat = tensor.view(-1)
        kept = flat[-1].clone()
        flat[-1] += 1
        seen.add(digest(model))
        flat[-1] = kept
    assert digest(model) == before
    seen.add(digest(torch.nn.Sequential(torch.nn.Identity(), *model)))
    seen.add(digest(small().double()))
    assert len(seen) == 1 + len(model.state_dict()) + 2
