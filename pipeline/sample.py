"""The project's own songs: a synthetic collection with known sections, tempo and key."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
FORM = ("intro", "A", "B", "A", "B", "C", "B", "outro")
BEATS_PER_BAR = 4

# Chords of a section, a bar each: degrees of the major scale (0 is the tonic).
_PROGRESSIONS = ((0, 4, 5, 3), (5, 3, 0, 4), (0, 5, 3, 4), (3, 4, 0, 5), (1, 4, 0, 0), (0, 3, 1, 4))
_MAJOR = np.array([0, 2, 4, 5, 7, 9, 11])
_SUBTYPES = {".ogg": "VORBIS", ".flac": "PCM_16", ".wav": "PCM_16", ".mp3": "MPEG_LAYER_III", ".opus": "OPUS"}
_PIECE = 65_536  # samples a write: libsndfile's Vorbis encoder overflows its stack on long ones


@dataclass(frozen=True, slots=True)
class PlannedSection:
    """A stretch of a song; sections of one label hold the same music.

    Parameters
    ----------
    start_s, end_s
        Seconds from the start of the song.
    label
        For example ``intro``, ``A``, ``B``.
    """

    start_s: float
    end_s: float
    label: str


@dataclass(frozen=True, slots=True)
class SampleSong:
    """One song of the sample collection.

    Parameters
    ----------
    path
        The audio file; its plan lies beside it, ending in ``.lab``.
    plan
        The sections, without gaps, from 0 to the song's end.
    tempo
        Beats per minute.
    key
        The major key's tonic, one of `PITCHES`.
    """

    path: Path
    plan: tuple[PlannedSection, ...]
    tempo: float
    key: str


def song_plan(*, tempo: float, duration_s: float, form: Sequence[str] = FORM) -> tuple[PlannedSection, ...]:
    """Sections of whole bars for a song of about `duration_s`.

    Parameters
    ----------
    tempo
        Beats per minute, above 0.
    duration_s
        Seconds; the plan is as near as whole bars allow, with at least one bar a section.
    form
        Labels in order. ``intro`` and ``outro`` get half the bars of the others.

    Returns
    -------
    tuple of PlannedSection
    """
    if not tempo > 0 or not duration_s > 0 or not form:
        raise ValueError(f"tempo, duration_s and form must not be empty, got {tempo}, {duration_s}, {form}.")
    bar_s = BEATS_PER_BAR * 60 / tempo
    weights = np.array([0.5 if label in ("intro", "outro") else 1.0 for label in form])
    bars = np.maximum(1, np.round(weights * duration_s / (bar_s * weights.sum())))
    edges_s = np.concatenate([[0.0], np.cumsum(bars)]) * bar_s
    spans = zip(edges_s[:-1].tolist(), edges_s[1:].tolist(), form, strict=True)
    return tuple(PlannedSection(start_s, end_s, label) for start_s, end_s, label in spans)


def render_song(
    plan: Sequence[PlannedSection],
    rng: np.random.Generator,
    *,
    tempo: float,
    key: str = "C",
    sample_rate: int = 44_100,
) -> NDArray[np.float32]:
    """Stereo samples of a song: chords, a melody and drums, with one timbre throughout.

    Parameters
    ----------
    plan
        As of `song_plan`: sections of whole bars at `tempo`. Every section of one label sounds the same, but
        for a hiss 50 dB below the music.
    rng
        Source of the timbre, the chords, the melodies and the hiss.
    tempo
        Beats per minute.
    key
        Tonic of the major scale, one of `PITCHES`.
    sample_rate
        Hz.

    Returns
    -------
    NDArray
        float32, shape (sample, 2), peak 0.8.
    """
    tonic = PITCHES.index(key)
    beat_s = 60 / tempo
    partials = rng.dirichlet(np.ones(5)) * 0.7 + np.array([0.3, 0, 0, 0, 0])
    swing_hz = rng.uniform(0.2, 6.0)
    labels = list(dict.fromkeys(section.label for section in plan))
    order = rng.permutation(len(_PROGRESSIONS))
    music: dict[str, NDArray[np.float32]] = {}
    for place, label in enumerate(labels):
        length_s = max(section.end_s - section.start_s for section in plan if section.label == label)
        n_beats = round(length_s / beat_s)
        chords = np.array(_PROGRESSIONS[order[place % len(order)]])
        samples = np.zeros((round(length_s * sample_rate) + 2, 2), np.float32)
        _add_chords(samples, chords, n_beats, tonic, partials, swing_hz, beat_s, sample_rate)
        if label not in ("intro", "outro"):
            _add_melody(samples, chords, n_beats, tonic, rng, beat_s, sample_rate)
        _add_drums(samples, n_beats, rng, beat_s, sample_rate, full=label not in ("intro", "outro"))
        music[label] = samples
    gain = np.float32(0.797 / max(max(float(sound.max()), -float(sound.min())) for sound in music.values()))
    song = rng.random((round(plan[-1].end_s * sample_rate), 2), np.float32)
    song -= np.float32(0.5)
    song *= np.float32(0.006)  # the hiss
    for section in plan:
        start, end = round(section.start_s * sample_rate), round(section.end_s * sample_rate)
        song[start:end] += gain * music[section.label][: end - start]
    return song


def write_sample_collection(
    folder: str | Path,
    *,
    n_songs: int = 8,
    seed: int = 0,
    sample_rate: int = 44_100,
    duration_s: float = 120.0,
    ending: str = ".ogg",
) -> list[SampleSong]:
    """Songs written into a folder, each with its plan beside it; the same samples for the same seed.

    Parameters
    ----------
    folder
        Made when missing.
    n_songs
        Number of songs; a song is the same however many are written.
    seed
        Seed of everything random.
    sample_rate
        Hz; Opus (``.opus``) takes 48,000 and its halves and thirds only.
    duration_s
        Approximate seconds a song (whole bars).
    ending
        Kind of file: ``.ogg`` (Vorbis), ``.opus``, ``.mp3``, ``.flac`` or ``.wav``.

    Returns
    -------
    list of SampleSong
    """
    if ending not in _SUBTYPES:
        raise ValueError(f"ending must be one of {', '.join(_SUBTYPES)}, got {ending!r}.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    songs = []
    for number in range(n_songs):
        rng = np.random.default_rng([seed, number])
        tempo = float(rng.integers(80, 150))
        key = PITCHES[(7 * number + seed) % 12]  # twelve songs, twelve keys
        plan = song_plan(tempo=tempo, duration_s=duration_s)
        path = folder / f"song-{number + 1:02d}{ending}"
        samples = render_song(plan, rng, tempo=tempo, key=key, sample_rate=sample_rate)
        form = "OGG" if ending == ".opus" else None
        with sf.SoundFile(path, "w", sample_rate, 2, _SUBTYPES[ending], format=form) as file:
            for start in range(0, len(samples), _PIECE):
                file.write(samples[start : start + _PIECE])
        write_lab(path.with_suffix(".lab"), plan)
        songs.append(SampleSong(path, plan, tempo, key))
    return songs


def write_lab(path: str | Path, plan: Sequence[PlannedSection]) -> None:
    """Write a plan as lines of start, end (seconds, to the microsecond) and label, parted by tabs."""
    lines = [f"{section.start_s:.6f}\t{section.end_s:.6f}\t{section.label}\n" for section in plan]
    Path(path).write_text("".join(lines), encoding="utf-8")


def read_lab(path: str | Path) -> tuple[PlannedSection, ...]:
    """Plan that `write_lab` wrote."""
    rows = [line.split("\t") for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return tuple(PlannedSection(float(start_s), float(end_s), label) for start_s, end_s, label in rows)


def _pitch_hz(degree: NDArray[np.int64], tonic: int, octave: int) -> NDArray[np.float64]:
    """Frequencies of degrees of the major scale, any integer; octave 4 holds A at 440 Hz."""
    semitones = 12 * (octave + 1) + tonic + 12 * (degree // 7) + _MAJOR[degree % 7]
    return np.asarray(440.0 * 2.0 ** ((semitones - 69) / 12))


def _notes(
    pitches_hz: NDArray[np.float64],
    length_s: float,
    decay_s: float,
    partials: NDArray[np.float64],
    sample_rate: int,
) -> NDArray[np.float32]:
    """Plucked notes, shape (note, sample): partials up to 0.45 of the sample rate under one envelope."""
    time_s = np.arange(round(length_s * sample_rate), dtype=np.float32) / np.float32(sample_rate)
    envelope = (
        np.exp(-time_s / decay_s) * np.minimum(1, time_s / 0.005) * np.minimum(1, (length_s - time_s) / 0.01)
    )
    notes = np.zeros((len(pitches_hz), len(time_s)), np.float32)
    for number, level in enumerate(partials, start=1):
        audible = number * pitches_hz < 0.45 * sample_rate
        phase = (2 * np.pi * number * pitches_hz).astype(np.float32)[:, None] * time_s
        notes += np.where(audible, level, 0.0).astype(np.float32)[:, None] * np.sin(phase)
    notes *= envelope.astype(np.float32)
    return notes


def _add(samples: NDArray[np.float32], sound: NDArray[np.float32], at: int, pan: float, level: float) -> None:
    """Add a mono sound from sample `at` on; `pan` runs from 0 (left) to 1 (right)."""
    piece = sound[: max(0, len(samples) - at)]
    samples[at : at + len(piece), 0] += piece * np.float32(level * (1 - pan))
    samples[at : at + len(piece), 1] += piece * np.float32(level * pan)


def _add_chords(
    samples: NDArray[np.float32],
    chords: NDArray[np.int64],
    n_beats: int,
    tonic: int,
    partials: NDArray[np.float64],
    swing_hz: float,
    beat_s: float,
    sample_rate: int,
) -> None:
    """Add a sustained triad and its bass a bar, with a tremolo."""
    bar_s = BEATS_PER_BAR * beat_s
    sounds = {}
    for degree in np.unique(chords).tolist():
        triad = _notes(
            _pitch_hz(degree + np.array([0, 2, 4]), tonic, 3), bar_s, 2 * bar_s, partials, sample_rate
        )
        bass = _notes(
            _pitch_hz(np.array([degree]), tonic, 2), bar_s, bar_s, np.array([0.8, 0.2]), sample_rate
        )
        time_s = np.arange(triad.shape[1]) / sample_rate
        tremolo = (1 + 0.2 * np.sin(2 * np.pi * swing_hz * time_s)).astype(np.float32)
        sounds[degree] = triad.sum(axis=0) * tremolo, bass[0]
    for bar in range(-(-n_beats // BEATS_PER_BAR)):
        triad_sound, bass_sound = sounds[int(chords[bar % len(chords)])]
        at = round(bar * bar_s * sample_rate)
        _add(samples, triad_sound, at, 0.35, 0.25)
        _add(samples, bass_sound, at, 0.5, 0.4)


def _add_melody(
    samples: NDArray[np.float32],
    chords: NDArray[np.int64],
    n_beats: int,
    tonic: int,
    rng: np.random.Generator,
    beat_s: float,
    sample_rate: int,
) -> None:
    """Add a tune of quavers, four bars long and repeated: chord notes on the beats, a walk between them."""
    steps = np.arange(2 * BEATS_PER_BAR * len(chords))
    chord_notes = np.repeat(chords, 2 * BEATS_PER_BAR) + 2 * rng.integers(0, 3, len(steps))
    tune = np.where(steps % 2 == 0, chord_notes, chord_notes + rng.integers(-1, 2, len(steps)))
    rests = rng.random(len(steps)) < 0.25
    degrees, which = np.unique(tune, return_inverse=True)
    partials = rng.dirichlet(np.ones(4))
    sounds = _notes(_pitch_hz(degrees, tonic, 5), 0.9 * beat_s, 0.5 * beat_s, partials, sample_rate)
    for step in range(2 * n_beats):
        if not rests[step % len(steps)]:
            sound = sounds[which[step % len(steps)]]
            _add(samples, sound, round(step * beat_s / 2 * sample_rate), 0.7, 0.25)


def _add_drums(
    samples: NDArray[np.float32],
    n_beats: int,
    rng: np.random.Generator,
    beat_s: float,
    sample_rate: int,
    *,
    full: bool,
) -> None:
    """Add a bass drum on every beat; with `full`, a snare on every second and hats on every quaver too."""
    time_s = np.arange(round(0.2 * sample_rate)) / sample_rate
    kick = np.sin(2 * np.pi * (50 * time_s + 6 * (1 - np.exp(-time_s / 0.03)))) * np.exp(-time_s / 0.07)
    noise = rng.uniform(-1, 1, len(time_s))
    snare = noise * np.exp(-time_s / 0.05)
    hat = np.diff(noise, prepend=0.0) * np.exp(-time_s / 0.015)
    kick_sound, snare_sound, hat_sound = (sound.astype(np.float32) for sound in (kick, snare, hat))
    for beat in range(n_beats):
        at = round(beat * beat_s * sample_rate)
        _add(samples, kick_sound, at, 0.5, 0.9)
        if full:
            if beat % 2:
                _add(samples, snare_sound, at, 0.55, 0.5)
            _add(samples, hat_sound, at, 0.4, 0.15)
            _add(samples, hat_sound, round((beat + 0.5) * beat_s * sample_rate), 0.4, 0.15)
