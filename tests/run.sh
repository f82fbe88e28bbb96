#!/usr/bin/env bash
# Run the tests: tests/run.sh [quick|unit|namespaces|e2e|all|matrix|vm|fuzz|coverage] [--no-setup]
#                             [pytest's arguments]
#
#   quick       what to run while you work: of unit and namespaces what is fast and tries no programs of
#               other people, each test with one forward and at most three cases, in the system's
#               Python; writes nothing into the checkout
#   unit        no kernel features; in the system's Python, and in other Pythons
#   namespaces  real namespaces; our code started by the system's Python, and by other Pythons: of each
#               test one case then, another one in each Python, for what differs is whether a line
#               of ours runs there; all cases of those marked as every_python
#   e2e         the archive, JupyterHub and batchspawner
#   all         the three of them (the default)
#   matrix      for the night: each JupyterHub and batchspawner, a browser, applications, Grid Engine,
#               eight minutes of sessions that come and go, every case of the namespaces tests in the
#               other Pythons, Pythons newer than this machine's
#   vm          for the night: virtual machines of Debian 13 and 11 with AppArmor, systemd and cgroups of
#               version 2, emulated, one at a time
#   coverage    how much of our code the unit and namespaces tests run, in all the processes they start
#   fuzz        for the night: the fuzz tests, PORTWRAP_TEST_FUZZ (20) times as thorough as by default
#
# PORTWRAP_PYTHONS     the other Pythons: a list of paths, "all" that are found, or "none"
#                      (default: the oldest, at least 3.8, and the newest that are found)
# PORTWRAP_AGAIN       how many failures of one run are tried twice more, when all other tests have
#                      ended (default: 0); each is told in full and in the summary, and one that fails
#                      three times is a failure
# PORTWRAP_WORKERS     how many tests run at the same time, each worker on a node of its own
#                      (default: two for each processor, at most 16; 0: one process runs them all);
#                      two fifths of them are for the other Pythons, whose tests run beside the rest
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
again=0       # tests that failed and were tried once more
beside=       # the process group of the runs in the background
work=$(mktemp -d)
log=
trap clean_up EXIT
# pytest ends by itself, with status 2, and bash would go on. Ctrl-C comes to the runs in front only:
# clean_up sends it to those in the background.
trap 'exit 130' INT

# shellcheck disable=SC2317  # a trap calls it
clean_up() {
    [[ -z $beside ]] || { kill -INT -- "-$beside" && wait "$beside"; } 2>/dev/null || true
    rm -rf -- "$work"
}

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
    if a_worker_died; then
        closing+=', a worker died'
        broken=yes
    fi
}

# Then the tests it would have run next are dropped, and no number tells of them.
a_worker_died() { grep -qE '^[^ ]*\[gw[0-9]+\] node down: ' "$log"; }

processors=$(nproc)
workers=${PORTWRAP_WORKERS:-$((processors < 8 ? 2 * processors : 16))}

# What a run is: its title, and the words that follow env(1). Its number is the place in these two.
titles=() commands=()

# plan TITLE [NAME=VALUE] INTERPRETER ARGUMENTS...
plan() {
    local title=$1 variables=()
    shift
    while [[ $1 == *=* ]]; do
        variables+=("$1")
        shift
    done
    titles+=("$title")
    commands+=("$(printf '%q ' ${variables[@]+"${variables[@]}"} "$1" -m pytest "${@:2}")")
}

# perform NUMBER WORKERS ARGUMENTS...: its output and its status are kept in files.
# At Ctrl-C, pytest still ends its fixtures and tells the failures: to a tee that has not ended.
perform() {
    local number=$1 workers=$2 status=0 words
    shift 2
    eval "words=(${commands[number]})"
    env "${words[@]}" -o "cache_dir=$work/cache-$number" \
        --numprocesses="$workers" --dist=loadfile --max-worker-restart=0 \
        "$@" ${pytest_arguments[@]+"${pytest_arguments[@]}"} </dev/null 2>&1 |
        tee -i "$work/log-$number" || status=${PIPESTATUS[0]}
    printf '%s\n' "$status" >"$work/status-$number"
}

# perform_all WORKERS NUMBER...
perform_all() {
    local workers=$1 number
    shift
    for number; do
        heading "${titles[number]}"
        perform "$number" "$workers"
    done
}

# perform_side_by_side COUNT: the first so many runs, and beside them the others. Many tests wait for
# something, and the last ones of a run leave workers without work.
perform_side_by_side() {
    local numbers=("${!titles[@]}") share=$((workers * 2 / 5))
    local first=("${numbers[@]:0:$1}") others=("${numbers[@]:$1}")
    if [[ $share == 0 || ${#first[@]} == 0 || ${#others[@]} == 0 ]]; then
        perform_all "$workers" "${numbers[@]}"
        return
    fi
    : >"$work/beside"
    set -m # in a process group of its own, to which a signal can be sent
    {
        trap 'exit 130' INT # a subshell does not keep the trap
        perform_all "$share" "${others[@]}"
    } >"$work/beside" 2>&1 &
    beside=$!
    set +m
    perform_all "$((workers - share))" "${first[@]}"
    tail -n +1 -f --pid="$beside" "$work/beside"
    wait "$beside"
    beside=
}

# What is left behind at the end of a file may be another test's fault than the last one's, who has
# chosen arguments may have stopped at a failure, and what a dead worker dropped has not failed.
can_be_repeated() {
    [[ ${#pytest_arguments[@]} == 0 ]] && ! a_worker_died &&
        ! grep -q '^_* ERROR at teardown of ' "$log"
}

# A fixture that fails is an error of every test that needs it, mostly of one file.
failures() { sed -nE 's/^FAILED (.*)/\1/p; s/^ERROR ([^:]+)::.*/\1/p' "$log" | sort -u | wc -l; }

# judge NUMBER: what has come of a run. A few failures are tried again, now that nothing runs beside
# them, up to twice.
judge() {
    local number=$1 before=$((total[failed] + total[error])) status failed attempt
    log=$work/log-$number
    count
    summary+=("${titles[number]}: $closing")
    failed=$(failures)
    if [[ $failed -ge 1 && $failed -le ${PORTWRAP_AGAIN:-0} ]]; then
        for attempt in once twice; do
            if [[ $(<"$work/status-$number") != 1 ]] || ! can_be_repeated; then break; fi
            heading "${titles[number]}, $attempt more"
            [[ $attempt == twice ]] || again=$((again + failed))
            total[failed]=$before total[error]=0
            perform "$number" 0 --last-failed --last-failed-no-failures none
            count
            summary+=("    $attempt more: $closing")
        done
    fi
    status=$(<"$work/status-$number")
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

# run_part: like plan, and the run is performed and judged at once
run_part() {
    local number=${#titles[@]}
    plan "$@"
    perform_all "$workers" "$number"
    judge "$number"
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
    run_part quick "$runner" tests/unit tests/namespaces --one-forward --few-cases \
        --ignore=tests/unit/test_linters.py --ignore=tests/namespaces/test_everyday.py \
        -m "not (slow or fuzz or matrix or browser or apps)"
}

# Every case, our code started by each.
run_other_pythons() {
    local minor python
    while read -r minor _ <&4; do
        python=$(python_of "$minor") || continue # told above
        run_part "namespaces, every case, Python $minor" PORTWRAP_PYTHON="$python" "$runner" \
            tests/namespaces "${in_other_pythons[@]}"
    done 4< <(chosen_pythons)
}

# What is fast, our code started by each.
run_newest_pythons() {
    local minor path
    while read -r minor path <&4; do
        run_part "namespaces, Python $minor" PORTWRAP_PYTHON="$path" "$runner" tests/namespaces \
            --one-forward -m "not (slow or fuzz or matrix or browser or apps)" \
            --ignore=tests/namespaces/test_everyday.py
    done 4< <(fetched_pythons)
}

finish() {
    heading "what ran"
    printf '%s\n' "${summary[@]}"
    printf '%s passed, %s failed, %s skipped\n' \
        "${total[passed]}" "$((total[failed] + total[error]))" "${total[skipped]}"
    [[ $again == 0 ]] || printf '%s failed at first, and were tried again\n' "$again"
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
    plan "${together[*]#tests/}, Python $system_minor" "$runner" "${together[@]}"
fi
usual=${#titles[@]} # how many runs there are but for those of other Pythons
# What tries other people's programs is left out, and what is about amounts.
in_other_pythons=(-m "not (slow or apps)" --ignore=tests/namespaces/test_everyday.py
    --ignore=tests/namespaces/test_network.py)
case_number=0
while read -r minor _ <&3; do
    python=$(python_of "$minor") || {
        printf 'tests/run.sh: Python %s is not set up; run tests/setup.sh\n' "$minor" >&2
        broken=yes
        continue
    }
    for part in "${parts[@]}"; do
        case $part in
            # Calls our functions: needs its pytest in that very Python. Linters and the like see files
            # only, and what is slow is about these scripts.
            unit) plan "$part, Python $minor" PORTWRAP_TEST_FUZZ="${PORTWRAP_TEST_FUZZ:-0.2}" \
                "$(venv_of "$minor")/bin/python" tests/unit --ignore=tests/unit/test_linters.py \
                --ignore=tests/unit/test_guards.py --ignore=tests/unit/test_layout.py \
                -m "not slow" ;;
            # Starts our programs: by this one.
            namespaces) plan "$part, Python $minor" PORTWRAP_PYTHON="$python" "$runner" \
                tests/namespaces --one-case="$case_number" "${in_other_pythons[@]}" ;;
        esac
    done
    case_number=$((case_number + 1))
done 3< <([[ ${parts[*]} == quick ]] || chosen_pythons)
perform_side_by_side "$usual"
for number in "${!titles[@]}"; do judge "$number"; done
for part in "${parts[@]}"; do
    case $part in
        quick) run_quick ;;
        matrix)
            run_part matrix "$runner" tests/e2e tests/namespaces -m "matrix or browser or apps"
            run_other_pythons
            run_newest_pythons
            ;;
        # One after the other: an emulated machine keeps two processors busy.
        vm) workers=0 run_part vm "$runner" tests/vm -m vm ;;
        fuzz) PORTWRAP_TEST_FUZZ=${PORTWRAP_TEST_FUZZ:-20} run_part fuzz "$runner" tests -m fuzz \
            --timeout=3600 ;;
        coverage) measure_coverage || broken=yes ;;
    esac
done
finish
