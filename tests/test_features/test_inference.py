"""The fast path: near the plain network, bit-identical whatever else is in the call."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from features.cnn import VARIANTS
from features.errors import FeatureInputError
from features.inference import Embedder
from features.weights import Weights, load_weights, network_weights

CHOI2016 = Path(__file__).parents[2].parent / "shared" / "data" / "choi2016"
VARIANT_NAMES = sorted(VARIANTS)


def chunks(n_chunks: int = 2, n_frames: int = 1366) -> NDArray[np.float32]:
    generator = np.random.default_rng(7)
    smooth = generator.normal(size=(n_chunks, 24, 20)).repeat(4, axis=1).repeat(n_frames // 20 + 1, axis=2)
    noise = generator.normal(size=(n_chunks, 96, n_frames))
    return (-9.0 + 3.0 * smooth[:, :, :n_frames] + 2.0 * noise).astype(np.float32)


def awkward_weights(variant: str) -> Weights:
    """Random weights whose batch norms shift, scale unevenly and flip signs."""
    network = load_weights("random:2", variant).network()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in (network.input_norm, *network.norms):
            norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) * 2.0 - 0.5)
            norm.bias.copy_(torch.rand(norm.bias.shape, generator=generator) - 0.5)
    return network_weights(network, {"source": "test"})


def plain(weights: Weights, log_mels: NDArray[np.float32]) -> NDArray[np.float32]:
    with torch.no_grad():
        embeddings: NDArray[np.float32] = weights.network()(torch.from_numpy(log_mels)).numpy()
    return embeddings


def relative_error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("variant", VARIANT_NAMES)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_fast_path_stays_near_the_plain_network(variant: str, precision: str, tolerance: float) -> None:
    log_mels = chunks()
    for weights in (load_weights("random:0", variant), awkward_weights(variant)):
        embedder = Embedder(weights, device="cpu", precision=precision)  # type: ignore[arg-type]
        assert relative_error(embedder.embedding(log_mels), plain(weights, log_mels)) < tolerance


@pytest.mark.skipif(not CHOI2016.is_dir(), reason="needs shared/data/choi2016")
@pytest.mark.parametrize("variant", ["choi2016", "thesis"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_fast_path_on_published_weights_and_real_music(
    variant: str, precision: str, tolerance: float
) -> None:
    weights = load_weights(CHOI2016 / "cnn_weights_theano.h5", variant)
    log_mel = np.load(CHOI2016 / "thejazzpiano.npy")[0].astype(np.float32)
    if variant == "thesis":
        log_mel = log_mel * np.float32(np.log(10.0) / 20.0) - np.float32(
            7.0
        )  # dB of squared power as ln of power
    embedder = Embedder(weights, device="cpu", precision=precision)  # type: ignore[arg-type]
    assert relative_error(embedder.embedding(log_mel), plain(weights, log_mel)) < tolerance


@pytest.mark.parametrize("n_frames", [1194, 1300, 1449])
def test_other_numbers_of_frames(n_frames: int) -> None:
    weights, log_mels = load_weights("random:0", "thesis"), chunks(1, n_frames)
    embedder = Embedder(weights, device="cpu", precision="float32")
    assert relative_error(embedder.embedding(log_mels), plain(weights, log_mels)) < 1e-5


@pytest.mark.parametrize("variant", VARIANT_NAMES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_embedding_does_not_depend_on_its_batch(variant: str, precision: str) -> None:
    embedder = Embedder(load_weights("random:0", variant), precision=precision)  # type: ignore[arg-type]
    log_mels = chunks(3)
    together = embedder.embedding(log_mels)
    assert together.shape == (3, embedder.dim)
    assert together.dtype == np.float32
    assert len(np.unique(together, axis=0)) == 3
    for row, chunk in zip(together, log_mels, strict=True):
        np.testing.assert_array_equal(embedder.embedding(chunk), row)
    np.testing.assert_array_equal(embedder.embedding(log_mels[::-1]), together[::-1])


def test_input_may_be_half_precision_read_only_and_strided() -> None:
    embedder = Embedder(load_weights("random:0", "thesis"), device="cpu", precision="float32")
    half = chunks(1)[0].astype(np.float16)
    expected = embedder.embedding(half.astype(np.float32))
    fortran = np.asfortranarray(half)
    fortran.flags.writeable = False
    np.testing.assert_array_equal(embedder.embedding(fortran), expected)


def test_no_chunks_give_no_embeddings() -> None:
    embedder = Embedder(load_weights("random:0", "jamendo_fcn"), device="cpu")
    assert embedder.embedding(np.zeros((0, 96, 1366), dtype=np.float32)).shape == (0, 64)


def test_pickled_embedder_gives_the_same() -> None:
    embedder = Embedder(load_weights("random:0", "thesis"), precision="bfloat16")
    again = pickle.loads(pickle.dumps(embedder))  # noqa: S301
    assert again.precision == "bfloat16"
    np.testing.assert_array_equal(again.embedding(chunks()), embedder.embedding(chunks()))


@pytest.mark.parametrize(
    ("log_mel", "match"),
    [
        (np.zeros(96, dtype=np.float32), "shape"),
        (np.zeros((96, 1366), dtype=np.int16), "int16"),
        (np.zeros((96, 100), dtype=np.float32), "1194 to 1449"),
        (np.full((96, 1366), -np.inf, dtype=np.float32), "not finite"),
    ],
)
def test_input_that_does_not_fit(log_mel: NDArray[np.float32], match: str) -> None:
    embedder = Embedder(load_weights("random:0", "thesis"), device="cpu")
    with pytest.raises(FeatureInputError, match=match):
        embedder.embedding(log_mel)


def test_unknown_device_and_precision() -> None:
    weights = load_weights("random:0", "thesis")
    with pytest.raises(FeatureInputError, match="'tpu'"):
        Embedder(weights, device="tpu")  # type: ignore[arg-type]
    with pytest.raises(FeatureInputError, match="'int8'"):
        Embedder(weights, precision="int8")  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(FeatureInputError, match="no CUDA device"):
        Embedder(load_weights("random:0", "thesis"), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_cuda_stays_near_the_plain_network(variant: str) -> None:
    weights, log_mels = load_weights("random:0", variant), chunks()
    embedder = Embedder(weights, device="cuda")
    assert embedder.precision == "float32"
    assert relative_error(embedder.embedding(log_mels), plain(weights, log_mels)) < 1e-5
