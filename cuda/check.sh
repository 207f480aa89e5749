#!/usr/bin/env bash
# Looks at compiled kernels: no GPU needed.
#
#   cuda/check.sh [--archs LIST] [--self-test] [DIR]
#
# Prints registers, spilled bytes and static shared memory of every kernel for every architecture, as
# ptxas reported them; fails where a kernel spills that cuda/spills.txt does not list, and where the
# disassembly lacks an instruction that cuda/instructions.txt asks for.
#
# DIR has what build.rs left there (*.ptxas.txt, *.fatbin); otherwise the newest such folder of cargo's
# target directory. LIST, such as 80,86,90a: architectures that every kernel must be compiled for;
# otherwise what is there is looked at. --self-test shows first that wrong tables are noticed.
set -euo pipefail
export LC_ALL=C

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
archs=
self_test=0
dir=

fail() {
    printf 'check.sh: %s\n' "$*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
    --archs)
        [ $# -ge 2 ] || fail "--archs wants a list such as 80,90a"
        archs=$2
        shift
        ;;
    --self-test) self_test=1 ;;
    -h | --help)
        sed -n '2,12s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit 0
        ;;
    -*) fail "unknown option $1 (known: --archs, --self-test)" ;;
    *)
        [ -z "$dir" ] || fail "one folder, not $dir and $1"
        dir=$1
        ;;
    esac
    shift
done

# A disassembler, looked for where build.rs looks for the compiler. cuobjdump calls nvdisasm.
find_cuobjdump() {
    local folder
    for folder in "${NVCC:+$(dirname -- "$NVCC")}" "${CUDA_HOME:+$CUDA_HOME/bin}" PATH \
        "$root/.tools/cuda/nvidia/cu13/bin" /usr/local/cuda/bin; do
        [ -n "$folder" ] || continue
        if [ "$folder" = PATH ]; then
            cuobjdump=$(command -v cuobjdump) && return 0
        elif [ -x "$folder/cuobjdump" ]; then
            cuobjdump=$folder/cuobjdump
            PATH=$folder:$PATH
            return 0
        fi
    done
    fail "no cuobjdump beside \$NVCC, in \$CUDA_HOME/bin, \$PATH, .tools/cuda or /usr/local/cuda; cuda/toolchain.sh fetches it"
}

newest_output() {
    local target=${CARGO_TARGET_DIR:-$root/target} file
    # The time is that of the newest file inside, since a folder keeps its own.
    file=$(find "$target" -maxdepth 5 -path '*/puna-kernels/ptxas.txt' -printf '%T@ %p\n' 2>/dev/null |
        sort -n | tail -1 | cut -d' ' -f2-)
    [ -n "$file" ] || fail "no compiled kernels under $target: build with --features cuda, or name their folder"
    dirname -- "$file"
}

# usage_of DIR: lines "file architecture kernel registers local shared", the last three in bytes, from
# ptxas' reports. Local: what is spilled, or a stack frame, whichever is more.
usage_of() {
    local report
    for report in "$1"/*.ptxas.txt; do
        [ -f "$report" ] || fail "no *.ptxas.txt in $1"
        awk -v file="$(basename -- "$report" .ptxas.txt)" '
            function garbled() { printf "check.sh: %s: not what ptxas -v writes, line %d: %s\n", FILENAME, FNR, $0 > "/dev/stderr"; exit 1 }
            /Compiling entry function/ {
                if (kernel != "") garbled()
                split($0, part, "\047"); kernel = part[2]; arch = part[4]; local = 0; shared = 0
            }
            /bytes stack frame/ && kernel != "" {
                for (i = 2; i <= NF; i++) if ($i ~ /^bytes/ && $(i - 1) + 0 > local) local = $(i - 1) + 0
            }
            /: Used [0-9]+ registers/ {
                if (kernel == "") garbled()
                for (i = 2; i <= NF; i++) {
                    if ($i ~ /^registers/) registers = $(i - 1)
                    if ($i ~ /^bytes/ && $(i + 1) ~ /^smem/) shared = $(i - 1)
                }
                print file, arch, kernel, registers, local, shared
                kernel = ""
            }
            END { if (kernel != "") garbled() }
        ' "$report"
    done
}

# print_usage FILE: usage_of as a table, one line a kernel.
print_usage() {
    awk '
        {
            key = $1 " " $3
            if (!(key in order)) { order[key] = ++n; name[n] = key }
            if (!($2 in known)) { known[$2] = ++m; arch[m] = $2 }
            cell[key, $2] = $4 ($5 > 0 ? "+" $5 : "")
            if ($6 > shared[key]) shared[key] = $6
            if (length($1) > wide_file) wide_file = length($1)
            if (length($3) > wide_kernel) wide_kernel = length($3)
        }
        END {
            print "Registers of every kernel, \"+\" bytes of local memory; static shared memory in bytes."
            printf "%-*s  %-*s", wide_file, "file", wide_kernel, "kernel"
            for (j = 1; j <= m; j++) printf "  %8s", arch[j]
            printf "  %7s\n", "shared"
            for (i = 1; i <= n; i++) {
                split(name[i], part, " ")
                printf "%-*s  %-*s", wide_file, part[1], wide_kernel, part[2]
                for (j = 1; j <= m; j++) printf "  %8s", cell[name[i], arch[j]]
                printf "  %7d\n", shared[name[i]]
            }
        }' "$1"
}

# missing_archs USAGE: files that were not compiled for an architecture of --archs.
missing_archs() {
    awk -v list="$archs" '
        { seen[$1, $2] = 1; file[$1] = 1 }
        END {
            n = split(list, want, ",")
            for (f in file) {
                # Kernels of these files are for one kind of GPU: build.rs.
                if (f ~ /_sm90a$/) { if (!((f, "sm_90a") in seen)) print f ": not compiled for sm_90a"; continue }
                for (i = 1; i <= n; i++) if (!((f, "sm_" want[i]) in seen)) print f ": not compiled for sm_" want[i]
            }
        }' "$1"
}

# spills USAGE TABLE: kernels that use local memory without leave, and leave that nobody needs.
spills() {
    awk '
        FILENAME == ARGV[1] {
            if ($0 ~ /^[ \t]*(#|$)/) next
            if (NF < 5 || $4 !~ /^[0-9]+$/) { print FILENAME ":" FNR ": wanted file, architectures, kernels, bytes and a reason"; next }
            n++; file[n] = $1; archs[n] = "," $2 ","; kernels[n] = $3; bytes[n] = $4; line[n] = FNR; table = FILENAME
            next
        }
        {
            for (i = 1; i <= n; i++) if (index(archs[i], "," $2 ",")) there[i] = 1
            if ($5 == 0) next
            most = 0
            for (i = 1; i <= n; i++)
                if ($1 ~ "^(" file[i] ")$" && index(archs[i], "," $2 ",") && $3 ~ "^(" kernels[i] ")$") {
                    used[i] = 1
                    if (bytes[i] + 0 > most) most = bytes[i] + 0
                }
            if ($5 > most) print $1 ": " $3 " for " $2 ": " $5 " bytes of local memory, " (most ? "listed with " most : "not listed in cuda/spills.txt")
        }
        END { for (i = 1; i <= n; i++) if (there[i] && !used[i]) print table ":" line[i] ": no kernel needs this line" }
    ' "$2" "$1"
}

# disassemble TABLE DIR SCRATCH: for each "file architecture" of its input, what the disassembly lacks.
disassemble() {
    local table=$1 folder=$2 sass=$3 file arch
    while read -r file arch; do
        "$cuobjdump" -sass -arch "$arch" "$folder/$file.fatbin" >"$sass" ||
            { echo "$file: cuobjdump cannot read it"; continue; }
        awk -v file="$file" -v arch="$arch" '
            FILENAME == ARGV[1] {
                if ($0 ~ /^[ \t]*(#|$)/ || NF < 4 || file !~ "^(" $1 ")$" || !index("," $2 ",", "," arch ",")) next
                n++; kernels[n] = $3; wanted[n] = ""
                for (i = 4; i <= NF; i++) wanted[n] = wanted[n] " " $i
                next
            }
            $1 == "Function" { kernel = $3; known[kernel] = 1; next }
            # Lines of code begin with their address, then perhaps a predicate; others are encodings.
            $1 ~ /^\/\*[0-9a-f]+\*\/$/ && NF > 2 {
                op = $2 ~ /^@/ ? $3 : $2
                sub(/;$/, "", op)
                if ((kernel, op) in seen) next
                seen[kernel, op] = 1
                # Its name, and the name without each of its endings.
                for (;;) {
                    has[kernel, op] = 1
                    if (!match(op, /\.[^.]*$/)) break
                    op = substr(op, 1, RSTART - 1)
                }
            }
            END {
                for (kernel in known) {
                    any = 1
                    for (i = 1; i <= n; i++) {
                        if (kernel !~ "^(" kernels[i] ")$") continue
                        m = split(wanted[i], want, " ")
                        for (j = 1; j <= m; j++)
                            if (!((kernel, want[j]) in has)) print file ": " kernel " for " arch " has no " want[j]
                    }
                }
                if (!any) print file ": no kernel in the disassembly for " arch
            }' "$table" "$sass"
    done
}

# instructions USAGE TABLE DIR: what the disassembly lacks.
instructions() {
    local usage=$1 table=$2 folder=$3
    # Which files are to be disassembled for what; a row without kernels is an error.
    awk '
        FILENAME == ARGV[1] {
            if ($0 ~ /^[ \t]*(#|$)/) next
            if (NF < 4) { print "? " FILENAME ":" FNR ": wanted file, architectures, kernels and instructions"; next }
            n++; file[n] = $1; archs[n] = "," $2 ","; kernels[n] = $3; line[n] = FNR; table = FILENAME
            next
        }
        {
            compiled[$2] = 1
            named = 0; covered = 0
            for (i = 1; i <= n; i++) {
                if ($1 !~ "^(" file[i] ")$") continue
                named = 1
                if ($3 !~ "^(" kernels[i] ")$") continue
                covered = 1
                if (index(archs[i], "," $2 ",")) { found[i] = 1; wanted[$1 " " $2] = 1 }
            }
            if (!covered && (named || $1 ~ /^(matmul|matvec|skinny|lora|flash|attention|quant)/)) bare[$1 ": " $3 " has no row in cuda/instructions.txt"] = 1
        }
        END {
            for (w in wanted) print w
            for (b in bare) print "? " b
            for (i = 1; i <= n; i++) {
                m = split(archs[i], part, ",")
                here = 0
                for (j = 1; j <= m; j++) if (part[j] in compiled) here = 1
                if (here && !found[i]) print "? " table ":" line[i] ": no kernel " kernels[i] " in a file " file[i]
            }
        }' "$table" "$usage" | sort >"$work/wanted.txt"
    sed -n 's/^? //p' "$work/wanted.txt"
    sed '/^? /d' "$work/wanted.txt" >"$work/files.txt"
    [ -s "$work/files.txt" ] || echo "cuda/instructions.txt asks for nothing that is here"
    # Two at a time.
    sed -n 'p;n' "$work/files.txt" | disassemble "$table" "$folder" "$work/sass.1" >"$work/lacks.1" &
    sed -n 'n;p' "$work/files.txt" | disassemble "$table" "$folder" "$work/sass.2" >"$work/lacks.2"
    wait "$!" || fail "the first half of the disassembly failed"
    cat "$work/lacks.1" "$work/lacks.2"
}

# checks DIR SPILLS INSTRUCTIONS: prints what is wrong; nothing, when nothing is.
checks() {
    usage_of "$1" >"$work/usage.txt"
    missing_archs "$work/usage.txt"
    spills "$work/usage.txt" "$2"
    instructions "$work/usage.txt" "$3" "$1"
}

# expect TEXT WHAT: what was found wrong in the self-test must have this text.
expect() {
    grep -qF -- "$1" "$work/found.txt" || fail "self-test: $2 went unnoticed"
}

# Tables and reports with one fault each, on a single file of kernels.
run_self_test() {
    local small=$work/small name=skinny
    mkdir "$small"
    cp "$1/$name.fatbin" "$1/$name.ptxas.txt" "$small" || fail "self-test: no $name in $1"
    usage_of "$small" >"$work/usage.txt"
    local arch
    arch=$(cut -d' ' -f2 "$work/usage.txt" | sort -u | head -1)
    echo "$name $arch .* HMMA.16816.F32.BF16 HGMMA" >"$work/table.txt"
    : >"$work/none.txt"
    checks "$small" "$work/none.txt" "$work/table.txt" >"$work/found.txt"
    expect "for $arch has no HGMMA" "an instruction that is not there"
    ! grep -q 'has no HMMA' "$work/found.txt" || fail "self-test: an instruction that is there was not seen"
    echo "$name $arch no_such_kernel HMMA" >"$work/table.txt"
    checks "$small" "$work/none.txt" "$work/table.txt" >"$work/found.txt"
    expect "no kernel no_such_kernel" "a row for no kernel"
    expect "has no row" "a kernel without a row"
    sed 's/ 0 bytes spill stores/ 24 bytes spill stores/' "$1/$name.ptxas.txt" >"$small/$name.ptxas.txt"
    echo "$name $arch .* HMMA" >"$work/table.txt"
    checks "$small" "$work/none.txt" "$work/table.txt" >"$work/found.txt"
    expect "24 bytes of local memory" "a spill"
    echo "$name $(cut -d' ' -f2 "$work/usage.txt" | sort -u | paste -sd,) .* 24 for the self-test" >"$work/none.txt"
    checks "$small" "$work/none.txt" "$work/table.txt" >"$work/found.txt"
    ! grep -q 'local memory' "$work/found.txt" || fail "self-test: a spill that is listed was not let pass"
    cp "$1/$name.ptxas.txt" "$small"
    checks "$small" "$work/none.txt" "$work/table.txt" >"$work/found.txt"
    expect "no kernel needs this line" "leave that nobody needs"
    archs=0 checks "$small" "$work/none.txt" "$work/table.txt" >"$work/found.txt"
    expect "not compiled for sm_0" "an architecture that is not there"
    echo "self-test: every planted fault was noticed"
}

find_cuobjdump
[ -n "$dir" ] || dir=$(newest_output)
[ -d "$dir" ] || fail "no folder $dir"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

[ $self_test = 0 ] || run_self_test "$dir"
checks "$dir" "$root/cuda/spills.txt" "$root/cuda/instructions.txt" >"$work/wrong.txt"
print_usage "$work/usage.txt"
kernels=$(cut -d' ' -f1,3 "$work/usage.txt" | sort -u | wc -l)
if [ -s "$work/wrong.txt" ]; then
    echo
    sort "$work/wrong.txt" | sed 's/^/WRONG: /'
    exit 1
fi
echo
echo "$((kernels)) kernels: no spill that is not listed, and every instruction asked for is there"
