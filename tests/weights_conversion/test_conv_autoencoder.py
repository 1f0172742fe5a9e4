"""The convolutional autoencoder against a PyTorch twin of another size, and what its conversion refuses."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden import as_nhwc, deviation, rule_made, standard_normal

from dorl_jax.errors import InputError
from dorl_jax.models import ConvAutoencoder, ConvAutoencoderConfig
from weights_conversion import convert_conv_autoencoder

CONFIG = ConvAutoencoderConfig(width=12, hidden=10, latent=6, decoder_channels=(9, 8, 7, 6, 5, 4, 8))
DECODER = (6, 9, 8, 7, 6, 5, 4, 8, 3)
KERNELS, STRIDES = (5, 4, 3, 5, 3, 3, 2, 1), (1, 2, 1, 2, 2, 2, 1, 1)


def small_state_dict():
    """A state dict of that shape, made by rule."""
    layers = {f"encoder.{3 * i}": s for i, s in enumerate([(10, 12, 1, 1), (10, 10, 3, 3), (6, 10, 1, 1)])}
    counts = {"encoder.0": 10, "encoder.3": 10, "encoder.6": 6}
    for index, kernel in enumerate(KERNELS):
        layers[f"decoder.{3 * index}"] = (DECODER[index], DECODER[index + 1], kernel, kernel)
        counts[f"decoder.{3 * index}"] = DECODER[index + 1]
    shapes = {}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": (counts[name],)}
        if name != "decoder.21":
            part, index = name.split(".")
            norm = f"{part}.{int(index) + 1}"
            vectors = ("weight", "bias", "running_mean", "running_var")
            shapes |= {f"{norm}.{vector}": (counts[name],) for vector in vectors}
            shapes[f"{norm}.num_batches_tracked"] = ()
    return {name: rule_made(name, shape) for name, shape in shapes.items()}


def features(seed):
    return standard_normal(seed, (5, 12, 7, 6))


class Twin:
    """The same autoencoder in PyTorch, in float64."""

    def __init__(self):
        torch = pytest.importorskip("torch", reason="needs PyTorch: pip install 'dorl-jax[convert]'")
        nn = torch.nn
        down = [(12, 10, 1, 1), (10, 10, 3, 2), (10, 6, 1, 1)]
        up = list(zip(DECODER[:-1], DECODER[1:], KERNELS, STRIDES, strict=True))
        encoder, decoder = (
            [part for a, b, k, s in sizes for part in (kind(a, b, k, stride=s), nn.BatchNorm2d(b), nn.ReLU())]
            for kind, sizes in ((nn.Conv2d, down), (nn.ConvTranspose2d, up))
        )
        self.module = nn.ModuleDict({"encoder": nn.Sequential(*encoder), "decoder": nn.Sequential(*decoder[:-2])})
        self.module.load_state_dict({name: torch.tensor(value) for name, value in small_state_dict().items()})
        self.module.double().train()

    def set_momentum(self, momentum):
        for part in self.module.values():
            for layer in part:
                if hasattr(layer, "momentum"):
                    layer.momentum = momentum
        return self

    def __call__(self, x):
        latent = self.module["encoder"](x).mean((2, 3))
        return latent, self.module["decoder"](latent[:, :, None, None]).sigmoid()

    def state_dict(self):
        return {
            name: (value.float() if value.is_floating_point() else value).numpy()
            for name, value in self.module.state_dict().items()
        }


def made(mode):
    model = convert_conv_autoencoder(small_state_dict())
    getattr(model, mode)()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_outputs_and_gradients(mode):
    twin = Twin()
    import torch

    # One batch makes the running statistics fit. With those made by rule the activations crowd around zero, where one
    # ReLU that rounding switches moves the gradients by a thousandth. The weights below are positive to the same end.
    with torch.no_grad():
        twin.set_momentum(1.0)(torch.tensor(features(1)).double())
    model = convert_conv_autoencoder(twin.state_dict())
    getattr(model, mode)()
    twin.module.train(mode == "train")
    by_latent, by_image = np.random.RandomState(1).rand(5, 6), np.random.RandomState(2).rand(5, 3, 128, 128)
    x = torch.tensor(features(0), dtype=torch.float64, requires_grad=True)
    latent, image = twin(x)
    ((latent * torch.tensor(by_latent)).sum() + (image * torch.tensor(by_image)).sum()).backward()

    @nnx.jit
    @nnx.value_and_grad(argnums=(0, 1), has_aux=True)
    def step(model, x):
        out = model(x)
        return (out["latent"] * by_latent).sum() + (out["image"] * as_nhwc(by_image)).sum(), out

    (_, out), (gradients, to_features) = step(model, jnp.asarray(as_nhwc(features(0))))
    assert deviation(out["latent"], latent.detach().numpy()) < 1e-5
    assert deviation(np.moveaxis(np.asarray(out["image"]), -1, 1), image.detach().numpy()) < 1e-5
    assert deviation(np.moveaxis(np.asarray(to_features), -1, 1), x.grad.numpy()) < 1e-4
    # The twin's gradients, converted as if they were weights, stand where ours do.
    named = {name: parameter.grad.float().numpy() for name, parameter in twin.module.named_parameters()}
    theirs = nnx.to_flat_state(nnx.state(convert_conv_autoencoder(twin.state_dict() | named), nnx.Param))
    ours = dict(nnx.to_flat_state(gradients))
    assert len(theirs) == len(ours) == 42
    largest = max(np.abs(gradient[...]).max() for _, gradient in theirs)
    for path, gradient in theirs:
        # A bias that the normalisation of a batch takes out again has a gradient of zero: ours is rounding noise.
        noise = 1e-6 * largest if mode == "train" and path[1] == "layers" and path[-1] == "bias" else 0
        allowed = 1e-4 * np.abs(gradient[...]).max() + noise
        assert np.abs(ours[path][...] - gradient[...]).max() <= allowed, path


@pytest.mark.slow
def test_running_statistics_after_two_batches():
    twin, model = Twin(), made("train")
    import torch

    encode = nnx.jit(lambda model, x: model(x)["latent"])
    for seed in range(2):
        encode(model, as_nhwc(features(seed)))
        with torch.no_grad():
            twin(torch.tensor(features(seed)).double())
    expected = nnx.to_flat_state(nnx.state(convert_conv_autoencoder(twin.state_dict()), nnx.BatchStat))
    ours = dict(nnx.to_flat_state(nnx.state(model, nnx.BatchStat)))
    assert len(expected) == len(ours) == 30
    for path, value in expected:
        np.testing.assert_allclose(ours[path][...], value[...], atol=1e-5 * np.abs(value[...]).max(), err_msg=str(path))
    model.eval()
    twin.module.eval()
    with torch.no_grad():
        assert (
            deviation(encode(model, as_nhwc(features(2))), twin(torch.tensor(features(2)).double())[0].numpy()) < 1e-5
        )


def test_evaluation_neither_mixes_samples_nor_moves_statistics():
    model, x = convert_conv_autoencoder(small_state_dict()), as_nhwc(features(0))
    np.testing.assert_allclose(model.encode(x)[1:2], model.encode(x[1:2]), atol=1e-6)
    for norm, name in ((model.encoder.norms[0], "encoder.1"), (model.encoder.norms[2], "encoder.7")):
        np.testing.assert_array_equal(norm.mean[...], small_state_dict()[f"{name}.running_mean"])
        np.testing.assert_array_equal(norm.var[...], small_state_dict()[f"{name}.running_var"])


@pytest.mark.slow
def test_a_new_model_starts_as_in_pytorch():
    state = nnx.state(ConvAutoencoder(CONFIG, rngs=nnx.Rngs(0)), nnx.Param)
    for path, fan in (("encoder", 12), ("decoder", 9 * 25)):
        kernel, bias = (np.asarray(state[path]["layers"][0][name][...]) for name in ("kernel", "bias"))
        bound = 1 / math.sqrt(fan)
        assert 0.9 * bound < np.abs(kernel).max() <= bound
        assert np.abs(bias).max() <= bound
    halving = np.asarray(state["encoder"]["layers"][1]["kernel"][...])
    assert 0.95 / math.sqrt(90) < np.abs(halving).max() <= 1 / math.sqrt(90)


def test_bf16_stays_near():
    x = as_nhwc(features(0))
    exact, rough = (convert_conv_autoencoder(small_state_dict(), dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(rough, nnx.Param)))
    assert rough.encode(x).dtype == jnp.float32
    assert 1e-5 < deviation(rough.encode(x), np.asarray(exact.encode(x))) < 0.05


@pytest.mark.parametrize("shape", [(1, 7, 6, 8), (1, 2, 6, 12)], ids=["width", "grid"])
def test_features_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected features of shape \(B, h, w, 12\), h and w at least 3"):
        made("eval").encode(jnp.zeros(shape))


def test_shape_is_read_off_the_tensors():
    assert convert_conv_autoencoder(small_state_dict()).config == CONFIG


@pytest.mark.parametrize("prefix", ["module.", "bcsam.", "cae.", "module.bcsam."])
def test_a_common_prefix_is_dropped(prefix):
    named = {prefix + name: value for name, value in small_state_dict().items()}
    x = as_nhwc(features(0))
    np.testing.assert_array_equal(convert_conv_autoencoder(named).encode(x), made("eval").encode(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("decoder.4.running_var"), "1 tensors missing .*: decoder.4.running_var"),
        (lambda d: d.pop("decoder.9.bias"), "no tensor 'decoder.9.bias'"),
        (lambda d: d.update({"decoder.22.weight": np.zeros(3, np.float32)}), "no place for: decoder.22.weight"),
        (
            lambda d: d.update({"encoder.norm.weight": d.pop("encoder.4.weight")}),
            "no place for: encoder.norm.weight; .*missing .*: encoder.4.weight",
        ),
        (
            lambda d: d.update({"decoder.3.weight": d["decoder.3.weight"].swapaxes(0, 1)}),
            r"decoder.3.weight: shape \(8, 9, 4, 4\), expected \(9, 8, 4, 4\)",
        ),
        (
            lambda d: d.update({"encoder.6.weight": d["encoder.6.weight"].swapaxes(0, 1)}),
            r"encoder.6.weight: shape \(10, 6, 1, 1\), expected \(6, 10, 1, 1\)",
        ),
        (
            lambda d: d.update({"encoder.0.weight": d["encoder.0.weight"][:, :, 0, 0]}),
            r"encoder.0.weight has shape \(10, 12\), expected 4 axes",
        ),
        (
            lambda d: d.update({"encoder.1.bias": d["encoder.1.bias"].astype(np.float16)}),
            "encoder.1.bias: type float16, expected float32",
        ),
        (lambda d: d.clear(), "the state dict is empty"),
    ],
    ids=["dropped", "dropped bias", "added", "renamed", "transposed", "transposed 1x1", "flat", "retyped", "empty"],
)
def test_one_wrong_tensor(change, message):
    state_dict = small_state_dict()
    change(state_dict)
    with pytest.raises(InputError, match=message):
        convert_conv_autoencoder(state_dict)
