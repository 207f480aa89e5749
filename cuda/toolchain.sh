#!/bin/sh
# Fetches a CUDA compiler, a disassembler and libclang as Python packages: no root, no GPU, no driver.
#
#   cuda/toolchain.sh [--headers] [DIR]
#
# DIR is .tools/cuda of the repository where none is given; build.rs looks there too. With --headers
# only CUDA's headers and libclang, which is what the feature "cuda-host" needs. What is there
# already is not fetched again. Prints the variables that name what was fetched.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
headers_only=0
dir=
for arg in "$@"; do
    case $arg in
    --headers) headers_only=1 ;;
    -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "toolchain.sh: unknown option $arg (known: --headers)" >&2; exit 2 ;;
    *)
        [ -z "$dir" ] || { echo "toolchain.sh: one folder, not $dir and $arg" >&2; exit 2; }
        dir=$arg
        ;;
    esac
done
dir=${dir:-$root/.tools/cuda}

# Pinned together: left to itself, a compiler of 13.0 would take the newest nvvm and crt. Nothing newer
# than 13.0 compiles kernels, since a driver of 13.0 cannot finish what a newer one began.
headers="nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85 libclang==18.1.1"
compiler="nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-cuobjdump==13.2.78 nvidia-cuda-nvdisasm==13.2.78"
if [ $headers_only = 1 ]; then packages=$headers; else packages="$headers $compiler"; fi

fail() {
    echo "toolchain.sh: $*" >&2
    exit 1
}

mkdir -p "$dir" || fail "cannot make the folder $dir"
dir=$(cd "$dir" && pwd)

# The stamp holds what was fetched: another list, or a run that was cut off, fetches again.
stamp=$dir/fetched.txt
missing=
for package in $packages; do
    grep -qxF "$package" "$stamp" 2>/dev/null || missing="$missing $package"
done
if [ -n "$missing" ]; then
    command -v python3 >/dev/null 2>&1 || fail "python3 with pip is needed to fetch packages; or install CUDA 13.0 and set NVCC"
    python3 -m pip --version >/dev/null 2>&1 || fail "python3 has no pip (Debian: apt-get install python3-pip); or install CUDA 13.0 and set NVCC"
    # pip leaves a folder that is there as it is, so each package goes through a folder of its own.
    fresh=$dir/.fresh.$$
    trap 'rm -rf "$fresh"' EXIT
    # shellcheck disable=SC2086
    python3 -m pip install --quiet --disable-pip-version-check --no-warn-script-location \
        --root-user-action=ignore --no-deps --no-compile --only-binary=:all: --target "$fresh" $missing ||
        fail "pip could not fetch:$missing"
    cp -R "$fresh/." "$dir/" || fail "cannot write to $dir"
    rm -rf "$fresh"
    for package in $missing; do echo "$package" >>"$stamp"; done
fi

cuda=$dir/nvidia/cu13
[ -f "$cuda/include/cuda_bf16.h" ] || fail "the packages left no $cuda/include/cuda_bf16.h; remove $dir and try again"
if [ $headers_only = 0 ]; then
    "$cuda/bin/nvcc" --version >/dev/null 2>&1 || fail "$cuda/bin/nvcc does not run here; remove $dir and try again"
    echo "NVCC=$cuda/bin/nvcc"
fi
echo "CUDA_HOME=$cuda"
echo "LIBCLANG_PATH=$dir/clang/native"
