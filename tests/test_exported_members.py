import ast
import subprocess
import sys
from pathlib import Path

import pytest

import gmsa_rag

ROOT = Path(__file__).parents[1]
PUBLIC = [
    "GMSA",
    "GMSALLM",
    "Answer",
    "ChatGMSA",
    "GMSAByteStore",
    "GMSACompressTransform",
    "GMSAConfig",
    "GMSAContextCompressor",
    "GMSAMemoryCache",
    "GMSANodePostprocessor",
    "GMSARetriever",
    "GMSAVectorStore",
    "Memory",
    "MemoryStore",
    "VectorIndex",
    "Verbatim",
    "default_store",
    "neutralise",
]


def test_the_public_names_are_pinned():
    assert gmsa_rag.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(gmsa_rag))
    for name in PUBLIC:
        assert getattr(gmsa_rag, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(gmsa_rag, "nothing_of_the_kind")


def test_importing_loads_neither_torch_nor_a_framework():
    script = (
        "import sys, gmsa_rag, gmsa_rag.memory, gmsa_rag.cli, langchain_gmsa\n"
        "print([m for m in ('torch', 'transformers', 'faiss', 'langchain_core', 'llama_index') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("names", "other"),
    [
        (["ChatGMSA", "GMSAByteStore", "GMSAContextCompressor", "GMSARetriever", "GMSAVectorStore"], "llama_index"),
        (["GMSACompressTransform", "GMSALLM", "GMSANodePostprocessor"], "langchain_core"),
    ],
)
def test_the_components_of_a_framework_load_no_other(names, other):
    script = f"import sys, gmsa_rag\nprint([getattr(gmsa_rag, n).__name__ for n in {names}], {other!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{names} False"


def test_the_engine_imports_no_framework():
    for path in (ROOT / "gmsa_rag").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            others = [name for name in names if not (name.startswith("llama_index.") and name.endswith(".gmsa"))]
            assert not any(name.split(".")[0] in ("langchain_core", "langchain", "llama_index") for name in others), (
                path
            )


def test_arrows_point_down_only():
    """integrations -> inference, memory -> modeling; nothing below imports training or evaluation."""
    forbidden = {
        "modeling": ("inference", "memory", "training", "evaluation"),
        "memory": ("inference", "training", "evaluation"),
        "inference": ("training", "evaluation"),
        "training": ("evaluation",),
    }
    for package, above in forbidden.items():
        for path in (ROOT / "gmsa_rag" / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
                assert not any(module.startswith(f"gmsa_rag.{name}") for name in above), f"{path} imports {module}"
