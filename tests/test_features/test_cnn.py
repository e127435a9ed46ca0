"""The Choi networks: shapes, golden probabilities, calibration."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from features.cnn import VARIANTS, ChoiNetwork, calibrate, choi_variant
from features.errors import FeatureInputError
from features.weights import load_weights, tag_names

SHARED = Path(__file__).parents[2].parent / "shared"
CHOI2016 = SHARED / "data" / "choi2016"
JAMENDO = SHARED / "data" / "jamendo_fcn" / "best_model.pth"
needs_choi2016 = pytest.mark.skipif(not CHOI2016.is_dir(), reason="needs shared/data/choi2016")
needs_jamendo = pytest.mark.skipif(not JAMENDO.is_file(), reason="needs shared/data/jamendo_fcn")


def log_mels(n_chunks: int, n_frames: int = 1366, seed: int = 0) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    levels = generator.normal(-9.0, 4.0, (n_chunks, 96, n_frames))
    return torch.from_numpy(levels.astype(np.float32))


@pytest.mark.parametrize(("variant", "dim"), [("thesis", 1024), ("choi2016", 256), ("jamendo_fcn", 64)])
def test_embedding_has_the_variants_length(variant: str, dim: int) -> None:
    network = load_weights("random:0", variant).network()
    with torch.no_grad():
        embeddings = network(log_mels(2))
    assert embeddings.shape == (2, dim)
    assert 0.3 < float(embeddings.std()) < 5.0


@pytest.mark.parametrize(
    ("variant", "frames"),
    [("thesis", (1194, 1449)), ("choi2016", (1366, 1366)), ("jamendo_fcn", (1280, 2559))],
)
def test_numbers_of_frames_that_fit(variant: str, frames: tuple[int, int]) -> None:
    chosen = choi_variant(variant)
    assert chosen.frames_range == frames
    network = load_weights("random:0", variant).network()
    with torch.no_grad():
        for n_frames in frames:
            assert network(log_mels(1, n_frames)).shape == (1, chosen.embedding_dim)
    for n_frames in (frames[0] - 1, frames[1] + 1):
        with pytest.raises(FeatureInputError, match="zero-pad them to chunks of 1366 frames"):
            network(log_mels(1, n_frames))


@pytest.mark.parametrize("shape", [(96, 1366), (1, 95, 1366), (1, 1, 96, 1366)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FeatureInputError, match="shape"):
        load_weights("random:0", "thesis").network()(torch.zeros(shape))


def test_unknown_variant_names_the_nearest() -> None:
    with pytest.raises(FeatureInputError, match="did you mean 'choi2016'"):
        choi_variant("choi2106")


def test_thesis_has_no_tags() -> None:
    with pytest.raises(FeatureInputError, match="no tag head"):
        load_weights("random:0", "thesis").network().tag_probabilities(log_mels(1))


def test_gradients_reach_every_parameter() -> None:
    network = load_weights("random:3", "thesis").network().train()
    network(log_mels(2)).square().sum().backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # a convolution's bias vanishes in the batch norm after it
    assert [name for name in without if not name.endswith("bias")] == []


def independent_embeddings(x: torch.Tensor, state: dict[str, torch.Tensor], time_norm: bool) -> torch.Tensor:
    """The published baselines written out with plain functions, batch norm by its formula."""

    def batch_norm(x: torch.Tensor, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        mean, variance, gamma, beta = (
            state[f"{name}.{key}"].reshape(shape) for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gamma + beta

    x = batch_norm(x.unsqueeze(1), "bn_init", (1, 1, 1, -1 if time_norm else 1))
    for layer, pool in enumerate([(2, 4), (2, 4), (2, 4), (3, 5), (4, 4)], start=1):
        x = functional.conv2d(x, state[f"conv_{layer}.weight"], state[f"conv_{layer}.bias"], padding=1)
        x = batch_norm(x, f"bn_{layer}", (1, -1, 1, 1))
        x = torch.where(x > 0, x, torch.expm1(x))
        x = functional.max_pool2d(x, pool)
    return x.reshape(len(x), -1)


@needs_jamendo
def test_jamendo_fcn_agrees_with_an_independent_forward_pass() -> None:
    state = torch.load(JAMENDO, map_location="cpu", weights_only=True)
    network = load_weights(JAMENDO, "jamendo_fcn").network()
    x = log_mels(2) * 4.0
    with torch.no_grad():
        expected = independent_embeddings(x, state, time_norm=False)
        embeddings = network(x)
        probabilities = network.tag_probabilities(x)
    assert embeddings.shape == (2, 64)
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-5)
    dense = torch.sigmoid(expected @ state["dense.weight"].T + state["dense.bias"])
    torch.testing.assert_close(probabilities, dense, rtol=1e-4, atol=1e-5)
    assert len(tag_names("jamendo_fcn")) == probabilities.shape[1] == 56


@needs_choi2016
def test_choi2016_gives_the_published_probabilities() -> None:
    golden = json.loads((CHOI2016 / "golden.json").read_text())
    batch = np.concatenate([np.load(CHOI2016 / f"{name}.npy")[:, 0] for name in golden["order"]])
    weights = load_weights(CHOI2016 / "cnn_weights_theano.h5", "choi2016", statistics="file")
    with torch.no_grad():
        probabilities = weights.network().tag_probabilities(
            torch.from_numpy(batch.astype(np.float32)), batch_statistics=True
        )
    tags = tag_names("choi2016")
    for row, expected in zip(probabilities.numpy(), golden["expected_top5"], strict=True):
        assert {tags[i] for i in np.argsort(row)[-5:]} == set(expected)
        for tag, probability in expected.items():
            assert row[tags.index(tag)] == pytest.approx(probability, abs=golden["tolerance"])


@needs_choi2016
def test_frozen_statistics_keep_the_published_tags_recognisable() -> None:
    golden = json.loads((CHOI2016 / "golden.json").read_text())
    network = load_weights(CHOI2016 / "cnn_weights_theano.h5", "choi2016").network()
    tags = tag_names("choi2016")
    shared_tags = []
    for name, expected in zip(golden["order"], golden["expected_top5"], strict=True):
        chunk = torch.from_numpy(np.load(CHOI2016 / f"{name}.npy")[:, 0].astype(np.float32))
        with torch.no_grad():
            row = network.tag_probabilities(chunk)[0].numpy()
        shared_tags.append(len({tags[i] for i in np.argsort(row)[-5:]} & set(expected)))
    assert sum(shared_tags) >= 8  # of 20; chance is 2


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_calibrated_network_gives_what_batch_statistics_gave(variant: str) -> None:
    network = load_weights("random:1", variant).network()
    chunks = log_mels(3, seed=5) * 0.3
    with torch.no_grad():
        expected = network(chunks, batch_statistics=True)
        assert not torch.allclose(network(chunks), expected, rtol=1e-2, atol=1e-2)
        calibrate(network, chunks)
        torch.testing.assert_close(network(chunks), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("variant", "moments"),
    [
        ("thesis", lambda x: (x.mean((0, 2)), x.var((0, 2), correction=0))),
        ("choi2016", lambda x: (x.mean((0, 1)), x.var((0, 1), correction=0))),
        ("jamendo_fcn", lambda x: (x.mean().reshape(1), x.var(correction=0).reshape(1))),
    ],
)
def test_input_norm_is_calibrated_on_its_axis(
    variant: str, moments: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> None:
    network = load_weights("random:1", variant).network()
    chunks = log_mels(2) + torch.linspace(0, 9, 96)[:, None] + torch.linspace(0, 5, 1366)
    calibrate(network, chunks, with_input_norm=True)
    mean, variance = moments(chunks)
    torch.testing.assert_close(network.input_norm.running_mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(network.input_norm.running_var, variance, rtol=1e-3, atol=1e-3)


def test_calibration_needs_a_chunk() -> None:
    empty: NDArray[np.float32] = np.zeros((0, 96, 1366), dtype=np.float32)
    with pytest.raises(FeatureInputError, match="at least one"):
        calibrate(ChoiNetwork(choi_variant("thesis")), empty)
