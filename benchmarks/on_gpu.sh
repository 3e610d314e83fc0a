#!/usr/bin/env bash
# `make gpu`: build in place for the GPU at hand, test every GPU backend, then measure. Under 10 minutes, and nothing is downloaded.
# Failing tests do not keep the measurements from being taken, but they fail the exit status.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON_GPU:-python3}
out=${OUT:-benchmarks/results}
mkdir -p "$out"

"$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || {
  echo "error: torch of $python sees no GPU (name another Python by PYTHON_GPU)" >&2
  exit 2
}
arch=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')
export PYTHONPATH=$PWD:$PWD/python${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

echo "== build for sm_$arch"
MAM_WITH_CUDA=1 MAM_CUDA_ARCHS=$arch timeout 150 "$python" setup.py --quiet build_ext --inplace >"$out/gpu_build.log" 2>&1 || {
  tail -n 20 "$out/gpu_build.log" >&2
  echo "error: the build failed; all of it is in $out/gpu_build.log" >&2
  exit 1
}

echo "== tests"
workers=$("$python" -c 'import os, xdist; print("-n", min(8, os.cpu_count()))' 2>/dev/null)
# shellcheck disable=SC2086  # two words
MAM_TEST_BACKENDS=triton,cuda MAM_TEST_DEVICE=cuda timeout 180 "$python" -m pytest -q --maxfail=20 $workers tests/conformance tests/engine/test_systems.py 2>&1 |
  tee "$out/gpu_tests.log" | tail -n 30
tests=${PIPESTATUS[0]}

echo "== measurements"
timeout 130 "$python" -m benchmarks.gpu --out "$out" --seconds 90
measured=$?

[ "$tests" -eq 0 ] || echo "tests FAILED (exit status $tests): $out/gpu_tests.log" >&2
exit $((tests != 0 || measured != 0))
