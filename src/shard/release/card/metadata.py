"""The metadata at the top of a card, as the Hugging Face hub reads it, with the measured results as its model-index."""

import re
from typing import Any

from shard.data.settings import HubSource
from shard.release.card.facts import Facts

_IDENTIFIERS = """
afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0
cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0
cdla-sharing-1.0 creativeml-openrail-m ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0
gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 lppl-1.3c mit mpl-2.0 ms-pl ncsa
odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""
LICENSES = frozenset(_IDENTIFIERS.split())
"""The identifiers that the hub knows; any other licence is `other` with a name."""

ARC = {"arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge"}
TASK = "text-generation"


def metadata(facts: Facts) -> str:
    """YAML, without its fences."""
    from huggingface_hub import ModelCardData

    release = facts.run.recipe.release
    identifier, name = license_fields(release.license)
    library = "transformers" if facts.has_hugging_face else "shard"
    data = ModelCardData(
        license=identifier,
        license_name=name,
        language=list(release.language),
        library_name=library,
        pipeline_tag=TASK,
        tags=["shard", "muon", "trained-from-scratch"],
        datasets=repositories(facts) or None,
        model_name=facts.title,
        eval_results=results(facts) or None,
    )
    # Without results, the class would write the name of the model as a key that the hub does not know.
    if not data.eval_results:
        del data.model_name
    yaml: str = data.to_yaml()
    return yaml.rstrip("\n") + "\n"


def license_fields(license: str) -> tuple[str, str | None]:
    """The hub's identifier of a licence, and its name where that is `other`."""
    if license.lower() in LICENSES:
        return license.lower(), None
    return "other", re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-") or "unnamed"


def repositories(facts: Facts) -> list[str]:
    """Repositories of the hub that a stage trained on, in the order of the recipe."""
    recipe = facts.run.recipe
    used = {name for stage in (recipe.pretrain, recipe.anneal) for name, weight in stage.mix.items() if weight > 0}
    hub = [s.repository for name, s in recipe.sources.items() if name in used and isinstance(s, HubSource)]
    return list(dict.fromkeys(hub))


def results(facts: Facts) -> list[Any]:
    """The results of evaluation.json: bits per byte by source, and every metric of every task that was measured."""
    from huggingface_hub import EvalResult

    found = []
    for name, scores in facts.evaluation.get("sources", {}).items():
        source = facts.run.recipe.sources.get(name)
        found.append(
            EvalResult(
                task_type=TASK,
                dataset_name=f"{name}, held-out documents",
                dataset_type=source.repository if isinstance(source, HubSource) else name,
                dataset_split="held-out",
                metric_type="bits_per_byte",
                metric_name="bits per byte",
                metric_value=scores["bits_per_byte"],
            )
        )
    for name, scores in facts.tasks().items():
        subset = next((config for prefix, config in ARC.items() if name.startswith(prefix)), None)
        found += [
            EvalResult(
                task_type=TASK,
                dataset_name=f"Shard mini-suite: {name}",
                dataset_type="allenai/ai2_arc" if subset else name,
                dataset_config=subset,
                dataset_split="validation" if subset else None,
                metric_type=re.sub(r"[^a-z0-9]+", "_", score["metric"].lower()).strip("_"),
                metric_name=score["metric"],
                metric_value=score["value"],
            )
            for score in scores
        ]
    return found
