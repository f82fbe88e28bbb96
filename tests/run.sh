#!/usr/bin/env bash
# Run the tests: tests/run.sh [quick|unit|namespaces|e2e|all|matrix|vm|fuzz|coverage] [--no-setup]
#                             [pytest's arguments]
#
#   quick       what to run while you work: of unit and namespaces what is fast, each test with one
#               forward, in the system's Python; writes nothing into the checkout
#   unit        no kernel features; in the system's Python, then in other Pythons
#   namespaces  real namespaces; our code started by the system's Python, then by other Pythons
#   e2e         the archive, JupyterHub and batchspawner
#   all         the three of them (the default)
#   matrix      for the night: each JupyterHub and batchspawner, a browser, applications, Grid Engine,
#               eight minutes of sessions that come and go, Pythons newer than this machine's
#   vm          for the night: virtual machines of Debian 13 and 11 with AppArmor, systemd and cgroups of
#               version 2, emulated, one at a time
#   coverage    how much of our code the unit and namespaces tests run, in all the processes they start
#   fuzz        for the night: the fuzz tests, PORTWRAP_TEST_FUZZ (20) times as thorough as by default
#
# PORTWRAP_PYTHONS     the other Pythons: a list of paths, "all" that are found, or "none"
#                      (default: the oldest, at least 3.8, and the newest that are found)
# PORTWRAP_AGAIN       how many failures of one run are tried once more, alone (default: 0); each is
#                      told in full and in the summary, and one that fails again is a failure
# PORTWRAP_WORKERS     how many tests run at the same time, each worker on a node of its own
#                      (default: two for each processor, at most 16; 0: one process runs them all)
# PORTWRAP_MUST_WORK   1: what this machine cannot test is a failure, not a skip
# PORTWRAP_TEST_ROOT   where setup.sh puts what the tests need (default: /opt/portwrap-tests)
set -euo pipefail
# shellcheck source=tests/environment.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"
cd -- "$project"

parts=()
set_up=yes
while [[ $# -gt 0 ]]; do
    case $1 in
        quick | unit | namespaces | e2e | matrix | vm | fuzz | coverage) parts+=("$1") ;;
        all) parts+=(unit namespaces e2e) ;;
        --no-setup) set_up=no ;;
        -h | --help)
            sed -n '2,/^set /{s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
            exit 0
            ;;
        *) break ;;
    esac
    shift
done
[[ ${#parts[@]} -gt 0 ]] || parts=(unit namespaces e2e)
pytest_arguments=("$@")

summary=()    # one line per run
broken=no     # a run failed, or a whole part ran no test where everything must work
twice=0       # tests that failed and were tried once more
work=$(mktemp -d)
log=$work/log
trap 'rm -rf -- "$work"' EXIT

heading() { printf '\n======== %s ========\n' "$*"; }

# Adds up pytest's closing lines, "== 12 passed, 1 skipped in 0.3s ==", and keeps the last one. A run
# without one has not come to its end, whatever its status: a test may have made pytest another
# program.
declare -A total=([passed]=0 [failed]=0 [error]=0 [skipped]=0)
closing=
count() {
    local outcome number
    local counted='[0-9]+ [a-z]+( [a-z]+)?' # "2 subtests passed"
    local pattern="^(=+ )?($counted(, $counted)*|no tests ran) in [0-9.]+s( \([0-9:]+\))?( =+)?\$"
    if ! closing=$(grep -E "$pattern" "$log" | tail -n 1) || [[ -z $closing ]]; then
        closing='pytest did not finish'
        broken=yes
    fi
    for outcome in "${!total[@]}"; do
        number=$(grep -oE "[0-9]+ $outcome" <<<"$closing") || continue
        total[$outcome]=$((${total[$outcome]} + ${number%% *}))
    done
    closing=$(sed -E 's/^=+ | =+$//g' <<<"$closing")
}

processors=$(nproc)
workers=${PORTWRAP_WORKERS:-$((processors < 8 ? 2 * processors : 16))}

# run_pytest INTERPRETER ARGUMENTS...
run_pytest() {
    local interpreter=$1 status=0
    shift
    "$interpreter" -m pytest -o "cache_dir=$work/cache" \
        --numprocesses="$workers" --dist=loadfile --max-worker-restart=0 \
        "$@" ${pytest_arguments[@]+"${pytest_arguments[@]}"} </dev/null 2>&1 | tee "$log" ||
        status=${PIPESTATUS[0]}
    return "$status"
}

# What is left behind at the end of a file may be another test's fault than the last one's, and who
# has chosen arguments may have stopped at a failure.
can_be_repeated() {
    [[ ${#pytest_arguments[@]} == 0 ]] && ! grep -q '^_* ERROR at teardown of ' "$log"
}

# run_part TITLE INTERPRETER ARGUMENTS...
run_part() {
    local title=$1 status=0 before=$((total[failed] + total[error])) failed
    shift
    heading "$title"
    run_pytest "$@" || status=$?
    count
    summary+=("$title: $closing")
    # A fixture that fails is an error of every test that needs it, mostly of one file.
    failed=$(sed -nE 's/^FAILED (.*)/\1/p; s/^ERROR ([^:]+)::.*/\1/p' "$log" | sort -u | wc -l)
    if [[ $status == 1 && $failed -ge 1 && $failed -le ${PORTWRAP_AGAIN:-0} ]] && can_be_repeated; then
        heading "$title, once more"
        total[failed]=$before total[error]=0 twice=$((twice + failed)) status=0
        run_pytest "$@" --numprocesses=0 --last-failed --last-failed-no-failures none || status=$?
        count
        summary+=("    once more: $closing")
        [[ $status == 0 ]] || broken=yes
    fi
    case $status in
        0) ;;
        2) # Interrupted, or the test files themselves are broken.
            broken=yes
            finish
            ;;
        5) # No test matched: right for a selection, wrong for a whole part.
            [[ ${#pytest_arguments[@]} -gt 0 || ${PORTWRAP_MUST_WORK:-0} == 0 ]] || broken=yes ;;
        *) broken=yes ;;
    esac
}

# Tests that look at the memory or the system calls of our processes fail when those measure
# themselves: what counts here is the figure.
measure_coverage() {
    local figure=0
    PORTWRAP_TEST_COVERAGE=$(mktemp -d)
    export PORTWRAP_TEST_COVERAGE
    chmod 1777 "$PORTWRAP_TEST_COVERAGE" # every account writes there
    "$runner" -m pytest tests/unit tests/namespaces -m "not slow" -q --no-header --tb=no \
        ${pytest_arguments[@]+"${pytest_arguments[@]}"} </dev/null || true
    heading "coverage, of all processes"
    "$runner" tests/measure.py || figure=$?
    rm -rf -- "$PORTWRAP_TEST_COVERAGE"
    unset PORTWRAP_TEST_COVERAGE
    return "$figure"
}

# As root too, in a checkout of somebody else's.
run_quick() {
    export PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=$work/hypothesis
    run_part quick "$runner" tests/unit tests/namespaces --one-forward \
        --ignore=tests/unit/test_linters.py -m "not (slow or fuzz or matrix or browser or apps)"
}

# What is fast, our code started by each.
run_newest_pythons() {
    local minor path
    while read -r minor path <&4; do
        PORTWRAP_PYTHON=$path run_part "namespaces, Python $minor" "$runner" tests/namespaces \
            --one-forward -m "not (slow or fuzz or matrix or browser or apps)" \
            --ignore=tests/namespaces/test_everyday.py
    done 4< <(fetched_pythons)
}

finish() {
    heading "what ran"
    printf '%s\n' "${summary[@]}"
    printf '%s passed, %s failed, %s skipped\n' \
        "${total[passed]}" "$((total[failed] + total[error]))" "${total[skipped]}"
    [[ $twice == 0 ]] || printf '%s failed at first, and were tried once more\n' "$twice"
    [[ $broken == no && ${total[passed]} -gt 0 ]] && exit 0
    exit 1
}

if [[ $set_up == yes ]]; then
    heading "setting up"
    extra=()
    for part in "${parts[@]}"; do [[ $part != matrix && $part != vm ]] || extra+=("$part"); done
    "$tests/setup.sh" ${extra[@]+"${extra[@]}"}
fi
if [[ ! -x $runner ]]; then
    printf 'tests/run.sh: no %s; run tests/setup.sh\n' "$runner" >&2
    exit 1
fi
heading "building the archive"
if [[ " ${parts[*]} " == *" quick "* ]]; then
    export PORTWRAP_TEST_ARCHIVE=$work/batchspawner-portwrap.pyz
    ./build.sh "$PORTWRAP_TEST_ARCHIVE"
else
    ./build.sh
fi

# Together: while the last of the long tests run, the short ones keep the other workers busy.
system_minor=$(minor_version "$system_python")
together=()
for part in e2e namespaces unit; do
    [[ " ${parts[*]} " != *" $part "* ]] || together+=("tests/$part")
done
if [[ ${#together[@]} -gt 0 ]]; then
    run_part "${together[*]#tests/}, Python $system_minor" "$runner" "${together[@]}"
fi
for part in "${parts[@]}"; do
    case $part in
        quick) run_quick ;;
        matrix)
            run_part matrix "$runner" tests/e2e tests/namespaces -m "matrix or browser or apps"
            run_newest_pythons
            ;;
        # One after the other: an emulated machine keeps two processors busy.
        vm) run_part vm "$runner" tests/vm -m vm --numprocesses=0 ;;
        fuzz) PORTWRAP_TEST_FUZZ=${PORTWRAP_TEST_FUZZ:-20} run_part fuzz "$runner" tests -m fuzz \
            --timeout=3600 ;;
        coverage) measure_coverage || broken=yes ;;
    esac
done
while read -r minor _ <&3; do
    python=$(python_of "$minor") || {
        printf 'tests/run.sh: Python %s is not set up; run tests/setup.sh\n' "$minor" >&2
        broken=yes
        continue
    }
    for part in "${parts[@]}"; do
        case $part in
            # Calls our functions: needs its pytest in that very Python. Linters see files only, and
            # what is slow is about these scripts.
            unit) run_part "$part, Python $minor" "$(venv_of "$minor")/bin/python" tests/unit \
                --ignore=tests/unit/test_linters.py -m "not slow" ;;
            # Starts our programs: by this one. What tries other people's programs is left out, and
            # what is about amounts.
            namespaces) PORTWRAP_PYTHON=$python run_part "$part, Python $minor" "$runner" \
                tests/namespaces -m "not (slow or apps)" --ignore=tests/namespaces/test_everyday.py \
                --ignore=tests/namespaces/test_network.py ;;
        esac
    done
done 3< <([[ ${parts[*]} == quick ]] || chosen_pythons)
finish
