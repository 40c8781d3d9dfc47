"""The command line: verbs that parse arguments, call one function each, and print. No logic lives here."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from shard import __version__
from shard.console import Reporter
from shard.environment import num_ranks, set_process_defaults
from shard.errors import ShardError, UsageError
from shard.signals import InterruptedRunError, stop_on_sigterm
from shard.units import deadline_after, format_size

set_process_defaults()

app = typer.Typer(
    name="shard",
    help="Train small language models from scratch, end to end: from the tokenizer to the release.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeArgument = Annotated[
    str, typer.Argument(help="A packaged recipe (quickstart, shard-40m-v1), a .toml file, or a run folder.")
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/<recipe name>.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a recipe key: --set pretrain.steps=200.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Train on this file or folder of .txt, .md, .jsonl, .parquet.")
]
MaxTimeOption = Annotated[
    str | None, typer.Option("--max-time", help="Pause and save before so much time has passed: 45m, 2h55m.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
ForkOption = Annotated[
    Path | None, typer.Option("--fork", help="Branch from the run into this new folder, with what --set changes.")
]
MirrorOption = Annotated[
    Path | None, typer.Option("--mirror", help="Read datasets from this folder in the hub's layout, not from the hub.")
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Processes that read and tokenise; default one a processor.")
]
TrackOption = Annotated[
    list[str] | None, typer.Option("--track", help="Copy the metrics to tensorboard or wandb (offline) too.")
]
RayOption = Annotated[str | None, typer.Option("--ray", help='Do that on a Ray cluster at this address; "local".')]


def _open_run(
    target: str,
    out: Path | None,
    sets: list[str] | None,
    data: Path | None,
    fork: Path | None = None,
    mirror: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
) -> Any:
    """The run that a verb works on: see fork.py."""
    from shard.fork import open_run

    run = open_run(target, out, sets, data, fork, Reporter())
    run.read_with(mirror, workers, ray)
    return run


def _print(result: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result, indent=2))


@app.command()
def run(
    recipe: RecipeArgument,
    out: OutOption = None,
    set_: SetOption = None,
    data: DataOption = None,
    fork: ForkOption = None,
    mirror: MirrorOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    max_time: MaxTimeOption = None,
    track: TrackOption = None,
    json_: JsonOption = False,
) -> None:
    """Do all stages; run it again and it continues where it stopped."""
    from shard.stages import run_all
    from shard.training.sinks import sink_names

    deadline, tracked = deadline_after(max_time), sink_names(track)
    with _open_run(recipe, out, set_, data, fork, mirror, workers, ray) as opened:
        opened.track = tracked
        _print(run_all(opened, Reporter(), deadline), json_)


def _stage_verb(name: str, help_text: str) -> None:
    """A verb that runs one stage and has no options of its own."""

    def verb(
        recipe: RecipeArgument,
        out: OutOption = None,
        set_: SetOption = None,
        data: DataOption = None,
        json_: JsonOption = False,
    ) -> None:
        from shard.stages import FUNCTIONS

        with _open_run(recipe, out, set_, data) as opened:
            _print(FUNCTIONS[name](opened, Reporter()), json_)

    app.command(name, help=help_text)(verb)


@app.command()
def tokenizer(
    recipe: RecipeArgument,
    out: OutOption = None,
    set_: SetOption = None,
    data: DataOption = None,
    mirror: MirrorOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    json_: JsonOption = False,
) -> None:
    """Collect the documents, hold some out, train the tokenizer."""
    from shard.stages import tokenizer as stage

    with _open_run(recipe, out, set_, data, None, mirror, workers, ray) as opened:
        _print(stage(opened, Reporter()), json_)


@app.command("data")
def data_(
    recipe: RecipeArgument,
    out: OutOption = None,
    set_: SetOption = None,
    data: DataOption = None,
    mirror: MirrorOption = None,
    workers: WorkersOption = None,
    ray: RayOption = None,
    stats: Annotated[bool, typer.Option("--stats", help="Write a page about each source: data/stats.html.")] = False,
    json_: JsonOption = False,
) -> None:
    """Tokenise the documents into shards."""
    from shard.stages import data as stage
    from shard.stages import describe_data

    with _open_run(recipe, out, set_, data, None, mirror, workers, ray) as opened:
        result = stage(opened, Reporter())
        _print(describe_data(opened, Reporter()) if stats else result, json_)


@app.command()
def pretrain(
    recipe: RecipeArgument,
    out: OutOption = None,
    set_: SetOption = None,
    data: DataOption = None,
    fork: ForkOption = None,
    until: Annotated[int | None, typer.Option(help="Stop after this step; anneal from there, or go on later.")] = None,
    max_time: MaxTimeOption = None,
    track: TrackOption = None,
    json_: JsonOption = False,
) -> None:
    """Train from nothing; continues where it stopped."""
    from shard.stages import pretrain as stage
    from shard.training.sinks import sink_names

    deadline, tracked = deadline_after(max_time), sink_names(track)
    with _open_run(recipe, out, set_, data, fork) as opened:
        opened.track = tracked
        _print(stage(opened, Reporter(), until, deadline), json_)


@app.command()
def anneal(
    recipe: RecipeArgument,
    out: OutOption = None,
    set_: SetOption = None,
    data: DataOption = None,
    fork: ForkOption = None,
    from_step: Annotated[
        int | None, typer.Option(help="Branch from this pretrain checkpoint; default the last stable one.")
    ] = None,
    max_time: MaxTimeOption = None,
    track: TrackOption = None,
    json_: JsonOption = False,
) -> None:
    """Branch from pretraining and decay to zero on the anneal mix."""
    from shard.stages import anneal as stage
    from shard.training.sinks import sink_names

    deadline, tracked = deadline_after(max_time), sink_names(track)
    with _open_run(recipe, out, set_, data, fork) as opened:
        opened.track = tracked
        _print(stage(opened, Reporter(), from_step, deadline), json_)


@app.command()
def evaluate(
    recipe: RecipeArgument,
    out: OutOption = None,
    set_: SetOption = None,
    data: DataOption = None,
    mirror: MirrorOption = None,
    tasks: Annotated[
        str | None,
        typer.Option(help="Instead: tasks of lm-evaluation-harness (or its YAML files), arc_easy,hellaswag."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each of these tasks, at most.")] = None,
    json_: JsonOption = False,
) -> None:
    """Score the held-out text of every source, and measure the tasks of the mini-suite."""
    from shard.stages import evaluate as stage
    from shard.stages import evaluate_with_harness

    if tasks is not None:
        return _print(evaluate_with_harness(Path(recipe), tasks, limit, Reporter()), json_)
    with _open_run(recipe, out, set_, data, None, mirror) as opened:
        return _print(stage(opened, Reporter()), json_)


_stage_verb("bench", "Time inference on this device.")
_stage_verb("teach", "Keep what the teacher says of every token, before pretraining.")


@app.command()
def release(
    recipe: RecipeArgument,
    out: OutOption = None,
    set_: SetOption = None,
    data: DataOption = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="ORG/NAME", help="Upload it to this repository of the hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A repository that --push makes is private.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what --push would send; nothing leaves this machine.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Write the release bundle with its card; upload it with --push."""
    from shard.stages import release as stage

    if push is None and (private or dry_run):
        raise UsageError("--private and --dry-run belong to --push ORG/NAME")
    if push is not None:
        from shard.release.push import check_repository
        from shard.release.push import push as upload

        check_repository(push)
    with _open_run(recipe, out, set_, data) as opened:
        result = stage(opened, Reporter())
        if push is not None:
            result = {**result, "push": upload(opened, push, private, dry_run, Reporter())}
        _print(result, json_)


@app.command()
def generate(
    model: Annotated[Path, typer.Argument(help="A run folder, a checkpoint, or a release bundle.")],
    prompt: Annotated[str, typer.Argument(help="The text to continue.")] = "",
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Ask for prompts until Ctrl-D.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1)] = 100,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token (the default).")] = False,
    temperature: Annotated[float, typer.Option(min=0.0, max=100.0, help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0.0, max=1.0)] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text; may be repeated.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help='Continue each line of a file, or each "prompt" of a .jsonl.')
    ] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16, or int8 on a CPU.")] = "fp32",
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the decode step: pays from some thousand tokens on.")
    ] = False,
    no_cache: Annotated[
        bool,
        typer.Option("--no-cache", help="The plain published loop: no KV cache, no stop at the end of a document."),
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Continue a text; prints it, prompt included, as it comes."""
    from shard.inference.session import Sampling, Session, read_prompts

    if greedy and temperature:
        raise UsageError("--greedy and --temperature exclude each other")
    if prompts and (prompt or interactive):
        raise UsageError("--prompts, a prompt and -i exclude each other")
    texts = read_prompts(prompts) if prompts else []
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stops=stop or ())
    session = Session.open(model, dtype, sampling, not no_cache, compile_)
    if interactive:
        session.chat()
    elif json_:
        _print(list(session.complete(texts)) if prompts else next(session.complete([prompt])), True)
    elif prompts:
        for result in session.complete(texts):
            print(json.dumps(result, ensure_ascii=False), flush=True)
    else:
        for piece in session.stream(prompt):
            print(piece, end="", flush=True)
        print()


@app.command("import")
def import_(
    bundle: Annotated[Path, typer.Argument(help="The folder of a release bundle, or of a Hugging Face export.")],
    recipe: Annotated[str | None, typer.Option(help="Recipe for what follows; default the bundle's own.")] = None,
    out: OutOption = None,
    set_: SetOption = None,
    data: DataOption = None,
    json_: JsonOption = False,
) -> None:
    """Make a run folder from a bundle, to anneal from its pretraining, or from a Hugging Face export."""
    from shard.recipe import Recipe
    from shard.release.hugging_face_import import import_hugging_face, is_hugging_face, recipe_for
    from shard.release.importer import check_sums, import_bundle

    if is_hugging_face(bundle):
        loaded = recipe_for(bundle, recipe, set_, data)
        folder = out or Path("runs") / f"{loaded.name}-imported"
        result = import_hugging_face(bundle, folder, loaded)
        Reporter().line(
            f"{folder}: the weights are there, the optimizer state and the count of steps begin afresh; go on with "
            f"`shard evaluate {folder}` or `shard anneal {folder}`"
        )
        return _print(result, json_)
    check_sums(bundle)
    loaded = Recipe.load(recipe or str(bundle / "recipe.toml"), set_, data)
    folder = out or Path("runs") / f"{loaded.name}-imported"
    result = import_bundle(bundle, folder, loaded)
    Reporter().line(f"{folder}: pretraining of {result['step']} steps is there; go on with `shard anneal {folder}`")
    return _print(result, json_)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A run folder, a checkpoint, or a release bundle.")],
    to: Annotated[str, typer.Option("--to", help="hf: a folder that transformers loads; gguf: a file for llama.cpp.")],
    out: Annotated[Path, typer.Option("--out", help="The new folder to write.")],
    dtype: Annotated[str | None, typer.Option(help="bf16 (the default); hf: fp32; gguf: q8_0, f32.")] = None,
    json_: JsonOption = False,
) -> None:
    """Write the model in the format of other tools."""
    from shard.release.export import export_model

    result = export_model(model, to, out, dtype)
    Reporter().line(f"{out}: {to} in {result['dtype']} ({format_size(result['bytes'])}), from {result['from']}")
    _print(result, json_)


@app.command()
def plan(
    recipe: RecipeArgument,
    set_: SetOption = None,
    data: DataOption = None,
    probe: Annotated[bool, typer.Option(help="Measure the training speed for some seconds.")] = True,
    mirror: MirrorOption = None,
    hub: Annotated[bool, typer.Option("--hub", help="Ask the hub how large the sources are.")] = False,
    json_: JsonOption = False,
) -> None:
    """What a recipe will take: parameters, tokens, FLOPs, memory, disk, time."""
    from shard.plan import describe_plan
    from shard.plan import plan as make_plan
    from shard.recipe import Recipe

    folder = Path(recipe)
    loaded = Recipe.load(str(folder / "recipe.toml") if (folder / "recipe.toml").is_file() else recipe, set_, data)
    result = make_plan(loaded, probe, hub or mirror is not None, mirror)
    if json_:
        return _print(result, True)
    print("\n".join(describe_plan(result)))
    return None


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="A run folder, or a folder of runs.")] = Path("runs"),
    json_: JsonOption = False,
) -> None:
    """Where the runs stand: stage, step, loss, time left."""
    from shard.status import describe_status, find_runs, run_status

    found = find_runs(folder)
    if not found:
        raise ShardError(f"{folder} holds no run: start one with `shard run quickstart`")
    statuses = [run_status(path) for path in found]
    if json_:
        return _print(statuses, True)
    print("\n".join(describe_status(run) for run in statuses))
    return None


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="A run folder, or several to lay over one another.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page; default report.html in the first run.")] = None,
    json_: JsonOption = False,
) -> None:
    """Write a page with the curves of one or more runs, as far as they are."""
    from shard.report.page import write_report

    path = write_report(runs, out)
    print(json.dumps({"report": str(path)}, indent=2) if json_ else path)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A run folder, a checkpoint, a data folder, or a release bundle.")],
    json_: JsonOption = False,
) -> None:
    """Hash every file again, and name each one that is damaged, missing or not expected."""
    from shard.verify import verify as examine

    report = examine(path)
    if json_:
        _print(report.to_dict(), True)
    else:
        print("\n".join(report.describe()))
    if report.problems:
        raise typer.Exit(1)


@app.command()
def doctor(json_: JsonOption = False) -> None:
    """What this machine offers, and what Shard chooses on it."""
    from shard.plan import doctor as examine

    result = examine()
    if json_:
        return _print(result, True)
    print(f"device     {result['device']}")
    print(f"precision  {result['precision']}: {result['precision_reason']}")
    print(f"compile    {'yes' if result['compile'] else 'no'}: {result['compile_reason']}")
    print(f"memory     {format_size(result['memory_bytes'])}, free disk {format_size(result['free_disk_bytes'])}")
    print(f"versions   {', '.join(f'{name} {version}' for name, version in result['versions'].items())}")
    return None


@app.command()
def recipes() -> None:
    """The packaged recipes."""
    from shard.recipe import Recipe, packaged_recipes

    for name in packaged_recipes():
        print(f"{name:<14} {Recipe.load(name).description}")


def _show_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """A user's mistake is one line and an exit code, never a traceback."""
    try:
        with stop_on_sigterm():
            yield
    except (ShardError, InterruptedRunError) as error:
        print(f"shard: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("shard: interrupted; the same command goes on from what is done", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:  # no space, no permission, a file where a folder is needed: it names the path
        print(f"shard: {error}", file=sys.stderr)
        sys.exit(1)


def main(arguments: list[str] | None = None) -> None:
    """The command `shard`."""
    run_app: Callable[..., Any] = app
    with _one_line_errors():
        if num_ranks() > 1:
            from shard.ranks import work_together

            work_together(lambda: run_app(args=arguments))
        run_app(args=arguments)
