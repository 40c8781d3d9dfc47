"""A recipe is read, resolved and written back; whatever is wrong in it is said in one line, before any work."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.data.settings import GeneratedSource, HubSource, TextSource
from shard.errors import UsageError
from shard.recipe import Recipe, packaged_recipes
from shard.training.cost import count_parameters

SMALL = """\
name = "small"

[model]
vocab_size = 300
hidden_size = 32
num_layers = 2
num_heads = 2
head_dim = 16
intermediate_size = 64
max_sequence_length = 128
sliding_window = 8

[tokenizer]
sample_bytes = "512KiB"

[sources.notes]
kind = "text"
path = "notes"

[sources.problems]
kind = "generated"
max_bytes = "2MB"

[pretrain]
steps = 40
sequence_length = 32
tokens_per_step = 128
warmup_steps = 4
decay_steps = 8
lr_muon = 0.01

[pretrain.mix]
notes = 0.75
problems = 0.25

[anneal]
steps = 10
lr_norm = 0.002
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def load_error(name: str | Path, *overrides: str, data: Path | None = None) -> str:
    """The one line that a recipe is refused with."""
    with pytest.raises(UsageError) as raised:
        Recipe.load(str(name), list(overrides), data)
    message = str(raised.value)
    assert len(message.splitlines()) == 1
    assert "For further information" not in message, "pydantic's own wording is not for users"
    return message


# Reading and writing back.


@pytest.mark.parametrize("name", packaged_recipes())
def test_a_packaged_recipe_resolves_and_comes_back_from_its_own_toml(name: str, tmp_path: Path) -> None:
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert recipe.description
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    again = Recipe.load(str(path))
    assert again == recipe
    assert again.to_toml() == recipe.to_toml()


def test_strings_of_every_kind_come_back(small: Path, tmp_path: Path) -> None:
    text = "quote \" backslash \\ tab \t line\n null \0 delete \x7f é → 𝄞 # [x] = 'y' \u2028"
    recipe = Recipe.load(str(small)).model_copy(update={"description": text})
    path = tmp_path / "again.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.load(str(path)).description == text


def test_the_resolved_recipe_is_complete(small: Path) -> None:
    """Defaults of a later version must not change an old run: they are written down."""
    toml = Recipe.load(str(small)).to_toml()
    for line in ("seed = 0", "muon_momentum = 0.95", 'precision = "auto"', "heldout_bytes = 500000", "z_loss = 0.0001"):
        assert line in toml
    assert "sample_bytes = 524288" in toml


def test_shard_40m_v1_is_the_reference_of_the_design() -> None:
    recipe = Recipe.load("shard-40m-v1")
    assert recipe.config.to_dict() == {
        "vocab_size": 8192,
        "hidden_size": 512,
        "num_layers": 12,
        "num_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2048,
        "max_sequence_length": 8192,
        "sliding_window": 1024,
        "layer_pattern": "LG",
        "rope_theta": 10_000.0,
        "norm_eps": 1e-6,
        "logit_cap": 30.0,
        "moe": None,
        "engram": None,
    }
    assert recipe.config.layer_types == "LGLGLGLGLGLG"
    assert count_parameters(recipe.config).total == 54_538_752
    pretrain, anneal = recipe.pretrain, recipe.anneal
    assert (pretrain.steps, pretrain.decay_steps, pretrain.z_loss) == (100_000, 0, 1e-4)
    assert pretrain.warmup_steps > 0
    assert (anneal.steps, anneal.decay_steps, anneal.z_loss) == (20_000, 20_000, 1e-4)
    assert anneal.sequence_length == recipe.config.max_sequence_length
    assert set(pretrain.mix) == {"fineweb-edu"}
    assert set(anneal.mix) == set(recipe.sources)
    assert set(recipe.sources) == {
        "open-web-math",
        "fineweb-edu",
        "numina-math",
        "meta-math",
        "arxiv",
        "cosmopedia",
        "ai2-arc",
    }
    assert sum(anneal.mix.values()) == pytest.approx(1)
    for stage in (pretrain, anneal):
        assert stage.muon_method in ("polar_express", "quintic")
        assert stage.sentinel_every <= 1000, "the sentinel is part of the reference"


def test_the_optional_code_of_shard_40m_v1_is_there_for_the_taking_of_a_hash(tmp_path: Path) -> None:
    text = (files("shard") / "recipes" / "shard-40m-v1.toml").read_text()
    marked = [line for line in text.splitlines() if re.match(r"#[\[a-z]", line)]
    assert len(marked) > 3
    for line in marked:
        text = text.replace(f"{line}\n", f"{line[1:]}\n")
    path = tmp_path / "shard-40m-v1.toml"
    path.write_text(text)
    recipe, plain = Recipe.load(str(path)), Recipe.load("shard-40m-v1")
    code = recipe.sources["code"]
    assert code.kind == "hub" and code.license and code.max_bytes and code.max_epochs
    assert set(recipe.sources) == {*plain.sources, "code"} == set(recipe.anneal.mix)


# What [anneal] takes over from [pretrain].


def test_anneal_inherits_all_but_the_keys_with_a_reason_of_their_own(small: Path) -> None:
    recipe = Recipe.load(str(small))
    pretrain, anneal = recipe.pretrain, recipe.anneal
    assert (anneal.lr_muon, anneal.sequence_length, anneal.tokens_per_step) == (0.01, 32, 128)
    assert (pretrain.lr_norm, anneal.lr_norm) == (0.03, 0.002)
    assert (anneal.steps, anneal.warmup_steps) == (10, 0)
    assert anneal.decay_steps == 10, "the anneal decays to zero over all its steps"
    assert anneal.mix == pretrain.mix


def test_an_override_of_pretrain_reaches_anneal_and_one_of_anneal_stays_there(small: Path) -> None:
    recipe = Recipe.load(str(small), ["pretrain.weight_decay=0.5", "anneal.lr_muon=0.003", "anneal.warmup_steps=3"])
    assert (recipe.pretrain.weight_decay, recipe.anneal.weight_decay) == (0.5, 0.5)
    assert (recipe.pretrain.lr_muon, recipe.anneal.lr_muon) == (0.01, 0.003)
    assert recipe.anneal.decay_steps == 7, "what the warm-up leaves"


def test_anneal_takes_its_own_mix_whole(small: Path) -> None:
    recipe = Recipe.load(str(small), ["anneal.mix.problems=1"])
    assert recipe.anneal.mix == {"problems": 1.0}


# --set.


@pytest.mark.parametrize(
    ("override", "table", "key", "value"),
    [
        ("seed=7", "", "seed", 7),
        ("description=a text", "", "description", "a text"),
        ('description="quoted"', "", "description", "quoted"),
        ("description=", "", "description", ""),
        ("description=a=b", "", "description", "a=b"),
        ("pretrain.lr_muon=1e-3", "pretrain", "lr_muon", 1e-3),
        (" pretrain.steps = 1_000 ", "pretrain", "steps", 1000),
        ("pretrain.muon_nesterov=false", "pretrain", "muon_nesterov", False),
        ("pretrain.compile=off", "pretrain", "compile", "off"),
        ('pretrain.sample_prompts=["a", "b"]', "pretrain", "sample_prompts", ("a", "b")),
        ("pretrain.sample_prompts=[]", "pretrain", "sample_prompts", ()),
        ("pretrain.evaluate_bytes=3MB", "pretrain", "evaluate_bytes", 3_000_000),
        ("pretrain.mix={notes = 1, problems = 2}", "pretrain", "mix", {"notes": 1.0, "problems": 2.0}),
        ("pretrain.mix.notes=5", "pretrain", "mix", {"notes": 5.0, "problems": 0.25}),
        ("release.title=My Model", "release", "title", "My Model"),
        ("tokenizer.sample_bytes=1.5MiB", "tokenizer", "sample_bytes", 1_572_864),
    ],
)
def test_set_takes_a_toml_literal_else_a_string(small: Path, override: str, table: str, key: str, value: Any) -> None:
    recipe = Recipe.load(str(small), [override])
    found = getattr(getattr(recipe, table) if table else recipe, key)
    assert found == value
    assert type(found) is type(value)


def test_set_can_add_a_source_and_the_last_one_wins(small: Path) -> None:
    sets = ["sources.more.kind=generated", "sources.more.seed=3", "pretrain.mix.more=1", "seed=1", "seed=2"]
    recipe = Recipe.load(str(small), sets)
    assert recipe.sources["more"] == GeneratedSource(kind="generated", seed=3)
    assert recipe.seed == 2


@pytest.mark.parametrize("override", ["", "steps", "=5", ".steps=5", "pretrain.=5", "a..b=5"])
def test_set_without_a_key_or_a_value_is_refused_with_an_example(small: Path, override: str) -> None:
    message = load_error(small, override)
    assert message.startswith(f"--set {override}:")
    assert "pretrain.steps=200" in message


def test_set_into_a_value_is_refused(small: Path) -> None:
    assert "steps is not a table" in load_error(small, "pretrain.steps.x=5")


# Errors: the place, and the nearest name.


@pytest.mark.parametrize(
    ("override", "place", "hint"),
    [
        ("sed=1", "sed", "did you mean seed?"),
        ("pretrian.steps=1", "pretrian", "did you mean pretrain?"),
        ("pretrain.step=1", "pretrain.step", "did you mean steps?"),
        ("anneal.sequence_lenght=32", "anneal.sequence_lenght", "did you mean sequence_length?"),
        ("tokenizer.sample_byte=1", "tokenizer.sample_byte", "did you mean sample_bytes?"),
        ("data.heldout=1", "data.heldout", "did you mean heldout_"),
        ("data.near_duplicate_treshold=0.9", "data.near_duplicate_treshold", "did you mean near_duplicate_threshold?"),
        ("data.evaluation_set=[]", "data.evaluation_set", "did you mean evaluation_sets?"),
        ("sources.notes.max_document=1", "sources.notes.max_document", "did you mean max_documents?"),
        ("sources.notes.near_duplicate=keep", "sources.notes.near_duplicate", "did you mean near_duplicates?"),
        ("evaluate.contxt=1", "evaluate.contxt", "did you mean context?"),
        ("release.licence=mit", "release.licence", "did you mean license?"),
        ("model.hiden_size=64", "model.hiden_size", "did you mean hidden_size?"),
        ("sources.notes.pth=x", "sources.notes.pth", "did you mean path?"),
        ("sources.problems.sead=1", "sources.problems.sead", "did you mean seed?"),
        ("pretrain.mix.note=1", "pretrain.mix.note", "did you mean notes?"),
        ("anneal.mix.problem=1", "anneal.mix.problem", "did you mean problems?"),
        ("zzzzzz=1", "zzzzzz", "known: anneal, data, description"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_nearest_name(
    small: Path, override: str, place: str, hint: str
) -> None:
    message = load_error(small, override)
    assert re.search(rf"(^|[ :]){re.escape(place)}: ", message), message
    assert hint in message


@pytest.mark.parametrize(
    ("override", "place"),
    [
        ("pretrain.steps=-1", "pretrain.steps"),
        ("pretrain.steps=1.5", "pretrain.steps"),
        ("pretrain.steps=many", "pretrain.steps"),
        ("pretrain.steps=10000000000", "pretrain.steps"),
        ("pretrain.steps=[1]", "pretrain.steps"),
        ("pretrain.steps=true", "pretrain.steps"),
        ("pretrain.micro_batch=true", "pretrain.micro_batch"),
        ("pretrain.grad_clip=true", "pretrain.grad_clip"),
        ("pretrain.mix.notes=true", "pretrain.mix.notes"),
        ("sources.problems.seed=true", "sources.problems.seed"),
        ("data.heldout_bytes=true", "data.heldout_bytes"),
        ("seed=false", "seed"),
        ("pretrain.lr_muon=0", "pretrain.lr_muon"),
        ("pretrain.lr_muon=nan", "pretrain.lr_muon"),
        ("pretrain.lr_muon=inf", "pretrain.lr_muon"),
        ("pretrain.grad_clip=inf", "pretrain.grad_clip"),
        ("pretrain.z_loss=nan", "pretrain.z_loss"),
        ("pretrain.mix.notes=-1", "pretrain.mix.notes"),
        ("pretrain.mix.notes=nan", "pretrain.mix.notes"),
        ("pretrain.mix={}", "pretrain.mix"),
        ("pretrain.precision=fp8", "pretrain.precision"),
        ("pretrain.compile=true", "pretrain.compile"),
        ("pretrain.micro_batch=0", "pretrain.micro_batch"),
        ("pretrain=5", "pretrain"),
        ("anneal.warmup_steps=few", "anneal.warmup_steps"),
        ("anneal.warmup_steps=-2", "anneal.warmup_steps"),
        ("tokenizer.sample_bytes=2 megabytes", "tokenizer.sample_bytes"),
        ("data.heldout_share=0.9", "data.heldout_share"),
        ("data.near_duplicate_threshold=0.4", "data.near_duplicate_threshold"),
        ("data.near_duplicate_threshold=true", "data.near_duplicate_threshold"),
        ("data.on_broken_file=ignore", "data.on_broken_file"),
        ("data.keep_raw=perhaps", "data.keep_raw"),
        ("data.evaluation_sets=allenai/ai2_arc", "data.evaluation_sets"),
        ("sources.notes.max_documents=0", "sources.notes.max_documents"),
        ("sources.notes.max_tokens=true", "sources.notes.max_tokens"),
        ("sources.notes.max_tokens=2MB", "sources.notes.max_tokens"),
        ("sources.notes.near_duplicates=true", "sources.notes.near_duplicates"),
        ('sources.notes={kind = "hub", repository = "no-owner"}', "sources.notes.repository"),
        ('sources.notes={kind = "hub", repository = "a/b", rows = "table"}', "sources.notes.rows"),
        ('sources.notes={kind = "hub", repository = "a/b", path = "x"}', "sources.notes.path"),
        ("seed=-1", "seed"),
        ("seed=1979-05-27", "seed"),
        ("name=a/b", "name"),
        ("name=", "name"),
        ("sources={}", "sources"),
        ("sources.notes.kind=web", "sources.notes"),
        ("sources.notes.path=5", "sources.notes.path"),
        ("sources.problems.max_bytes=0", "sources.problems.max_bytes"),
        ("model.vocab_size=256", "model.vocab_size"),
        ("model.vocab_size=many", "model"),
        ("model.head_dim=15", "model"),
        ("model.num_layers=0", "model"),
        ("model.layer_pattern=LX", "model"),
        ("model.layer_pattern=[]", "model"),
        ('model.layer_pattern=["L", "G"]', "model"),
        ("model.rope_theta=fast", "model"),
        ("model.rope_theta=inf", "model"),
        ("model.logit_cap=nan", "model"),
        ("model.norm_eps=true", "model"),
        ("model.moe={}", "model"),
        ("evaluate.stride_share=0", "evaluate.stride_share"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(small: Path, override: str, place: str) -> None:
    assert re.search(rf"(^|[ :]){re.escape(place)}: ", load_error(small, override))


def test_true_and_false_are_values_where_they_are_meant(small: Path) -> None:
    recipe = Recipe.load(str(small), ["pretrain.muon_nesterov=false", "pretrain.cautious_decay=true"])
    assert (recipe.pretrain.muon_nesterov, recipe.pretrain.cautious_decay) == (False, True)


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["pretrain.sequence_length=256", "pretrain.tokens_per_step=512"], ["pretrain.sequence_length", "= 128"]),
        (["pretrain.tokens_per_step=100"], ["pretrain.tokens_per_step", "100", "not a multiple"]),
        (["anneal.sequence_length=96"], ["anneal.tokens_per_step", "not a multiple"]),
        (["pretrain.decay_steps=41"], ["pretrain.decay_steps", "more than steps = 40"]),
        (["pretrain.mix.notes=0", "pretrain.mix.problems=0"], ["pretrain.mix", "above zero"]),
        (["anneal.mix.web=1"], ["anneal.mix.web", "no such source"]),
        (["sources.a/b.kind=generated"], ["sources.a/b", "names a folder"]),
    ],
)
def test_what_concerns_several_tables_is_checked(small: Path, overrides: list[str], fragments: list[str]) -> None:
    message = load_error(small, *overrides)
    for fragment in fragments:
        assert fragment in message


def test_every_mistake_is_named_at_once(small: Path) -> None:
    message = load_error(small, "pretrain.step=1", "seed=-1", "anneal.lr_muon=0")
    for place in ("pretrain.step", "seed", "anneal.lr_muon"):
        assert f"{place}: " in message


@pytest.mark.parametrize("missing", ["name", "sources", "pretrain", "anneal"])
def test_a_missing_table_is_named(tmp_path: Path, missing: str) -> None:
    text = re.sub(rf'^{missing} = "small"\n', "", SMALL)
    text = re.sub(rf"^\[{missing}[.\w]*\]\n([^\[].*\n|\n)*", "", text, flags=re.MULTILINE)
    assert text != SMALL
    path = tmp_path / "small.toml"
    path.write_text(text)
    assert f"{missing}: is missing" in load_error(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"x = ", b"[a\n", b"\xff\xfe", b"\xef\xbb\xbfname = 'x'", b"a = " + b"9" * 5000, b"a = " + b"[" * 5000],
    ids=["empty", "no value", "open table", "not UTF-8", "byte order mark", "5000 digits", "5000 brackets"],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    assert str(path) in load_error(path)


def test_an_unknown_recipe_is_named_with_the_nearest_and_all_packaged_ones() -> None:
    message = load_error("quikstart")
    assert "did you mean quickstart?" in message
    assert all(name in message for name in packaged_recipes())


def test_a_line_break_in_a_key_or_a_value_does_not_break_the_line(tmp_path: Path, small: Path) -> None:
    load_error(small, "a\nb=1")
    load_error(small, "pretrain.precision=a\nb")
    path = tmp_path / "broken.toml"
    path.write_text('"a\\nb" = 1\n' + SMALL)
    load_error(path)


# Paths and --data.


def test_a_relative_path_is_relative_to_the_recipe_file(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (small.parent / "elsewhere").mkdir()
    monkeypatch.chdir(small.parent / "elsewhere")
    source = Recipe.load("../small.toml").sources["notes"]
    assert isinstance(source, TextSource)
    assert Path(source.path).resolve() == small.parent / "notes"
    assert Path(source.path).is_absolute()


@pytest.mark.parametrize(
    ("override", "fragment"),
    [
        ("clean=on", "'off'"),
        ("clean.min_characters=0", "min_characters: "),
        ("clean.min_charactrs=1", "min_charactrs: unknown key"),
        ("clean.max_symbol_share=2", "max_symbol_share: "),
        ("clean.max_symbol_share=true", "max_symbol_share: "),
        ("clean.language=fr", "language: "),
    ],
)
def test_a_wrong_value_of_cleaning_is_named(small: Path, override: str, fragment: str) -> None:
    message = load_error(small, f"sources.notes.{override}")
    assert "sources.notes.clean" in message and fragment in message


def test_an_absolute_path_and_a_home_path_stay_what_they_are(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    for given_path, expected in (("/corpora/notes", "/corpora/notes"), ("~/notes", "/home/somebody/notes")):
        source = Recipe.load(str(small), [f"sources.notes.path={given_path}"]).sources["notes"]
        assert isinstance(source, TextSource)
        assert source.path == expected


def test_data_replaces_every_source_and_both_mixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus").mkdir()
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load("shard-40m-v1", data=Path("corpus"))
    assert recipe.sources == {"text": TextSource(kind="text", path=str(tmp_path / "corpus"))}
    assert recipe.pretrain.mix == recipe.anneal.mix == {"text": 1.0}
    assert isinstance(Recipe.load("shard-40m-v1").sources["arxiv"], HubSource)


def test_data_that_is_not_there_is_refused_before_any_work(tmp_path: Path) -> None:
    assert str(tmp_path / "typo") in load_error("quickstart", data=tmp_path / "typo")


# Whatever is written into a recipe: a Recipe, or one line.

ODD_VALUES = r"""
0 1 -1 1.5 -0.0 1e400 nan inf -inf 99999999999999999999 0xff 1_000 true false [] {} [[]] [1,'a'] {a=1} [{a=1}]
'' 'text' 'nul\0' "\u0000" 'é' 1979-05-27 1979-05-27T07:32:00Z 07:32:00 {kind='text',path='x'} 2MB 2h LG auto text hub
"""
VALUES = st.one_of(
    st.sampled_from([*ODD_VALUES.split(), "", "a\nb", "'\u2028'"]),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(repr),
)
TABLES = ["model", "tokenizer", "data", "sources", "sources.notes", "sources.problems", "evaluate", "release"]
TABLES += [
    "sources.notes.clean",
    "sources.web",
    "sources.web.clean",
    "pretrain",
    "pretrain.mix",
    "anneal",
    "anneal.mix",
]
KEYS = re.findall(r"^(\w+) =", Recipe.load("quickstart").to_toml(), flags=re.MULTILINE) + list(
    Recipe.load("quickstart").config.to_dict()
)
PATHS = st.one_of(
    st.sampled_from(TABLES + KEYS),
    st.tuples(st.sampled_from(TABLES), st.sampled_from(KEYS) | st.text(max_size=6)).map(".".join),
    st.text(max_size=10),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


def check_recipe_or_one_line(folder: Path, text: str, overrides: list[str]) -> None:
    """Load; a recipe that is accepted must also come back from its own TOML, else its run folder is broken."""
    path = folder / "mutated.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        recipe = Recipe.load(str(path), overrides)
    except UsageError as error:
        assert len(str(error).splitlines()) == 1
        return
    again = folder / "again.toml"
    again.write_text(recipe.to_toml(), encoding="utf-8", newline="\n")
    assert Recipe.load(str(again)) == recipe
    assert recipe.config.layer_types.endswith("G")


@settings(max_examples=200, deadline=None)
@given(overrides=st.lists(st.tuples(PATHS, VALUES).map("=".join), min_size=1, max_size=4))
def test_any_set_gives_a_recipe_or_one_line(scratch: Path, overrides: list[str]) -> None:
    check_recipe_or_one_line(scratch, SMALL, overrides)


@st.composite
def mutated_toml(draw: st.DrawFn) -> str:
    """SMALL with some lines taken away, repeated, moved, given another value, or overwritten with noise."""
    lines = SMALL.splitlines()
    for _ in range(draw(st.integers(1, 4))):
        i = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["delete", "repeat", "move", "value", "insert", "noise"])):
            case "delete" if len(lines) > 1:
                del lines[i]
            case "repeat":
                lines.insert(i, lines[i])
            case "move":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(i))
            case "value":
                lines[i] = f"{lines[i].partition('=')[0]}= {draw(VALUES)}"
            case "insert":
                lines.insert(i, f"{draw(st.sampled_from(KEYS))} = {draw(VALUES)}")
            case _:
                at = draw(st.integers(0, len(lines[i])))
                lines[i] = lines[i][:at] + draw(st.text(max_size=4)) + lines[i][at:]
    return "\n".join(lines)


@settings(max_examples=200, deadline=None)
@given(text=mutated_toml())
def test_any_toml_gives_a_recipe_or_one_line(scratch: Path, text: str) -> None:
    check_recipe_or_one_line(scratch, text, [])
