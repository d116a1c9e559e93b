#!/usr/bin/env bash
# Runs the quickstart recipe for real: a Ray cluster, `ray job submit jobs/dpa.py`, the report. Ends only what it started.
#
#   cluster/quickstart.sh                            # jobs/recipes/quickstart.yaml on a cluster of its own
#   cluster/quickstart.sh name=mine seed=1           # overrides; the first argument may be another recipe (*.yaml)
#   RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 cluster/quickstart.sh    # on a cluster that runs already
#
# `ray` must be on PATH from the environment that has the project: Ray starts the job's python by PATH (`make quickstart` sees to it).
set -euo pipefail
unset RAY_ADDRESS  # of another cluster
cd "$(dirname "${BASH_SOURCE[0]}")/.."

recipe=jobs/recipes/quickstart.yaml
case "${1:-}" in *.yaml) recipe=$1; shift ;; esac
runs=${RHUMBLINE_RUNS:-$PWD/runs}
case "$runs" in /*) ;; *) runs=$PWD/$runs ;; esac  # the driver runs in an uploaded copy: a relative path would end there

# The run's name, and any fault of the recipe, before anything is started: also that the run in place is one of another recipe.
name=$(python - "$runs" "$recipe" "$@" <<'PY'
import sys
from pathlib import Path

import yaml
from rhumbline import config
from rhumbline.errors import EXIT_USER_ERROR, ConfigError, UserError
from rhumbline.store import FREE_KEYS

try:
    recipe = config.load(sys.argv[2], sys.argv[3:])
    run = Path(sys.argv[1]) / recipe.name
    remedy = f"Give the new run a name of its own (name={recipe.name}-2), or move {run} away"
    resolved = run / "recipe.resolved.yaml"
    if resolved.is_file():
        try:
            before = config.validate(yaml.safe_load(resolved.read_text(encoding="utf-8")), str(resolved))
        except (OSError, yaml.YAMLError, ConfigError) as e:
            raise ConfigError(f"{run} was made by another version of Rhumbline: {e}\n{remedy}") from e
        other = [line for line in config.differences(before, recipe) if line.partition(":")[0] not in FREE_KEYS]
        if other:
            raise ConfigError("\n  ".join([f"{run} is a run of another recipe:", *other]) + f"\n{remedy}")
    print(recipe.name)
except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)
PY
)
run=$runs/$name
resume=()
if [ -e "$run/report/index.html" ] && grep -q '"state": *"done"' "$run/status.json" 2>/dev/null; then
  echo "already finished: $run/report/index.html"
  echo "for a new run: make quickstart ARGS=\"name=$name-2\"   (or move $run away)"
  exit 0
elif [ -e "$run" ]; then
  echo "continuing the unfinished run in $run"
  resume=(--resume)
fi

export RAY_USAGE_STATS_ENABLED=0
free_port() {  # the preferred port, or any free one
  python - "$1" <<'PY'
import socket, sys
for port in (int(sys.argv[1]), 0):
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            continue
        print(s.getsockname()[1])
        break
PY
}

ray_pid="" submit_pid="" submission="$name-$(date +%Y%m%d-%H%M%S)-$$"
ours() {  # process ids of the cluster that we started: every one of its processes inherits the mark
  grep -lsz "^RHUMBLINE_CLUSTER=$temp$" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 || true
}
finish() {
  local status=$?
  trap - EXIT INT TERM HUP
  if [ -n "$submit_pid" ] && kill -0 "$submit_pid" 2>/dev/null; then
    echo "stopping the job; finished shards stay in $run, and the same command continues there"
    timeout 60 ray job stop --address "$address" "$submission" >/dev/null 2>&1 || true
    kill "$submit_pid" 2>/dev/null || true
  fi
  if [ -n "$ray_pid" ]; then
    kill -TERM "$ray_pid" 2>/dev/null || true
    for _ in $(seq 60); do [ -z "$(ours)" ] && break; sleep 0.5; done
    for pid in $(ours); do kill -KILL "$pid" 2>/dev/null || true; done
    wait "$ray_pid" 2>/dev/null || true
    case "$status" in 0 | 130 | 143) rm -rf "$temp" ;; *) echo "Ray's logs: $temp" >&2 ;; esac
  fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

address=${RAY_API_SERVER_ADDRESS:-}
if [ -z "$address" ]; then
  export RAY_AUTH_MODE=disabled  # a token left in ~/.ray would switch authentication on
  temp=$(mktemp -d /tmp/rhumbline-XXXXXX)  # short: Ray puts Unix sockets below it, whose paths may have 107 bytes
  port=$(free_port 8299)
  address=http://127.0.0.1:$port
  echo "starting Ray (dashboard $address, logs $temp/session_latest/logs)"
  # A session of its own, so that Ctrl-C reaches this script alone and the job can be stopped before its cluster.
  RHUMBLINE_CLUSTER=$temp setsid ray start --head --block --temp-dir "$temp" --port "$(free_port 6399)" \
    --dashboard-host 127.0.0.1 --dashboard-port "$port" --dashboard-agent-listen-port 0 --ray-client-server-port "$(free_port 10299)" \
    --min-worker-port 0 --max-worker-port 0 --disable-usage-stats >"$temp/ray-start.log" 2>&1 &
  ray_pid=$!
  for i in $(seq 240); do
    python -c "import urllib.request as u; u.urlopen('$address/api/version', timeout=5)" 2>/dev/null && break
    if ! kill -0 "$ray_pid" 2>/dev/null || [ "$i" = 240 ]; then
      echo "error: Ray did not start:" >&2; tail -n 20 "$temp/ray-start.log" >&2; exit 1
    fi
    sleep 0.5
  done
fi

started=$SECONDS
ray job submit --address "$address" --submission-id "$submission" --runtime-env cluster/runtime_env.yaml -- \
  python jobs/dpa.py --recipe "$recipe" --runs "$runs" "${resume[@]}" "$@" &
submit_pid=$!
status=0
wait "$submit_pid" || status=$?
submit_pid=""
if [ "$status" != 0 ]; then
  echo "the job failed (see above); finished shards stay in $run, and the same command continues there" >&2
  exit "$status"
fi
echo "finished in $(((SECONDS - started) / 60)) min: open $run/report/index.html"
