"""The four files of a release's code/: they need torch and tokenizers, not Shard and not each other."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import shard

SOURCE = Path(shard.__file__).parent
PUBLISHED = ("config", "model", "tokenizer", "muon")

# The published snippet (README of a release), with what a test needs in place of the downloaded files.
PROGRAM = """
import sys, warnings
warnings.simplefilter("error")
sys.modules["shard"] = None  # importing it fails from here on
sys.path.insert(0, "code")
import torch
from config import Config
from model import ToyLM
from tokenizer import load_tokenizer, train_tokenizer
import muon

train_tokenizer(["The capital of France is Paris. " * 9], 300).save("tokenizer.json")
cfg = Config(vocab_size=300, hidden_size=16, num_layers=2, num_heads=2, head_dim=8, intermediate_size=24)
torch.save({"model": ToyLM(cfg).state_dict(), "cfg": cfg.to_dict()}, "model.pt")

ck = torch.load("model.pt", map_location="cpu", weights_only=True)
cfg = Config(**ck["cfg"]) if isinstance(ck["cfg"], dict) else ck["cfg"]
model = ToyLM(cfg).to(torch.bfloat16)
model.load_state_dict(ck["model"])
model.eval()
tok = load_tokenizer("tokenizer.json")
ids = torch.tensor([tok.encode("The capital of France is").ids])
with torch.no_grad():
    for _ in range(3):
        logits, _ = model(ids)
        nxt = logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, nxt], 1)
assert tok.decode(ids[0].tolist()).startswith("The capital of France is")
foreign = {"pydantic", "typer", "rich", "pyarrow", "safetensors", "tokie"}
assert not foreign & set(sys.modules), foreign & set(sys.modules)
assert not [name for name in sys.modules if name.startswith("shard.")]
"""


def imports(node: ast.AST) -> Iterator[str]:
    """The top packages that run time imports: what stands under `if TYPE_CHECKING:` is left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name.split(".")[0] for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield "." if child.level else (child.module or "").split(".")[0]
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from imports(ast.Module(child.orelse, []))
        else:
            yield from imports(child)


def test_the_reader_of_imports_sees_what_it_should() -> None:
    tree = ast.parse(
        "import a.b\nfrom c.d import e\nif TYPE_CHECKING:\n    import f\nelse:\n    from . import g\n"
        "def h():\n    import i\n"
    )
    assert list(imports(tree)) == ["a", "c", ".", "i"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_imports_only_the_standard_library_torch_and_tokenizers(name: str) -> None:
    tree = ast.parse((SOURCE / f"{name}.py").read_text(encoding="utf-8"))
    assert set(imports(tree)) <= sys.stdlib_module_names | {"torch", "tokenizers"}


def test_runs_from_a_flat_folder_without_shard(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    for name in PUBLISHED:
        shutil.copy(SOURCE / f"{name}.py", tmp_path / "code")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
