#!/usr/bin/env bash
# worker.sh: what the other scripts do on a worker (Linux), over ssh.
#
# setup BUCKET | start RUN CONFIG DATA WORDS... | state | stop SECONDS | log LINES [follow]
set -euo pipefail

host=$(hostname)
checkout=$HOME/nvib_jax
venv=$HOME/nvib_venv
bucket=$HOME/bucket
work=$HOME/nvib_run # pid, log and exit status of training

say() { printf '%s %s\n' "$host" "$*"; }

die() {
  say "$*" >&2
  exit 1
}

training() { # sets pid; fails where none runs (the name guards against a pid used again)
  pid=$(cat "$work/pid" 2>/dev/null) || return 1
  grep -qs worker.sh "/proc/$pid/cmdline" && return
  # One that is just being started has no name for a moment.
  kill -0 "$pid" 2>/dev/null && sleep 0.2 && grep -qs worker.sh "/proc/$pid/cmdline"
}

mounted() { findmnt -n -o SOURCE -M "$bucket"; }

install_packages() {
  local python
  if [ ! -x "$venv/bin/pip" ]; then
    rm -rf "$venv"
    for python in python3.13 python3.12 python3.11 ''; do
      if [ -n "$python" ] && "$python" -c 'import ensurepip, venv' 2>/dev/null; then break; fi
    done
    if [ -n "$python" ]; then
      "$python" -m venv "$venv"
    else # the system's Python is too old
      python3 -m pip install --quiet --user uv
      python3 -m uv venv --quiet --seed --python 3.12 "$venv"
    fi
  fi
  (cd "$checkout" && "$venv/bin/pip" install --quiet -e '.[train,tpu]')
}

install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
  curl -fsSL "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y gcsfuse
}

setup() { # BUCKET
  local source
  if training; then
    rm -rf "$checkout.new"
    say "training runs; left as it is"
    return
  fi
  rm -rf "$checkout"
  mv "$checkout.new" "$checkout"
  install_packages
  command -v gcsfuse >/dev/null || install_gcsfuse
  if ! source=$(mounted); then
    mkdir -p "$bucket"
    # No cached metadata: all workers must see the same checkpoints.
    gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 "$1" "$bucket"
  elif [ "$source" != "$1" ]; then
    die "$bucket is bucket $source, not $1; delete the slice or set BUCKET=$source"
  fi
  say "ready"
}

data_words() { # DATA: words for `nvib train`, a line each, that name its files in the bucket
  local split part files
  [ -n "$1" ] || return 0
  for split in train valid test; do
    files=$bucket/data/$1/$split
    if [ -n "$(compgen -G "$files*")" ]; then
      part=$split
      if [ "$split" = valid ]; then part=validation; fi
      printf '%s\n' "--data.$part" "$files*"
    elif [ "$split" = train ]; then
      die "no $files*; run setup.sh with the same DATA"
    fi
  done
}

start() { # RUN CONFIG DATA WORDS...
  if training; then
    say "training already runs, process $pid"
    return
  fi
  mounted >/dev/null || die "the bucket is not mounted; run setup.sh"
  data_words "$3" >/dev/null
  mkdir -p "$work"
  rm -f "$work/exit"
  cd "$checkout"
  setsid nohup bash "$checkout/tpu_scripts/worker.sh" train "$@" </dev/null >>"$work/log" 2>&1 &
  echo $! >"$work/pid"
  say "training started, process $!"
}

train() { # the detached process: hands SIGTERM on and keeps the exit status
  local run=$1 config=$2 word pid status data=()
  while IFS= read -r word; do data+=("$word"); done < <(data_words "$3")
  shift 3
  # In the bucket, which a preemption leaves: one worker prepares the data for all, once.
  NVIB_CACHE="$bucket/cache" PYTHONUNBUFFERED=1 "$venv/bin/nvib" train "$config" --auto-resume \
    --train.run-dir "$bucket/runs/$run" ${data[@]+"${data[@]}"} "$@" &
  pid=$!
  trap 'kill -TERM "$pid"' TERM
  while :; do # a signal ends `wait`, not the process
    status=0
    wait "$pid" || status=$?
    kill -0 "$pid" 2>/dev/null || break
  done
  echo "$status" >"$work/exit"
}

state() {
  local word=none
  if training; then
    word=running
  elif [ -e "$work/pid" ]; then
    word=ended:$(cat "$work/exit" 2>/dev/null || echo killed)
  fi
  say "$word" "$(tail -n 1 "$work/log" 2>/dev/null | cut -c 1-200 || true)"
}

stop() { # SECONDS
  local rest=$(($1 * 5))
  if ! training; then
    say "no training runs"
    return
  fi
  kill -TERM "$pid"
  while training && [ "$rest" -gt 0 ]; do
    sleep 0.2
    rest=$((rest - 1))
  done
  if training; then
    kill -KILL -- "-$pid"
    say "training did not end in $1 s and was killed; the last saved checkpoint stays"
  else
    state
  fi
}

log() { # LINES [follow]
  [ -e "$work/log" ] || die "no log: training was not started here"
  tail -n "$1" ${2:+-F} "$work/log"
}

"$@"
