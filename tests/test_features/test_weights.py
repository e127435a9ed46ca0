"""Weights from seeds, files and downloads; every damaged source gives one clear error."""

import dataclasses
import hashlib
import http.server
import itertools
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch

from features import downloads
from features.cnn import VARIANTS, calibrate
from features.downloads import PUBLISHED, PublishedWeights, cache_folder, downloaded
from features.errors import FeatureInputError, WeightsError
from features.weight_formats import expected_shapes
from features.weights import EXPECTED_INPUT, Weights, load_weights, network_weights, save_weights, tag_names

SHARED = Path(__file__).parents[2].parent / "shared"
KERAS = SHARED / "data" / "choi2016" / "cnn_weights_theano.h5"
JAMENDO = SHARED / "data" / "jamendo_fcn" / "best_model.pth"
needs_keras = pytest.mark.skipif(not KERAS.is_file(), reason="needs shared/data/choi2016")
needs_jamendo = pytest.mark.skipif(not JAMENDO.is_file(), reason="needs shared/data/jamendo_fcn")


def assert_one_line(error: pytest.ExceptionInfo[WeightsError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def keras_file(path: Path, *, with_statistics: bool) -> Path:
    """A file laid out as the published one, with random values."""
    generator = np.random.default_rng(0)
    sizes = (1, 32, 128, 128, 192, 256)
    with h5py.File(path, "w") as file:

        def norm(layer: str, n: int, own: bool) -> None:
            file[f"{layer}/{layer}_gamma"] = generator.uniform(0.5, 1.5, n)
            file[f"{layer}/{layer}_beta"] = generator.normal(size=n)
            file[f"{layer}/{layer}_running_mean"] = generator.normal(size=n) if own else np.zeros(n)
            file[f"{layer}/{layer}_running_std"] = generator.uniform(0.5, 1.5, n) if own else np.ones(n)

        norm("bn_0_freq", 1366, True)
        for layer, (n_in, n_out) in enumerate(itertools.pairwise(sizes), start=1):
            file[f"conv{layer}/conv{layer}_W"] = generator.normal(size=(n_out, n_in, 3, 3)).astype("f4")
            file[f"conv{layer}/conv{layer}_b"] = generator.normal(size=n_out)
            norm(f"bn{layer}", n_out, with_statistics)
        file["output/output_W"] = generator.normal(size=(256, 50))
        file["output/output_b"] = generator.normal(size=50)
    return path


# --- random ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_same_seed_same_weights(variant: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, again, other = (load_weights(f"random:{seed}", variant) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.sha256 == again.sha256 != other.sha256
    assert all(torch.equal(one.state[name], again.state[name]) for name in expected_shapes(VARIANTS[variant]))
    assert one.card["source"] == "random:4"
    assert one.card["variant"] == variant


def test_number_of_threads_does_not_change_random_weights() -> None:
    threads = torch.get_num_threads()
    try:
        hashes = set()
        for n in (1, 2):
            torch.set_num_threads(n)
            hashes.add(load_weights("random:0", "thesis").sha256)
    finally:
        torch.set_num_threads(threads)
    assert len(hashes) == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_random_activations_are_well_scaled(variant: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    slow = generator.normal(0.0, 3.0, (2, 12, 30)).repeat(8, axis=1).repeat(46, axis=2)[:, :, :1366]
    log_mels = np.clip(-8.0 + slow + generator.normal(size=slow.shape), -23.0, 5.0).astype(np.float32)
    network = load_weights(f"random:{seed}", variant).network()
    with torch.no_grad():
        x = network.normalised(torch.from_numpy(log_mels))
        for layer, convolution in enumerate(network.convolutions):
            x = convolution(x)
            normal = network.norms[layer](x)
            assert 0.3 < float(normal.std()) < 3.0
            assert abs(float(normal.mean())) < 1.0
            x = network._activated(layer, x)


@pytest.mark.parametrize("source", ["random:", "random:-1", "random:x", "random:1.5", f"random:{2**63}"])
def test_seed_that_is_none(source: str) -> None:
    with pytest.raises(WeightsError, match="whole number") as error:
        load_weights(source, "thesis")
    assert_one_line(error, source)


def test_unknown_variant() -> None:
    with pytest.raises(FeatureInputError, match="did you mean 'thesis'"):
        load_weights("random:0", "theses")


# --- our own format ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_saved_weights_come_back(variant: str, tmp_path: Path) -> None:
    weights = load_weights("random:0", variant)
    save_weights(weights, tmp_path / "w.safetensors")
    again = load_weights(tmp_path / "w.safetensors", variant)
    assert again.sha256 == weights.sha256
    assert again.card == weights.card
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_weights_survive_pickling() -> None:
    weights = load_weights("random:0", "jamendo_fcn")
    again = pickle.loads(pickle.dumps(weights))  # noqa: S301
    assert again.sha256 == network_weights(again.network(), again.card).sha256 == weights.sha256


def test_state_dict_of_a_trained_network(tmp_path: Path) -> None:
    weights = load_weights("random:0", "thesis")
    torch.save(weights.network().state_dict(), tmp_path / "w.pth")
    assert load_weights(tmp_path / "w.pth", "thesis").sha256 == weights.sha256


def test_hash_tells_any_value(tmp_path: Path) -> None:
    weights = load_weights("random:0", "thesis")
    network = weights.network()
    with torch.no_grad():
        network.norms[4].get_buffer("running_var")[0] += 1e-3
    assert network_weights(network, {}).sha256 != weights.sha256


def test_only_safetensors_are_written(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"\.safetensors") as error:
        save_weights(load_weights("random:0", "thesis"), tmp_path / "w.pth")
    assert_one_line(error, "w.pth")


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="Cannot write") as error:
        save_weights(load_weights("random:0", "thesis"), tmp_path / "none" / "w.safetensors")
    assert_one_line(error, "w.safetensors")


def test_changed_value_is_found_by_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(load_weights("random:0", "thesis"), path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # a mantissa bit of the last tensor
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged") as error:
        load_weights(path, "thesis")
    assert_one_line(error, "w.safetensors", "anew")


def test_safetensors_without_a_card(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(dict(load_weights("random:0", "thesis").state), path)
    with pytest.raises(WeightsError, match="no card") as error:
        load_weights(path, "thesis")
    assert_one_line(error, "w.safetensors", "save_weights")


# --- files that are wrong -----------------------------------------------------------------------------------


def _keras(path: Path) -> None:
    keras_file(path, with_statistics=True)


def _pth(path: Path) -> None:
    torch.save(load_weights("random:0", "choi2016").network().state_dict(), path)


def _safetensors(path: Path) -> None:
    save_weights(load_weights("random:0", "choi2016"), path)


FORMATS = [("w.h5", _keras), ("w.pth", _pth), ("w.safetensors", _safetensors)]


@pytest.mark.parametrize(("name", "write"), FORMATS)
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_truncated_file(name: str, write: Callable[[Path], None], kept: float, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path)
    assert load_weights(path, "choi2016").variant == "choi2016"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(WeightsError, match="damaged or not") as error:
        load_weights(path, "choi2016")
    assert_one_line(error, name, "anew")


@pytest.mark.parametrize("name", ["w.h5", "w.pth", "w.pt", "w.safetensors"])
def test_file_of_another_kind(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("<html>404: Not Found</html>\n" * 10)
    with pytest.raises(WeightsError, match="damaged or not") as error:
        load_weights(tmp_path / name, "choi2016")
    assert_one_line(error, name)


@pytest.mark.parametrize(("name", "write"), FORMATS)
def test_weights_of_another_variant(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / name)
    with pytest.raises(WeightsError, match="jamendo_fcn") as error:
        load_weights(tmp_path / name, "jamendo_fcn")
    assert_one_line(error, name)


@pytest.mark.parametrize("name", ["none.h5", "none.pth", "none.safetensors", "folder/none.pt"])
def test_missing_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights file") as error:
        load_weights(tmp_path / name, "thesis")
    assert_one_line(error, name)


def test_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match="no known suffix") as error:
        load_weights(tmp_path / "w.onnx", "thesis")
    assert_one_line(error, "w.onnx")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    state = load_weights("random:0", "thesis").network().state_dict()
    state["convolutions.2.bias"][3] = float("nan")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="finite") as error:
        load_weights(tmp_path / "w.pth", "thesis")
    assert_one_line(error, "w.pth", "convolutions.2.bias")


class _Opened:
    """Pickles into a call: opening it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str, str], object], tuple[str, str]]:
        return open, (str(self.path), "w")


def test_pickles_are_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"weights": _Opened(mark)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as error:
        load_weights(tmp_path / "w.pth", "thesis")
    assert_one_line(error, "w.pth")
    assert not mark.exists()


def test_checkpoint_instead_of_a_state_dict(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {}}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no state dict") as error:
        load_weights(tmp_path / "w.pth", "thesis")
    assert_one_line(error, "w.pth", "state_dict()")


# --- Keras HDF5 ---------------------------------------------------------------------------------------------


def test_keras_kernels_are_flipped_and_the_variance_is_read_as_one(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "w.h5", with_statistics=True)
    weights = load_weights(path, "choi2016")
    with h5py.File(path) as file:
        kernel, std = file["conv2/conv2_W"][()], file["bn2/bn2_running_std"][()]
        time_mean, dense = file["bn_0_freq/bn_0_freq_running_mean"][()], file["output/output_W"][()]
    np.testing.assert_array_equal(weights.state["convolutions.1.weight"][7, 5, 0, 2], kernel[7, 5, 2, 0])
    np.testing.assert_allclose(weights.state["norms.1.running_var"], std, rtol=1e-6)
    np.testing.assert_allclose(weights.state["input_norm.running_mean"], time_mean, rtol=1e-6)
    np.testing.assert_allclose(weights.state["head.weight"], dense.T, rtol=1e-6)


def test_foreign_keras_weights_without_statistics_must_be_calibrated(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "w.h5", with_statistics=False)
    for variant in ("choi2016", "thesis"):
        with pytest.raises(WeightsError, match='statistics="file"') as error:
            load_weights(path, variant)
        assert_one_line(error, "w.h5", "calibrate")
        network = load_weights(path, variant, statistics="file").network()
        calibrate(network, np.random.default_rng(0).normal(size=(1, 96, 1366)), with_input_norm=True)
        save_weights(network_weights(network, {"source": "test"}), tmp_path / f"{variant}.safetensors")
        assert load_weights(tmp_path / f"{variant}.safetensors", variant).card["source"] == "test"


@pytest.mark.parametrize("missing", ["conv3/conv3_W", "bn5/bn5_beta", "bn_0_freq", "output/output_b"])
def test_keras_file_that_lacks_an_array(missing: str, tmp_path: Path) -> None:
    path = keras_file(tmp_path / "w.h5", with_statistics=True)
    with h5py.File(path, "a") as file:
        del file[missing]
    with pytest.raises(WeightsError, match=missing) as error:
        load_weights(path, "choi2016")
    assert_one_line(error, "w.h5", "lacks")


def test_keras_file_in_tensorflow_order(tmp_path: Path) -> None:
    path = keras_file(tmp_path / "w.h5", with_statistics=True)
    with h5py.File(path, "a") as file:
        kernel = file["conv2/conv2_W"][()].transpose(2, 3, 1, 0)
        del file["conv2/conv2_W"]
        file["conv2/conv2_W"] = kernel
    with pytest.raises(WeightsError, match="shape") as error:
        load_weights(path, "choi2016")
    assert_one_line(error, "w.h5", "convolutions.1.weight")


@needs_keras
@pytest.mark.parametrize("variant", ["choi2016", "thesis"])
def test_published_weights_bring_frozen_statistics(variant: str) -> None:
    weights = load_weights(KERAS, variant)
    assert weights.card["statistics"]["n_chunks"] > 100
    assert weights.card["statistics"]["weights_file_sha256"] == PUBLISHED["choi2016-msd"].sha256
    bare = load_weights(KERAS, variant, statistics="file")
    for layer in range(5):
        assert torch.equal(
            bare.state[f"norms.{layer}.running_var"], torch.ones(len(bare.state[f"norms.{layer}.bias"]))
        )
        assert not torch.equal(
            weights.state[f"norms.{layer}.running_var"], bare.state[f"norms.{layer}.running_var"]
        )
        for name in (f"convolutions.{layer}.weight", f"convolutions.{layer}.bias", f"norms.{layer}.weight"):
            assert torch.equal(weights.state[name], bare.state[name])
    assert weights.state["input_norm.weight"].shape == ((1366,) if variant == "choi2016" else (96,))


@needs_keras
def test_thesis_takes_the_convolutions_of_choi2016() -> None:
    thesis, choi2016 = load_weights(KERAS, "thesis"), load_weights(KERAS, "choi2016")
    for layer in range(5):
        for name in (f"convolutions.{layer}.weight", f"norms.{layer}.weight", f"norms.{layer}.bias"):
            assert torch.equal(thesis.state[name], choi2016.state[name])
    assert -23 < float(thesis.state["input_norm.running_mean"].mean()) < 5  # natural logarithms


# --- cards ----------------------------------------------------------------------------------------------------


def test_cards_say_which_log_mel_is_expected() -> None:
    assert load_weights("random:0", "choi2016").card["input"]["log"] == "ln"
    assert EXPECTED_INPUT["choi2016"].exponent == 2.0
    assert EXPECTED_INPUT["jamendo_fcn"].top_db is None


@needs_jamendo
def test_card_of_a_file_names_no_folder() -> None:
    card = load_weights(JAMENDO, "jamendo_fcn").card
    assert card["source"] == "best_model.pth"
    assert card["file_sha256"] == PUBLISHED["jamendo-fcn"].sha256
    assert str(JAMENDO.parent) not in str(card)


def test_tag_names_fit_the_heads() -> None:
    for variant in VARIANTS.values():
        assert len(set(tag_names(variant.name))) == (variant.n_outputs or 0)


# --- downloads ------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Address, folder and request log of a server on this machine."""
    folder = tmp_path / "served"
    folder.mkdir()
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=str(folder), **kwargs)  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            requests.append(format % args)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}", folder, requests
        httpd.shutdown()
        thread.join()


def _entry(url: str, content: bytes, file_name: str = "fetched.safetensors") -> PublishedWeights:
    return PublishedWeights(url, hashlib.sha256(content).hexdigest(), file_name, "thesis", "none")


def test_weights_are_fetched_once(
    server: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, served, requests = server
    weights: Weights = load_weights("random:9", "thesis")
    save_weights(weights, served / "w.safetensors")
    entry = _entry(f"{url}/w.safetensors", (served / "w.safetensors").read_bytes())
    monkeypatch.setenv("MIRSTORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PUBLISHED, "nine", entry)
    for _ in range(2):
        assert load_weights("nine", "thesis").sha256 == weights.sha256
    assert len(requests) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["fetched.safetensors"]


def test_file_address(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"weights")
    path = downloaded(_entry((tmp_path / "w.bin").as_uri(), b"weights"), tmp_path / "cache")
    assert path.read_bytes() == b"weights"


def test_wrong_hash_leaves_nothing(server: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, served, _ = server
    (served / "w.bin").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="SHA-256") as error:
        downloaded(_entry(f"{url}/w.bin", b"weights"), tmp_path / "cache")
    assert_one_line(error, "expected", "by hand")
    assert list((tmp_path / "cache").iterdir()) == []


def test_damaged_cache_is_fetched_anew(server: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, served, _ = server
    (served / "w.bin").write_bytes(b"weights")
    entry = _entry(f"{url}/w.bin", b"weights")
    path = downloaded(entry, tmp_path / "cache")
    path.write_bytes(b"weighty")
    assert downloaded(entry, tmp_path / "cache").read_bytes() == b"weights"


def test_damaged_cache_without_network_is_not_used(tmp_path: Path) -> None:
    entry = _entry((tmp_path / "gone.bin").as_uri(), b"weights", "w.bin")
    (tmp_path / "w.bin").write_bytes(b"weighty")
    with pytest.raises(WeightsError, match="Could not download"):
        downloaded(entry, tmp_path)


def test_no_network(server: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    url, _, _ = server
    for address in (f"{url}/none.bin", "http://127.0.0.1:1/w.bin"):
        with pytest.raises(WeightsError, match="Could not download") as error:
            downloaded(_entry(address, b"weights"), tmp_path / "cache")
        assert_one_line(error, address, "fetched.safetensors")
        assert list((tmp_path / "cache").iterdir()) == []


def test_endless_answer_is_cut(
    server: tuple[str, Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, served, _ = server
    (served / "w.bin").write_bytes(b"weights")
    monkeypatch.setattr(downloads, "_MAX_BYTES", 3)
    with pytest.raises(WeightsError, match="not a weights file"):
        downloaded(_entry(f"{url}/w.bin", b"weights"), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_other_schemes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="https, http or file"):
        downloaded(_entry("ftp://127.0.0.1/w.bin", b"weights"), tmp_path)


def test_cache_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightsError, match="MIRSTORE_CACHE") as error:
        downloaded(_entry("http://127.0.0.1:1/w.bin", b"weights"), tmp_path / "file")
    assert_one_line(error)


def test_unknown_name_hints() -> None:
    with pytest.raises(WeightsError, match="did you mean 'choi2016-msd'") as error:
        load_weights("choi2016-mds", "choi2016")
    assert_one_line(error)


def test_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIRSTORE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("MIRSTORE_CACHE")
    assert cache_folder().parts[-3:] == (".cache", "mirstore", "weights")


@pytest.mark.parametrize(
    ("name", "variant", "local"),
    [
        pytest.param("choi2016-msd", "choi2016", KERAS, marks=needs_keras),
        pytest.param("choi2016-msd", "thesis", KERAS, marks=needs_keras),
        pytest.param("jamendo-fcn", "jamendo_fcn", JAMENDO, marks=needs_jamendo),
    ],
)
def test_published_names_have_the_hash_of_the_copies_at_hand(
    name: str, variant: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PUBLISHED[name].url.startswith("https://raw.githubusercontent.com/")
    monkeypatch.setenv("MIRSTORE_CACHE", str(tmp_path))
    entry = dataclasses.replace(PUBLISHED[name], url=local.as_uri())
    monkeypatch.setitem(PUBLISHED, name, entry)
    weights = load_weights(name, variant)
    assert weights.sha256 == load_weights(local, variant).sha256
    assert weights.card["licence"] == entry.licence
