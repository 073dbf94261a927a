"""The three distributions: what is in the wheels, and that they import as users install them."""

import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = {"langchain-gmsa": "langchain_gmsa", "llama-index-postprocessor-gmsa": "llama_index_postprocessor_gmsa"}
# What to import, and what must not come with it: nothing before it is used, and never the other framework.
ROOTS = {
    "gmsa_rag": ("GMSAConfig", ("langchain_core", "llama_index.core")),
    "langchain_gmsa": ("ChatGMSA", ("llama_index.core",)),
    "llama_index.llms.gmsa": ("GMSALLM", ("langchain_core",)),
    "llama_index.postprocessor.gmsa": ("GMSANodePostprocessor", ("langchain_core",)),
    "llama_index.vector_stores.gmsa": ("GMSAVectorStore", ("langchain_core",)),
}
HEAVY = ("torch", "transformers", "faiss", "langchain_core", "llama_index.core")
LOOK = """
import importlib, sys
module = importlib.import_module({name!r})
loaded = [name for name in {heavy!r} if name in sys.modules]
assert not loaded, f"importing it loads {{loaded}}"
getattr(module, {attribute!r})
loaded = [name for name in {foreign!r} if name in sys.modules]
assert not loaded, f"using it loads {{loaded}}"
print(module.__file__)
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    for source in (ROOT, *(ROOT / "integrations" / "dist" / name for name in NAMES)):
        build = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(folder), str(source)]
        done = subprocess.run(build, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return {wheel.name.partition("-")[0]: wheel for wheel in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory):
    """A folder with the wheels unpacked in it, as pip would."""
    folder = tmp_path_factory.mktemp("site")
    for wheel in wheels.values():
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
    return folder


def python(code, *paths):
    """Run code with the dependencies and these paths, but without the editable installation of this repository."""
    search = [*map(str, paths), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    script = f"import sys; sys.path[:] = [p for p in sys.path if p] + {search!r}\n{code}"
    # -S leaves out the .pth files, which is what an editable installation consists of.
    return subprocess.run([sys.executable, "-S", "-P", "-c", script], capture_output=True, text=True, check=False)


def look(name):
    attribute, foreign = ROOTS[name]
    return LOOK.format(name=name, heavy=HEAVY, attribute=attribute, foreign=foreign)


def test_the_wheel_holds_three_import_roots_and_no_package_that_llama_index_owns(wheels):
    names = zipfile.ZipFile(wheels["gmsa_rag"]).namelist()
    assert {name.partition("/")[0] for name in names if "dist-info" not in name} == {
        "gmsa_rag",
        "langchain_gmsa",
        "llama_index",
    }
    owned = [f"llama_index{part}/__init__.py" for part in ("", "/llms", "/postprocessor", "/vector_stores")]
    assert not set(owned) & set(names)
    for wanted in ("gmsa_rag/py.typed", "langchain_gmsa/py.typed", "llama_index/postprocessor/gmsa/py.typed"):
        assert wanted in names
    assert any(name.endswith("gmsa-mini/compressor.safetensors") for name in names)
    assert any(name.endswith(".yaml") and "recipes" in name for name in names)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_to_find_has_no_files_and_leads_to_gmsa_rag(name, wheels):
    names = zipfile.ZipFile(wheels[NAMES[name]]).namelist()
    assert names and all(".dist-info/" in entry for entry in names)
    project = tomllib.loads((ROOT / "integrations" / "dist" / name / "pyproject.toml").read_text())["project"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert project["name"] == name and project["version"] == version
    assert project["dependencies"] == [f"gmsa-rag>={version}"]


@pytest.mark.parametrize("name", ROOTS)
def test_a_root_imports_from_wheels_and_loads_nothing_foreign(name, installed):
    done = python(look(name), installed)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(installed)


@pytest.mark.parametrize("name", ROOTS)
def test_a_root_imports_from_an_editable_installation(name):
    done = subprocess.run([sys.executable, "-P", "-c", look(name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(ROOT)


def test_other_integrations_of_llama_index_work_beside_ours(installed, tmp_path):
    other = tmp_path / "llama_index" / "postprocessor" / "other"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("KIND = 'other'\n")
    code = (
        "import llama_index.core, llama_index.postprocessor.gmsa\n"
        "from llama_index.postprocessor.other import KIND\n"
        "print(KIND, llama_index.core.__version__ != '')"
    )
    for paths in ((installed, tmp_path), (tmp_path, installed)):
        done = python(code, *paths)
        assert done.stdout.split() == ["other", "True"], done.stderr
    # And beside the editable installation that the tests run in.
    beside = [sys.executable, "-P", "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n{code}"]
    done = subprocess.run(beside, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["other", "True"], done.stderr


@pytest.mark.slow
def test_wheels_install_into_an_empty_environment(wheels, tmp_path):
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    run = str(environment / "bin" / "python")
    install = [run, "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*install, "torch"], check=True)
    subprocess.run([*install, *map(str, wheels.values())], check=True)
    for name in ROOTS:
        done = subprocess.run([run, "-P", "-c", look(name)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    code = "from gmsa_rag import GMSA; print(GMSA.from_pretrained('gmsa-mini').compress('Rome', rate=4).rate)"
    done = subprocess.run([run, "-P", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "4"
