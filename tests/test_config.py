"""Settings: overrides, round trips, and errors that name the key."""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from dorl_jax import config
from dorl_jax.errors import InputError, name_some


@dataclass(frozen=True)
class Part:
    steps: int = config.setting(3, "steps")
    rate: float = config.setting(0.1, "rate")
    names: tuple[str, ...] = config.setting((), "names")
    note: str | None = config.setting(None, "note")


@dataclass(frozen=True)
class Chosen:
    source: Literal["folder", "built"] = config.setting("folder", "source")
    part: Part = field(default_factory=Part)


@dataclass(frozen=True)
class Bounded(config.Settings):
    steps: int = config.setting(3, "steps", least=1)
    share: float = config.setting(0.5, "share", least=0, most=1)
    sizes: tuple[int, ...] = config.setting((2, 3), "sizes", least=2)
    free: float = config.setting(0.0, "free")


@dataclass(frozen=True)
class Outer(config.Settings):
    inner: Bounded = field(default_factory=Bounded)


@dataclass(frozen=True)
class Whole:
    part: Part = field(default_factory=Part)
    other: Part = field(default_factory=Part)


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('[part]\nsteps = 7\nnames = ["x"]\n')
    overrides = {"part.rate": "1e-4", "other.steps": "9", "other.names": '["y", "z"]', "other.note": "plain words"}
    settings = config.load(Whole, path, overrides)
    assert settings == Whole(Part(7, 1e-4, ("x",)), Part(9, 0.1, ("y", "z"), "plain words"))


def test_a_section_is_read_without_regard_to_the_others(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[part]\nsteps = 7\n[of_a_later_version]\nkey = 1\n")
    assert config.load_section(Part, path, "part") == Part(7)
    assert config.load_section(Part, path, "other") == Part()
    path.write_text("other = 3\n[part]\nstep = 7\n")
    with pytest.raises(InputError, match=r"a.toml, section \[part\].*'step' \(did you mean 'steps'\?\)"):
        config.load_section(Part, path, "part")
    with pytest.raises(InputError, match="a.toml: 'other' is not a section"):
        config.load_section(Part, path, "other")
    with pytest.raises(InputError, match="no settings file at .*b.toml"):
        config.load_section(Part, tmp_path / "b.toml", "part")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "configs").iterdir()), ids=lambda path: path.stem)
def test_settings_files_of_the_repository(path):
    from dorl_jax.stages.run import RunSettings

    assert config.load(RunSettings, path) != RunSettings()


def test_every_default_of_a_file_with_some_settings_is_spelled_out(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text("[part]\nsteps = 7\n")
    expected = {"part": {"steps": 7, "rate": 0.1, "names": []}, "other": {"steps": 3, "rate": 0.1, "names": []}}
    assert config.as_tree(config.load(Whole, path)) == expected


def test_round_trip(tmp_path):
    settings = Whole(Part(1, 2.5e-7, ("a", "b"), "c"), Part(note='quotes " and \\'))
    config.save(settings, tmp_path / "deep" / "a.toml")
    assert config.load(Whole, tmp_path / "deep" / "a.toml") == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[part]\nstep = 1\n", r"unknown key 'part.step' \(did you mean 'steps'\?\)"),
        ("[prat]\n", r"unknown key 'prat' \(did you mean 'part'\?\)"),
        ('[part]\nsteps = "many"\n', r"Expected `int`.*part.steps"),
        ("part = 3\n", r"Expected `object`.*part"),
        ("[part\n", "not valid TOML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        config.load(Whole, path)
    assert "a.toml" in str(error.value)


def test_a_file_of_another_editor(tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbf" + "# Größe\r\n[part]\r\nsteps = 7\r\n".encode())
    assert config.load(Whole, path).part.steps == 7


def test_bad_overrides(tmp_path):
    with pytest.raises(InputError, match="no settings file at"):
        config.load(Whole, tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"no section 'prat' \(did you mean 'part'\?\)"):
        config.build(Whole, {}, {"prat.steps": "1"})
    with pytest.raises(InputError, match=r"override: unknown key 'part.stepz' \(did you mean 'steps'\?\)"):
        config.build(Whole, {}, {"part.stepz": "1"}, origin="some file")
    with pytest.raises(InputError, match=r"unknown key 'steps' \(in the section part or other\?\)"):
        config.build(Whole, {}, {"steps": "1"})
    with pytest.raises(InputError, match=r'part.names.*; it is a list also of one: names = \["..."\], quoted'):
        config.build(Whole, {}, {"part.names": "x"})
    with pytest.raises(InputError, match=r"'foldr'.*; it may be 'folder', 'built'"):
        config.build(Chosen, {}, {"source": "foldr"})


@pytest.mark.parametrize(
    ("key", "text", "value", "message"),
    [
        ("steps", "0", 0, r"steps = 0: at least 1 is needed"),
        ("share", "1.5", 1.5, r"share = 1.5: at least 0 and at most 1 is needed"),
        ("share", "-0.1", -0.1, r"share = -0.1: at least 0 and at most 1 is needed"),
        ("share", "nan", math.nan, r"share = nan: at least 0"),
        ("sizes", "[4, 1]", (4, 1), r"sizes = \[4, 1\]: at least 2 is needed"),
    ],
)
def test_numbers_outside_of_their_bounds(tmp_path, key, text, value, message):
    path = tmp_path / "a.toml"
    path.write_text(f"[inner]\n{key} = {text}\n")
    with pytest.raises(InputError, match=rf"a.toml: {message}.*inner"):
        config.load(Outer, path)
    path.write_text("")
    with pytest.raises(InputError, match=rf"^override: {message}.*inner"):
        config.load(Outer, path, {f"inner.{key}": text})
    with pytest.raises(InputError, match=message):
        Bounded(**{key: value})


def test_the_ends_of_bounds_are_inside():
    assert Bounded(1, 0.0, (2,), -1e9) == config.build(Bounded, {"steps": 1, "share": 0, "sizes": [2], "free": -1e9})
    assert Bounded(share=1.0, sizes=()).sizes == ()


@pytest.mark.parametrize(
    "given",
    [
        "embed.batch_size=0", "extract.batch_size=0", "extract.shard_size=0", "extract.workers=-2", "train_cae.steps=0",
        "train_cae.log_every=0", "train_cae.mask_ratio=1.5", "train_cae.seed=-1", "finetune_sam.held_out=1.5",
        "finetune_sam.validation=-0.1", "finetune_sam.class_weights=[1.0, -1.0]", "finetune_sam.rank=0",
        "data.synthetic_cells=0", "baselines.bc_sam.steps=0", "baselines.ae_cfe.batch_size=0",
        "baselines.resnet.size=0", "baselines.resnet.size=-16", "baselines.resnet.folds=1", "evaluate.folds=1",
        "evaluate.rounds=0",
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(given):
    from dorl_jax.stages.run import RunSettings

    key, value = given.split("=")
    section, name = key.rsplit(".", 1)
    with pytest.raises(InputError, match=rf"{name} = {re.escape(value)}: at least .* is needed - at `\$.{section}`"):
        config.build(RunSettings, {}, {key: value})


def test_every_number_of_a_run_has_bounds():
    """But for those that may be anything."""
    from dorl_jax.stages.run import RunSettings

    def numbers(settings, before=""):
        for one in dataclasses.fields(settings):
            value = getattr(settings, one.name)
            if dataclasses.is_dataclass(value):
                yield from numbers(value, f"{before}{one.name}.")
            elif not isinstance(value, bool) and isinstance(value, int | float) and one.metadata["least"] is None:
                yield before + one.name

    # A choice of two.
    assert list(numbers(RunSettings())) == ["baselines.bc_sam.image_size", "baselines.ae_cfe.image_size"]


def test_paths(monkeypatch):
    monkeypatch.setenv("CELLS", "/data/cells")
    assert config.expand_path("${CELLS}/a", "data.root") == Path("/data/cells/a")
    monkeypatch.delenv("CELLS")
    with pytest.raises(InputError, match="data.root = .* needs the environment variable CELLS"):
        config.expand_path("${CELLS}/a", "data.root")


def test_long_lists_are_cut():
    assert name_some(range(7), 3) == "0, 1, 2 and 4 more"
    assert name_some(["a", "b"]) == "a, b"
