"""The sparse kernels: one library for each instruction set. Without a compiler the package installs without them."""

import os
import platform
from pathlib import Path

from setuptools import Extension, setup

HERE = "src/paretoprune/sparsity/kernels/csrc"
INCLUDED = sorted(path.as_posix() for path in Path(HERE).glob("*.?pp"))
# Inputs may hold NaN and infinity: no -ffast-math.
FLAGS = ["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wno-psabi"]
AVX512 = ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"]
SETS = {"portable": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    SETS |= {"avx2": ["-mavx2", "-mfma"], "avx512": AVX512, "avx512_vnni": [*AVX512, "-mavx512vnni"]}
# Each takes half a minute to compile: `make venv` names those that its tests run.
if given := os.environ.get("PARETOPRUNE_KERNEL_SETS"):
    SETS = {name: flags for name, flags in SETS.items() if name in given.split()}

setup(
    ext_modules=[
        Extension(
            f"paretoprune.sparsity.kernels._{name}",
            [f"{HERE}/sets/{name}.cpp"],
            depends=INCLUDED,
            extra_compile_args=[*FLAGS, "-pthread", *flags],
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        )
        for name, flags in SETS.items()
    ],
    options={"build_ext": {"parallel": len(SETS)}},
)
