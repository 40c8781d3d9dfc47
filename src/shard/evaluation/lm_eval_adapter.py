"""lm-evaluation-harness on a Shard model: `shard evaluate RUN --tasks arc_easy,hellaswag,lambada_openai`.

Needs the extra `eval`; the data sets of its tasks come from the hub. Import this module only where it is asked for.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from shard.console import Reporter
from shard.environment import choose_device
from shard.errors import ShardError, UsageError
from shard.evaluation.greedy import continue_greedily
from shard.evaluation.likelihood import Request, log_likelihoods
from shard.files import read_json, write_json
from shard.inference.load import LoadedModel, load_model
from shard.inference.sampling import generate_ids
from shard.training.decisions import DTYPES

RESULTS = "lm_eval.json"
_MAX_NEW_TOKENS = 256  # where a task does not say
_BOOTSTRAPS = 1000


@register_model("shard")
class ShardHarnessLM(TemplateLM):
    """A Shard model as the harness wants it: text in, log-likelihoods or text out; in fp32 on this device unless said
    otherwise. `pretrained` is a loaded model, or the path of a run folder, a checkpoint or a release bundle.

    Nothing is put before a text; an empty context is the separator. Of a long context the end is read.
    """

    def __init__(self, pretrained: LoadedModel | str, dtype: str = "fp32", **_: Any) -> None:
        super().__init__()
        if isinstance(pretrained, str):
            pretrained = load_model(Path(pretrained), DTYPES[dtype], choose_device())
        self.loaded = pretrained

    @property
    def eot_token_id(self) -> int:
        """The separator."""
        return self.loaded.separator_id

    @property
    def max_length(self) -> int:
        """The context in tokens."""
        return self.loaded.model.config.max_sequence_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text; there are none to add."""
        ids: list[int] = self.loaded.tokenizer.encode(string, add_special_tokens=False).ids
        return ids

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> Any:
        scored = log_likelihoods(self.loaded.model, [Request(tuple(a), tuple(b)) for _, a, b in requests])
        return [(found.log_likelihood, found.is_greedy) for found in scored]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood in nats of each whole text, the separator before it; a long one in windows."""
        windows, owners = [], []
        for i, request in enumerate(requests):
            for pair in get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.eot_token_id, self.max_length, context_len=1
            ):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (log_likelihood, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[i] += log_likelihood
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The continuation of each context up to the first of its stop strings, which is left out."""
        texts = [""] * len(requests)
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            how = normalize_gen_kwargs(dict(request.args[1]), _MAX_NEW_TOKENS)
            until = how.get("until") or []
            stops = tuple(filter(None, [until] if isinstance(until, str) else until))
            num_new = min(how["max_gen_toks"], self.max_length - 1)
            groups[stops, num_new, how.get("temperature") or 0.0, how.get("top_p") or 1.0].append(i)
        for (stops, num_new, temperature, top_p), members in groups.items():
            prompts = [
                (self.tok_encode(requests[i].args[0]) or [self.eot_token_id])[-(self.max_length - num_new) :]
                for i in members
            ]
            for i, new in zip(members, self._continue(prompts, stops, num_new, temperature, top_p), strict=True):
                texts[i] = _cut(self.loaded.tokenizer.decode(new), stops)
        return texts

    def _continue(
        self, prompts: list[list[int]], stops: tuple[str, ...], num_new: int, temperature: float, top_p: float
    ) -> list[list[int]]:
        model, decode, stop_id = self.loaded.model, self.loaded.tokenizer.decode, self.eot_token_id
        if temperature > 0:
            how: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "stop_id": stop_id}
            return [list(generate_ids(model, prompt, num_new, **how)) for prompt in prompts]
        return continue_greedily(
            model, prompts, num_new, stop_id, lambda new: any(stop in decode(new) for stop in stops)
        )


def _cut(text: str, stops: Sequence[str]) -> str:
    return text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))]


def evaluate_tasks(path: Path, names: Sequence[str], limit: int | None, reporter: Reporter) -> dict[str, Any]:
    """Run tasks of the harness (names, or paths of its YAML files) on a run, a checkpoint or a bundle; by task:
    version, items, num_fewshot, and results, each a metric with value and standard_error (None where there is none).

    A run folder keeps them in lm_eval.json, beside those of other tasks. Raises UsageError for an unknown task, and
    ShardError where a task or its data set cannot be loaded.
    """
    loaded = load_model(path, DTYPES["fp32"], choose_device())
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager()
    for name in names:
        if name not in manager.all_tasks and not (name.endswith((".yaml", ".yml")) and Path(name).is_file()):
            raise UsageError(f"--tasks: lm-evaluation-harness {lm_eval.__version__} has no task {name!r}")
    for name in names:
        reporter.progress(f"evaluate: loading {name}")
        try:
            manager.load([name])
        except Exception as error:  # of the network, of the data set, of a task's own code: there is no common kind
            reporter.end_progress()
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ShardError(f"--tasks {name}: lm-evaluation-harness cannot load it: {reason[:300]}") from error
    reporter.progress(f"evaluate: {', '.join(names)}")
    found = lm_eval.simple_evaluate(
        model=ShardHarnessLM(loaded),
        tasks=list(names),
        task_manager=manager,  # it loads them once more, from the cache
        limit=limit,
        bootstrap_iters=_BOOTSTRAPS,
        log_samples=False,
    )
    reporter.end_progress()
    tasks = {name: _task_result(found, name) for name in found["results"]}
    origin = Path(loaded.origin)
    checkpoint = str(origin.relative_to(path) if origin.is_relative_to(path) and origin != path else origin)
    for result in tasks.values():
        result |= {"checkpoint": checkpoint, "precision": "fp32", "limit": limit}
    result = {"lm_eval": lm_eval.__version__, "tasks": tasks}
    if (path / "recipe.toml").is_file() and not (path / "SHA256SUMS").exists():
        before = read_json(path / RESULTS, "delete it")["tasks"] if (path / RESULTS).is_file() else {}
        write_json(path / RESULTS, result | {"tasks": before | tasks})
    _show(tasks, reporter)
    return result


def _task_result(found: dict[str, Any], name: str) -> dict[str, Any]:
    """What the harness says of a task, in the form of evaluation.json. Its keys are `metric,filter`."""
    entries: dict[str, Any] = found["results"][name]
    results = []
    for key, value in entries.items():
        metric, _, filtered_by = key.partition(",")
        if metric.endswith("_stderr") or not isinstance(value, int | float) or not filtered_by:
            continue
        error = entries.get(f"{metric}_stderr,{filtered_by}")
        shown = metric if filtered_by == "none" else f"{metric} ({filtered_by})"
        results.append({"metric": shown, "value": value, "standard_error": error if isinstance(error, float) else None})
    samples = found["n-samples"].get(name, {})
    return {
        "version": found["versions"].get(name),
        "items": samples.get("effective"),
        "num_fewshot": found["n-shot"].get(name),
        "results": results,
    }


def _show(tasks: dict[str, Any], reporter: Reporter) -> None:
    rows = [
        [
            f"{name}: {score['metric']}",
            f"{score['value']:.4f}",
            "" if score["standard_error"] is None else f"{score['standard_error']:.4f}",
            "" if task["items"] is None else f"{task['items']:,}",
        ]
        for name, task in tasks.items()
        for score in task["results"]
    ]
    title = f"lm-evaluation-harness {lm_eval.__version__}"
    reporter.table(title, ["task", "value", "s.e.", "items"], rows)
