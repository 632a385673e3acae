#!/usr/bin/env bash
# The kernels' tests under the address and undefined-behaviour sanitizers; with "as-avx512" also the layouts and loops
# of AVX-512, on a machine that lacks it. Needs g++ with its sanitizers. Minutes.
#   tests/sparsity/asan.sh [portable] [avx2] [as-avx512]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python="${PYTHON:-.venv/bin/python}"
copy="$(mktemp -d)"
trap 'rm -rf "$copy"' EXIT
cp -r src "$copy/src"
kernels="$copy/src/paretoprune/sparsity/kernels"

for kind in "${@:-portable avx2 as-avx512}"; do for set in $kind; do
    case "$set" in
        portable) flags=() ;;
        avx2) flags=(-mavx2 -mfma) ;;
        as-avx512) flags=(-mavx2 -mfma -DAS_AVX512) ;;
        *) echo "$set: expected portable, avx2 or as-avx512" >&2; exit 2 ;;
    esac
    rm -f "$kernels"/_*.so
    # The narrowest set must be there, as it is asked what the processor can do.
    for name in portable avx2; do
        options=("${flags[@]}")
        [[ $name == portable ]] && options=()
        [[ $name != portable && $set == portable ]] && continue
        g++ -std=c++17 -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined \
            -fno-math-errno -fno-trapping-math -fPIC -shared -fvisibility=hidden -Wno-psabi "${options[@]}" \
            "$kernels/csrc/sets/$name.cpp" -o "$kernels/_$name.so" -pthread
    done
    echo "== $set"
    wanted=$([[ $set == portable ]] && echo portable || echo avx2)
    LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so.6)" \
        ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 PYTHONPATH="$copy/src" PYTHONMALLOC=malloc \
        "$python" -m pytest -q -p no:cacheprovider -o pythonpath="$copy/src benchmarks tests/support" \
        tests/sparsity/test_kernels.py -k "$wanted and not avx512"
done; done
