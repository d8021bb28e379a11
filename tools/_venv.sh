# Sourced by the tools beside it. Sets `root`, the repository, and `venv`, a virtual environment in which this checkout
# is installed with everything its tests and checks need.
#
# There is one environment for each version of Python, under .venv/. It is made when it is first asked for, and made
# anew when what it depends on has changed; its stamp, a digest of all that, is written last. One without the right
# stamp was interrupted or is out of date, and is cleared before it is used. Tools that start together wait in turn.

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)

find_python() {
    local candidate candidates=(python3 python3.11 python3.12 python3.13 python3.14)
    if [[ -n ${PYTHON:-} ]]; then
        candidates=("$PYTHON")
    fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    echo "$0 needs Python 3.11 or newer: ${PYTHON:-every python3 on PATH} is not; name one in PYTHON" >&2
    return 1
}

# Two words: the name of this Python's environment, and the digest of what belongs in it.
describe_venv() {
    "$python" -I - "$root" <<'END'
import hashlib, json, pathlib, sys, tomllib

root = pathlib.Path(sys.argv[1])
project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
depends_on = [
    project["build-system"],
    project["project"],
    (root / "constraints.txt").read_text(encoding="utf-8"),
    str(root),
    sys.version,
    sys.base_prefix,
]
digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
print(sys.implementation.cache_tag, digest)
END
}

is_ready() {
    [[ -x $venv/bin/python && -f $venv/stamp && $(<"$venv/stamp") == "$digest" ]]
}

make_venv() {
    rm -f "$venv/stamp"
    echo "installing into ${venv#"$root/"} (once; torch is large)" >&2
    "$python" -I -m venv --clear "$venv"
    (cd "$root" && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]')
    printf '%s\n' "$digest" >"$venv/stamp"
}

python=$(find_python)
described=$(describe_venv)
venv=$root/.venv/${described% *}
digest=${described#* }

if ! is_ready; then
    mkdir -p "$root/.venv"
    exec 9>"$venv.lock"
    # The lock belongs to the open file, so it stays ours when this Python ends, and falls when this shell does.
    "$python" -I -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    if ! is_ready; then
        make_venv
    fi
    exec 9>&-
fi
