# shellcheck shell=bash
# Common parts of the scripts; sourced, not run. What a script says goes to stderr; commands of
# --dry-run and answers go to stdout.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$HERE")
ME=$(basename "$0")
DRY_RUN=false
DRY_STATE=ACTIVE # what --dry-run takes the queued resource to be
exec 3>&1        # where --dry-run prints, also from inside $(...)

say() { printf '%s: %s\n' "$ME" "$*" >&2; }

die() {
  say "$*"
  exit 1
}

quoted() { # the words as one line for a shell
  local word space=''
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_@%+=:,./-]*)
        word=$(printf '%s' "$word" | sed "s/'/'\\\\''/g")
        word="'$word'"
        ;;
    esac
    printf '%s%s' "$space" "$word"
    space=' '
  done
}

try() { # runs an outside command, or prints it
  if $DRY_RUN; then
    printf '%s\n' "$(quoted "$@")" >&3
  else
    "$@" </dev/null 3>&-
  fi
}

run() { # the same; its failure ends the script
  try "$@" || die "status $? from this command: $(quoted "$@")"
}

pause() { $DRY_RUN || sleep "$POLL_SECONDS"; }

want() { # SETTING REGEX WORDS: one sentence where the setting does not match
  local value=${!1} regex="^($2)\$"
  [[ $value =~ $regex ]] && return
  if [ -z "$value" ]; then die "$1 is not set; wanted: $3. Set it in $HERE/settings.sh."; fi
  die "$1 is '$value'; wanted: $3. Set it in $HERE/settings.sh or the environment."
}

reads_text() { # FILE [SEEN]: whether the preset, or one that it names and is made from, reads text
  local source="[\"']?source[\"']? *[:=] *[\"']" seen="${2-}|$1|" name other
  if grep -qE "${source}text[\"']" "$1"; then return 0; fi
  if grep -qE "$source" "$1"; then return 1; fi # its own source stands in for that of the other
  while IFS= read -r name; do
    for other in "$(dirname "$1")/$name" "$ROOT/$name"; do
      [[ -f $other && $seen != *"|$other|"* ]] || continue
      if reads_text "$other" "$seen"; then return 0; fi
    done
  done < <(grep -oE "[\"'][^\"' ]+[.](py|json)[\"']" "$1" | tr -d "\"'")
  return 1
}

check_settings() {
  local words word
  want PROJECT '[a-z][a-z0-9.:-]{4,}[a-z0-9]' 'the id of a Google Cloud project, such as my-project'
  want ZONE '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone, such as us-west4-a'
  want NAME '[a-z]([a-z0-9-]{0,38}[a-z0-9])?' 'at most 40 small letters, digits and -'
  want ACCELERATOR 'v[0-9]+[a-z]*-[0-9]+' 'a kind of TPU and a number of chips, such as v5litepod-8'
  want RUNTIME '[a-z0-9][a-z0-9.-]*' 'a TPU software version, such as v2-alpha-tpuv5-lite'
  want SPOT 'true|false' 'true or false'
  want VALID_UNTIL '([0-9]+[smhd])*' 'a duration, such as 6h, or nothing'
  want BUCKET '[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]' \
    'the name of a bucket, without gs://: 3 to 63 small letters, digits, -, _ and .'
  want RUN '[A-Za-z0-9_][A-Za-z0-9._-]*' 'a folder name of letters, digits, _, - and .'
  want POLL_SECONDS '[0-9]+([.][0-9]+)?' 'a number of seconds'
  want STOP_SECONDS '[0-9]+' 'a whole number of seconds'
  want MAX_RESTARTS '[0-9]+' 'a whole number'
  want DELETE_ON_FAILURE 'true|false' 'true or false'
  [ -f "$ROOT/$CONFIG" ] || die "CONFIG is '$CONFIG'; wanted: a file, as a path inside $ROOT."
  DATA_NAME=''
  if [ -n "$DATA" ]; then
    compgen -G "$DATA/train*" >/dev/null ||
      die "DATA is '$DATA'; wanted: a folder with files train*, and best valid* and test*."
    DATA_NAME=$(basename "$DATA")
    want DATA_NAME '[A-Za-z0-9_][A-Za-z0-9._-]*' 'for DATA a folder name of letters, digits, _, - and .'
  elif [[ $ARGS != *--data.train* ]] && reads_text "$ROOT/$CONFIG"; then
    die "DATA is not set; wanted: the folder of text that $CONFIG is to read (files train*, valid*," \
      "test*), or --data.train in ARGS. Set it in $HERE/settings.sh."
  fi
  EXTRA=() # the words of ARGS
  [ -n "$ARGS" ] || return 0
  words=$(printf '%s\n' "$ARGS" | xargs -n 1 printf '%s\n' 2>/dev/null) ||
    die "ARGS is '$ARGS'; wanted: words for \`nvib train\`, with every quote closed."
  while IFS= read -r word; do EXTRA+=("$word"); done <<<"$words"
}

start() { # the options that every script has, and the settings
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) DRY_RUN=true ;;
      -h | --help)
        awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$0"
        exit 0
        ;;
      *) die "no option '$1'; $ME --help shows what there is." ;;
    esac
    shift
  done
  # shellcheck source-path=SCRIPTDIR source=settings.sh
  . "$HERE/settings.sh"
  $DRY_RUN || command -v gcloud >/dev/null ||
    die "no gcloud on the PATH; see https://cloud.google.com/sdk/docs/install."
  check_settings
  PLACE=("--project=$PROJECT" "--zone=$ZONE")
}

# Lists, not `describe`: that fails alike for what is not there and for what could not be asked.

queued_state() { # state of the queued resource; nothing where there is none
  local list
  list=$(run gcloud compute tpus queued-resources list "${PLACE[@]}" \
    '--format=value(name.basename(),state.state)') || exit 1
  if $DRY_RUN; then list="$NAME $DRY_STATE"; fi
  awk -v name="$NAME" '$1 == name { print $2 }' <<<"$list"
}

nodes() { # name and state of each TPU VM of the project in the zone
  run gcloud compute tpus tpu-vm list "${PLACE[@]}" '--format=value(name.basename(),state)'
}

slice_state() { # ACTIVE where it can be used; ACTIVE/... where its node is gone; else queued_state
  local queued list node
  queued=$(queued_state) || exit 1
  if [ "$queued" = ACTIVE ]; then
    list=$(nodes) || exit 1
    if $DRY_RUN; then list="$NAME READY"; fi
    node=$(awk -v name="$NAME" '$1 == name { print $2 }' <<<"$list")
    case $node in
      PREEMPTED | TERMINATED | STOPPING | STOPPED | DELETING) queued=ACTIVE/$node ;;
      '') queued=ACTIVE/MISSING ;;
    esac
  fi
  printf '%s\n' "$queued"
}

need_slice() {
  local state
  state=$(slice_state) || exit 1
  [ "$state" = ACTIVE ] || die "slice $NAME is ${state:-not there}, not ACTIVE; run create.sh."
}

delete_queued() {
  run gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --force --quiet
}

ssh_to() { # WORKER COMMAND: on one worker, or on all
  run gcloud compute tpus tpu-vm ssh "$NAME" "${PLACE[@]}" "--worker=$1" "--command=$2"
}

worker() { # WORKER WORDS...: worker.sh WORDS... there
  local which=$1
  shift
  ssh_to "$which" "$(quoted bash nvib_jax/tpu_scripts/worker.sh "$@")"
}

worker_states() { # a line for each worker: its host, `running` or what else, its last log line
  ssh_to all "[ -e nvib_jax ] || { echo - none; exit; };\
 bash nvib_jax/tpu_scripts/worker.sh state"
}

ensure_bucket() { # makes it where it is missing
  local spaces
  if spaces=$(try gcloud storage buckets describe "gs://$BUCKET" --raw \
    '--format=value(hierarchicalNamespace.enabled)' 2>/dev/null) && ! $DRY_RUN; then
    [ "$spaces" = True ] || die "bucket $BUCKET has no hierarchical namespace, which checkpoints" \
      "need and which cannot be added later; choose another name for BUCKET."
  else
    run gcloud storage buckets create "gs://$BUCKET" "--project=$PROJECT" "--location=${ZONE%-*}" \
      --uniform-bucket-level-access --enable-hierarchical-namespace
  fi
}

upload_data() { # the text, to where workers find it; only what is missing or has changed
  [ -z "$DATA" ] ||
    run gcloud storage rsync "$DATA" "gs://$BUCKET/data/$DATA_NAME" --recursive
}

run_files() { # names of the objects of the run
  run gcloud storage objects list "gs://$BUCKET/runs/$RUN/**" '--format=value(name)'
}

is_finished() { grep -qxF "runs/$RUN/finished.json" <<<"$1"; }

last_checkpoint() { # FILES: the step of the newest checkpoint; nothing where there is none
  awk -F / '$3 == "checkpoints" && $4 ~ /^[0-9]+$/ && $4 + 0 >= top + 0 { top = $4 }
    END { print top }' <<<"$1"
}
